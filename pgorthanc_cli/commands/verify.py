"""`pgorthanc verify`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands, output, signals
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.commands.type_options import COUNT, POSITIVE_TIME, SIZE_RATE, TIME, Number
from pgorthanc_cli.errors import Interrupted, PartialFailure, UsageError
from pgorthanc_cli.progress import Progress

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.scrub import Settings, StorageReport

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
@click.option("-j", "--jobs", type=COUNT, default=2, show_default=True, metavar="N", help="Worker processes.")
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
@click.option(
    "--quarantine",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Move orphans to DIR, beside the storage area; nothing is deleted.",
)
@click.option("--restore", is_flag=True, help="Move everything in the --quarantine back, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@commands.nagios_option
def storage(
    call: Call,
    *,
    listed: str | None,
    prometheus: Path | None,
    html: Path | None,
    quarantine: Path | None,
    restore: bool,
    yes: bool,
    nagios: bool,
    **options: Any,
) -> None:
    """Check that index and stored files fit together.

    Each attachment of the index: its file is there, has the right size, the right MD5, and is of the right instance.
    And each file of the storage area: the index has it. Reads only (but for --quarantine), also while Orthanc is
    running, and with a role that may only read.

    \b
    Examples:
      pgorthanc verify storage --config /etc/orthanc
      pgorthanc verify storage --config /etc/orthanc --depth size
      pgorthanc verify storage --host db1 --storage-dir /srv/dicom --depth identity
      pgorthanc verify storage --config /etc/orthanc --journal scrub.db --budget 2h

    Exit codes: 0 no findings; 6 findings; 130 interrupted.
    """
    from pgorthanc_cli import files, render, scrub
    from pgorthanc_cli.views import scrub as views

    if restore and not quarantine:
        raise UsageError("--restore needs the folder that the files are in", "add --quarantine DIR")
    with call.resolved() as resolved:
        settings = scrub.from_options(resolved.orthanc, list_studies=listed == "studies", **options)
        if quarantine:
            scrub.require_usable(settings, quarantine)
        if quarantine and restore:
            _restore(call, settings, quarantine)
            return
        result = _check(call, resolved.target, settings)
        if quarantine:
            result = _set_aside(call, resolved.target, settings, result, quarantine, yes=yes)
    next_commands = views.Commands(
        again=call.again(), studies=call.again("--list", "studies"), restore=call.again("--restore")
    )
    if prometheus:
        text = views.prometheus(result, str(resolved.target), time.time())
        files.replace(prometheus, text, mode=0o644)  # the exporter has a user of its own
    if html:
        files.replace(html, render.html(views.page(result, next_commands, verbose=True)))
    if nagios:
        status = "CRITICAL" if result.damaged else "WARNING" if result.has_problems else "OK"
        call.nagios(status, views.summary(result), views.figures(result))
    call.emit_page(result, views.page(result, next_commands, verbose=call.verbose))
    if not result.complete and not result.budget_used:
        raise click.exceptions.Exit(Interrupted.exit_code)
    if result.has_problems:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _restore(call: Call, settings: Settings, folder: Path) -> None:
    """Move the orphans back."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.views import scrub as views

    moved = scrub.restore(settings, folder)
    call.emit_page(moved, views.moved_page(moved))
    if moved.left:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _check(call: Call, target: Target, settings: Settings) -> StorageReport:
    """Run the check with its progress; Ctrl-C ends it early."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.text import progress_line

    state = Progress("", "verifying", 0)

    def line(elapsed_s: float) -> str:
        if state.done is None:
            return f"  {state.what}"
        return progress_line("verifying", state.done, state.total, elapsed_s)

    with (
        signals.stop_on_signal("" if call.quiet else signals.STOPPING.format("the check")) as stop,
        output.progress(line, lambda elapsed_s: line(elapsed_s).strip(), quiet=call.quiet) as show,
    ):

        def report(progress: Progress) -> None:
            nonlocal state
            state = progress
            show()

        return scrub.check(target, settings, stop=stop, report=report)


def _set_aside(
    call: Call, target: Target, settings: Settings, result: StorageReport, folder: Path, *, yes: bool
) -> StorageReport:
    """Ask, then move the orphans of a complete check."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.text import plural, printable

    if not result.complete:
        call.warn("no orphan was moved, as the check was not complete")
        return result
    orphans = scrub.candidates(result, scrub.require_usable(settings, folder))
    if orphans:
        upgrade_options.confirm(
            f"Move {plural(len(orphans), 'orphan')} to {printable(str(folder))}?",
            ("Another Orthanc that stores files in the same folder would lose them.",),
            yes=yes,
            needed=True,
        )
    return replace(result, quarantined=scrub.set_aside(target, settings, result, folder))


command.add_command(storage)
