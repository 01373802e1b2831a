"""`pgorthanc upgrade`."""

from __future__ import annotations

from typing import Any

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call, upgrade_options


@commands.command("upgrade")
@upgrade_options.options
@click.option("--repair-duplicates", is_flag=True, help="Merge resources that have the same public id.")
def command(
    call: Call,
    *,
    to: int | None,
    plugin: str | None,
    planned: bool,
    sql: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Bring an index to a higher revision.

    By default to the newest, and with almost no downtime.

    Three phases: prepare and finish run beside a working Orthanc; for the switch, a second or so, everybody else
    has to leave. Each can be interrupted and run again. What other tools have left behind is mended on the way.
    See docs/upgrade.md.

    Exit code of --plan: 0, or 6 if something blocks the upgrade.
    """
    from pgorthanc_cli import upgrade
    from pgorthanc_cli.schema import catalog

    revision = upgrade_options.target_revision(to, plugin)
    revision = catalog.newest() if revision is None else revision
    settings = upgrade_options.settings(**options)
    merge = settings.repair_duplicates
    flags = {"repair_duplicates": merge}
    suggested = upgrade_options.commands_of(call, to, plugin, flags)
    with call.target() as target:
        if planned or sql:
            upgrade_options.show_plan(call, target, revision, suggested, as_sql=sql, merge=merge)
            return
        if settings.terminate:
            upgrade_options.confirm_termination(target, yes=yes)
        upgrade_options.run(call, upgrade.upgrade, target, revision, settings, suggested)
