"""`pgorthanc downgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.errors import UsageError


@commands.command("downgrade")
@upgrade_options.options
@click.option("--discard", is_flag=True, help="Drop what the lower revision cannot hold.")
@click.option(
    "--export",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it to this new file, one JSON document per line.",
)
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
    """Bring an index to a lower revision.

    What that cannot hold is kept aside in tables pgorthanc_kept_..., and an upgrade brings it back. The phases are
    those of upgrade. See docs/downgrade.md.
    """
    from pgorthanc_cli import db, upgrade
    from pgorthanc_cli.schema import rights

    revision = upgrade_options.target_revision(to, plugin)
    if revision is None:
        raise UsageError("which revision is wanted?", "give --to N, or --plugin V")
    settings = upgrade_options.settings(**options)
    with call.target() as target:
        if planned or sql:
            upgrade_options.show_plan(call, target, revision, as_sql=sql)
            return
        if "switch" in settings.phases:
            with db.session(target, readonly=True) as conn:
                rights.require_owner(conn, target.schema)
                losses = upgrade.plan(conn, target.schema, revision, down=True).not_held
            upgrade_options.confirm(
                "Discard that, and go on?" if settings.discard else "Keep that aside, and go on?",
                losses,
                yes=yes or not losses,
                needed=settings.discard or any(loss.unreadable for loss in losses),
            )
        if settings.terminate:
            upgrade_options.confirm_termination(target, yes=yes)
        upgrade_options.run(call, upgrade.downgrade, target, revision, settings)
