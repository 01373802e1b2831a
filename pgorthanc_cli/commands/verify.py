"""`pgorthanc verify`."""

from __future__ import annotations

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call


@commands.group("verify")
def command() -> None:
    """Check an index for damage; only --apply changes anything.

    \b
    Examples:
      pgorthanc verify schema --config /etc/orthanc
      pgorthanc verify schema --deep --apply --config /etc/orthanc
    """


@commands.command("schema")
@commands.depth_option(
    "schema",
    "rows",
    default="schema",
    explanation="rows: also recount statistics, tree, child counts; check the rows of stored files.",
)
@commands.option(
    "--print-sql",
    "print_sql",
    aliases=["--repair"],
    is_flag=True,
    help="Print the SQL that repairs what can be repaired, for an administrator.",
)
@click.option(
    "--apply", is_flag=True, help="Repair what can be repaired, in one transaction, and verify the result."
)
def schema(call: Call, *, depth: str, print_sql: bool, apply: bool) -> None:
    """Compare the index with its revision.

    Tables, indexes, functions, triggers, properties, counters. Each difference is named, whether it matters to
    Orthanc's plugin, and why. An index created by the plugin itself passes just as one created by pgorthanc.

    \b
    Examples:
      pgorthanc verify schema --config /etc/orthanc
      pgorthanc verify schema --deep --config /etc/orthanc
      pgorthanc verify schema --print-sql --config /etc/orthanc > repair.sql
      pgorthanc verify schema --apply --config /etc/orthanc

    Exit codes: 0 no problems, but perhaps harmless differences; 6 problems.
    """
    from pgorthanc_cli import db, locks
    from pgorthanc_cli.schema import verify
    from pgorthanc_cli.views import verify as views

    deep = depth == "rows"
    with call.target() as target, db.session(target, readonly=not apply) as conn:
        if apply:
            done = verify.repair(conn, target.schema, require_idle=locks.require_idle, deep=deep)
            call.emit_page(done, views.repaired_page(done, verbose=call.verbose))
            healthy = done.healthy
        else:
            report = verify.schema(conn, target.schema, deep=deep)
            healthy = report.healthy
    if print_sql and not apply and not call.as_json:
        output.text(verify.script(report))
    elif not apply:
        words = ("verify", "schema", "--apply", *(["--deep"] if deep else []))
        page = views.page(report, call.command_line(*words), verbose=call.verbose)
        call.emit_page(report, page)
    if not healthy:
        raise click.exceptions.Exit(6)


command.add_command(schema)
