"""`pgorthanc verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import PartialFailure, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.schema.verify import Repaired, SchemaReport


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

    if apply and not repair:
        raise UsageError(
            "--apply alone has nothing to apply", "run: pgorthanc verify schema --repair --apply"
        )
    found: SchemaReport | Repaired
    with call.target() as target, db.session(target, readonly=not apply) as conn:
        if apply:
            found = verify.repair(conn, target.schema, require_idle=locks.require_idle, deep=deep)
        else:
            found = report = verify.schema(conn, target.schema, deep=deep)
    if repair and not apply and not call.as_json:
        output.text(verify.script(report))
    else:
        call.emit(found)
    if not found.healthy:
        hint = None
        if not repair and any(finding.repair for finding in report.findings):
            hint = f"see the statements: pgorthanc verify schema{' --deep' if deep else ''} --repair"
        raise PartialFailure(f"schema {found.schema} is not what revision {found.revision} must be", hint)


command.add_command(schema)
