"""`pgorthanc downgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.errors import UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target


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
    """Downgrade an index for an older PostgreSQL plugin.

    What the lower revision cannot hold is kept in tables pgorthanc_kept_..., and an upgrade restores it. The phases are
    those of upgrade. See docs/downgrade.md.

    \b
    Examples:
      pgorthanc downgrade --to 6 --plan --config /etc/orthanc
      pgorthanc downgrade --to 6 --config /etc/orthanc
      pgorthanc downgrade --plugin 7.2 --export kept.jsonl --config /etc/orthanc

    Exit codes: 0 done; 4 no index, or one that cannot be downgraded; 5 another session uses the database;
    6 --plan has found obstacles; 130 interrupted, run it again to continue.
    """
    from pgorthanc_cli import upgrade

    revision = upgrade_options.target_revision(to, plugin)
    if revision is None:
        raise UsageError("no target revision given", "use --to N, or --plugin VERSION")
    settings = upgrade_options.settings(**options)
    flags = {"discard": settings.discard}
    suggested = upgrade_options.commands_of(call, to, plugin, flags)
    with call.target() as target:
        if planned or sql:
            upgrade_options.show_plan(call, target, revision, suggested, as_sql=sql)
            return
        if "switch" in settings.phases and not yes:
            _confirm(call, target, revision, discard=settings.discard)
        if settings.terminate:
            upgrade_options.confirm_termination(target, yes=yes)
        upgrade_options.run(call, upgrade.downgrade, target, revision, settings, suggested)


def _confirm(call: Call, target: Target, revision: int, *, discard: bool) -> None:
    """Show what the lower revision cannot hold, if anything, and ask for confirmation."""
    from pgorthanc_cli import db, upgrade
    from pgorthanc_cli.schema import rights
    from pgorthanc_cli.views import upgrade as views

    with db.session(target, readonly=True) as conn, output.steps(quiet=call.quiet) as report:
        rights.require_owner(conn, target.schema)
        plan = upgrade.plan(conn, target.schema, revision, down=True, report=report)
        place = db.endpoint(conn)
    if not plan.not_held:
        return
    refusal = None
    if discard:
        refusal = UsageError(
            "confirmation needed to delete these rows, but stdin is not a terminal",
            "add --yes to delete them, or omit --discard to keep them for the next upgrade",
        )
    elif any(loss.unreadable for loss in plan.not_held):
        refusal = UsageError(
            "confirmation needed, because Orthanc would not find some files; stdin is not a terminal",
            "add --yes to keep these rows in this database until the next upgrade; "
            "--export FILE also writes them to a file, --discard deletes them",
        )
    question = f"Downgrade {place} from revision {plan.revision} to {revision}?"
    page = views.losses_page(plan, discard=discard)
    upgrade_options.confirm_page(question, page, refusal)
