"""`pgorthanc downgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call, changing
from pgorthanc_cli.errors import UsageError


@commands.command("downgrade")
@changing.options
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
    **given: Any,
) -> None:
    """Bring an index to a lower revision.

    What that cannot hold is kept aside in tables pgorthanc_kept_..., and an upgrade brings it back. The phases are
    those of upgrade. See docs/downgrade.md.
    """
    from pgorthanc_cli import db, upgrade

    wanted = changing.wanted(to, plugin)
    if wanted is None:
        raise UsageError("which revision is wanted?", "give --to N, or --plugin V")
    settings = changing.settings(**given)
    with call.target() as target:
        if planned or sql:
            changing.show_plan(call, target, wanted, as_sql=sql)
            return
        if "switch" in settings.phases:
            with db.session(target, readonly=True) as conn:
                lost = upgrade.plan(conn, target.schema, wanted, down=True).not_held
            changing.confirm(
                "Discard that, and go on?" if settings.discard else "Keep that aside, and go on?",
                lost,
                yes=yes or not lost,
                needed=settings.discard or any(loss.unreadable for loss in lost),
            )
        if settings.terminate:
            changing.confirm_termination(target, yes=yes)
        changing.run(call, upgrade.downgrade(target, to=wanted, settings=settings))
