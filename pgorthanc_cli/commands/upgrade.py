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
    """Upgrade an index for a newer PostgreSQL plugin.

    By default to the newest revision, and with almost no downtime.

    Three phases: prepare and finish run while Orthanc is running; for the switch, a second or so, all other sessions
    must be closed. Each can be interrupted and run again. Leftovers of other tools are repaired on the way.
    See docs/upgrade.md.

    \b
    Examples:
      pgorthanc upgrade --plan --config /etc/orthanc
      pgorthanc upgrade --phase prepare --config /etc/orthanc
      pgorthanc upgrade --config /etc/orthanc --wait 5m
      pgorthanc upgrade --plugin 7.2 --print-sql --config /etc/orthanc > upgrade.sql

    Exit codes: 0 done, or nothing to do; 4 no index, or one that cannot be upgraded; 5 another session uses the
    database; 6 --plan has found obstacles; 130 interrupted, run it again to continue.
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
