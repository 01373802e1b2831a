"""`pgorthanc verify`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call, pace_options, scrub_options
from pgorthanc_cli.commands.type_options import POSITIVE_TIME, SIZE_RATE, TIME, Number
from pgorthanc_cli.errors import Interrupted, PartialFailure

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@commands.group("verify")
def command() -> None:
    """Check an index and its stored files for damage.

    \b
    Examples:
      pgorthanc verify schema --config /etc/orthanc
      pgorthanc verify storage --config /etc/orthanc
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
    # Read-only on the server's side, too: a report can change nothing by mistake.
    with (
        call.target() as target,
        db.session(target, readonly=not apply) as conn,
        output.steps(quiet=call.quiet) as progress,
    ):
        if apply:
            done = verify.repair(
                conn, target.schema, require_idle=locks.require_idle, deep=deep, report=progress
            )
            call.emit_page(done, views.repaired_page(done, verbose=call.verbose))
            healthy = done.healthy
        else:
            report = verify.schema(conn, target.schema, deep=deep, report=progress)
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


@commands.command("storage")
@commands.depth_option(
    "exists",
    "size",
    "hash",
    "identity",
    default="hash",
    explanation="How deep to look; each includes those before it.",
)
@click.option(
    "--storage",
    type=click.Choice(["filesystem", "postgresql"]),
    help="Where the files are.  [default: by --config]",
)
@click.option(
    "--storage-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Orthanc's StorageDirectory.",
)
@pace_options.jobs
@click.option(
    "--grace",
    type=TIME,
    default="60s",
    show_default=True,
    metavar="TIME",
    help="Age at which a file without a row is judged.",
)
@click.option(
    "--list",
    "listed",
    type=click.Choice(["studies"]),
    help="Also list the studies that have a damaged attachment.",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Record in FILE what was checked when: what is new comes first, then the oldest.",
)
@click.option(
    "--max-age",
    type=TIME,
    metavar="TIME",
    help="With --journal: skip content that was checked more recently, such as 30d.",
)
@click.option(
    "--budget",
    type=POSITIVE_TIME,
    metavar="TIME",
    help="Begin no further content after this time, such as 2h.",
)
@click.option(
    "--max-rate",
    type=SIZE_RATE,
    metavar="SIZE/s",
    help="Read no more bytes each second, such as 50MB/s.",
)
@click.option(
    "--schedule",
    metavar="JSON",
    help="With --journal: read content at these hours of the week only, as import does.",
)
@click.option(
    "--study",
    "studies",
    multiple=True,
    metavar="ID",
    help="Only this study, by Orthanc's identifier; repeatable.",
)
@click.option(
    "--since",
    type=Number("the number of a change", 0),
    metavar="CHANGE",
    help="Only instances that arrived after this change.",
)
@click.option("--force", is_flag=True, help="Check even an empty folder, or that of another Orthanc.")
@click.option("--prometheus", type=_FILE, metavar="FILE", help="Also write FILE for a textfile collector.")
@click.option("--html", type=_FILE, metavar="FILE", help="Also write FILE as a web page.")
@scrub_options.change_options
@commands.nagios_option
def storage(
    call: Call,
    *,
    listed: str | None,
    prometheus: Path | None,
    html: Path | None,
    nagios: bool,
    **options: Any,
) -> None:
    """Check that index and stored files fit together.

    Each attachment of the index: its file is there, has the right size, the right MD5, and is of the right instance.
    And each file of the storage area: the index has it. Reads only, also while Orthanc is running, and with a role
    that may only read. --repair-from, --index-orphans and --quarantine ask before they change anything.

    \b
    Examples:
      pgorthanc verify storage --config /etc/orthanc
      pgorthanc verify storage --config /etc/orthanc --depth size
      pgorthanc verify storage --host db1 --storage-dir /srv/dicom --depth identity
      pgorthanc verify storage --config /etc/orthanc --journal scrub.db --budget 2h

    Exit codes: 0 no findings, or none is left; 6 findings; 130 interrupted.
    """
    from pgorthanc_cli import files, render, scrub
    from pgorthanc_cli.views import scrub as views

    with call.resolved() as resolved:
        changes, options = scrub_options.split(options)
        settings = scrub.from_options(resolved.orthanc, list_studies=listed == "studies", **options)
        # Before the check, which may take hours.
        changes.require_usable(settings)
        if changes.restore:
            scrub_options.restore(call, resolved.target, settings, changes)
            return
        result = scrub_options.check(call, resolved.target, settings)
        result = scrub_options.change(call, resolved, settings, result, changes)
    next_commands = views.Commands(
        again=call.again(),
        studies=call.again("--list", "studies"),
        restore=call.again("--restore"),
        repair=call.again(without=("-n", "--dry-run")),
        has_journal=settings.journal is not None,
    )
    if prometheus:
        text = views.prometheus(result, str(resolved.target), time.time())
        files.replace(prometheus, text, mode=0o644)  # the exporter has a user of its own
    if html:
        files.replace(html, render.html(views.page(result, next_commands, verbose=True)))
    if nagios:
        # Orphans cost space only: no reason to wake an operator.
        status = "CRITICAL" if result.damaged_still else "WARNING" if result.has_problems else "OK"
        call.nagios(status, views.summary(result), views.figures(result))
    call.emit_page(result, views.page(result, next_commands, verbose=call.verbose))
    if result.interrupted:
        raise click.exceptions.Exit(Interrupted.exit_code)
    if result.has_problems:
        raise click.exceptions.Exit(PartialFailure.exit_code)


command.add_command(storage)
