"""`pgorthanc verify`."""

from __future__ import annotations

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import UsageError


@click.group("verify")
def command() -> None:
    """Hold an index against what it must be; only --apply writes."""


@commands.command("schema")
@click.option(
    "--deep",
    is_flag=True,
    help="Also recount statistics, tree, child counts; check the rows of stored files.",
)
@click.option("--repair", is_flag=True, help="Print the SQL that mends what can be mended.")
@click.option("--apply", is_flag=True, help="With --repair: run it, in one transaction with its proof.")
def schema(call: Call, *, deep: bool, repair: bool, apply: bool) -> None:
    """Compare a schema with its revision: tables, indexes, functions, triggers, properties, counters.

    Each difference is named, whether it matters to Orthanc's plugin, and why. An index made by the plugin itself
    is as good as one of ours.

    Exit code 0: nothing that matters; 6: something that does.
    """
    from pgorthanc_cli import db, locks
    from pgorthanc_cli.schema import verify
    from pgorthanc_cli.views import verify as views

    if apply and not repair:
        raise UsageError(
            "--apply alone has nothing to apply", "run: pgorthanc verify schema --repair --apply"
        )
    with call.target() as target, db.session(target, readonly=not apply) as conn:
        if apply:
            done = verify.repair(conn, target.schema, require_idle=locks.require_idle, deep=deep)
            call.emit_page(done, views.repaired_page(done, verbose=call.verbose))
            healthy = done.healthy
        else:
            report = verify.schema(conn, target.schema, deep=deep)
            healthy = report.healthy
    if repair and not apply and not call.as_json:
        output.text(verify.script(report))
    elif not apply:
        words = ("verify", "schema", "--repair", "--apply", *(["--deep"] if deep else []))
        page = views.page(report, call.command_line(*words), verbose=call.verbose)
        call.emit_page(report, page)
    if not healthy:
        raise click.exceptions.Exit(6)


command.add_command(schema)
