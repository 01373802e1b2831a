"""`pgorthanc reindex`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands, output, signals
from pgorthanc_cli.commands import pace_options
from pgorthanc_cli.commands.type_options import Number
from pgorthanc_cli.constants import ENCODINGS, LEVELS
from pgorthanc_cli.errors import Interrupted, PartialFailure, UsageError
from pgorthanc_cli.progress import Progress, Report

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.reindex import Estimate, Reindexed, Settings

# Options without effect on --check.
_CHOOSING = (
    *LEVELS,
    "level",
    "where",
    "since",
    "keep_first",
    "limit_to_level",
    "dry_run",
    "journal",
    "schedule",
)
_what, _how, _files = map(commands.section, ("What", "How", "Files"))


def _identifiers(level: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that names resources of a level."""
    return _what(
        f"--{level}",
        multiple=True,
        metavar="ID",
        help=f"Only this {level}, by Orthanc's identifier; repeatable.",
    )


@commands.command("reindex")
@_what("--level", metavar="LEVELS", help="Write rows of these levels only, such as study,series.")
@_identifiers("patient")
@_identifiers("study")
@_identifiers("series")
@_identifiers("instance")
@_what(
    "--where",
    multiple=True,
    metavar="TAG=VALUE",
    help="Only resources with exactly this value in the index, no wildcards; repeatable.",
)
@_what(
    "--since",
    type=Number("the number of a change", 0),
    metavar="CHANGE",
    help="Only instances that arrived after this change.",
)
@_how("--keep-first", is_flag=True, help="Let the first stored instance decide, as at reception.")
@_how(
    "--limit-to-level",
    is_flag=True,
    help="Only the resources named; the smallest identifier decides.",
)
@_how("-n", "--dry-run", is_flag=True, help="Read and compare, write nothing.")
@_how("--check", is_flag=True, help="Only report which resources have other tags; reads no file.")
@_how(
    "--repair",
    type=click.Choice(["patients", "identifiers"]),
    help="Repair from the index alone: studies' copies of the patient's tags, or search values.",
)
@_how(
    "--default-encoding",
    type=click.Choice(ENCODINGS),
    metavar="NAME",
    help="Encoding of files that name none.  [default: by --config]",
)
@_how(
    "--orthanc-version",
    metavar="X.Y.Z",
    default="1.13.0",
    show_default=True,
    help="Write what this Orthanc would.",
)
@_files(
    "--storage",
    type=click.Choice(["filesystem", "postgresql"]),
    help="Where the files are.  [default: by --config]",
)
@_files(
    "--storage-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Orthanc's StorageDirectory.",
)
@pace_options.paced_jobs
@pace_options.limits
@pace_options.pace(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Remember in FILE how far it is; a rerun goes on there.",
)
# For tests: small batches give many moments at which a run can be interrupted.
@pace_options.pace("--batch-files", type=click.IntRange(min=1), default=500, hidden=True)
def command(call: commands.Call, *, check: bool, repair: str | None, **options: Any) -> None:
    """Recompute main DICOM tags from the stored files.

    After a change of ExtraMainDicomTags or DefaultEncoding: brings tags, identifiers, sequences and signatures to
    what Orthanc's own /reconstruct would leave, much faster, also while Orthanc is running. Only rows that differ
    are written. Everything else stays: labels, metadata of users, attachments, changes.

    Where the files of a series, study or patient disagree, the instance with the greatest Orthanc identifier
    decides, as in Orthanc; with --keep-first the one that was stored first; with --limit-to-level (Orthanc's
    LimitToThisLevelMainDicomTags) the one with the smallest identifier.

    \b
    Examples:
      pgorthanc reindex --config /etc/orthanc --check
      pgorthanc reindex --config /etc/orthanc --level patient,study,series
      pgorthanc reindex --config /etc/orthanc --where StudyDate=20261126
      pgorthanc reindex --config /etc/orthanc --keep-first --default-encoding Latin2

    Exit codes: 0 done; 6 some files could not be read, or --check has found something; 130 interrupted.
    """
    from pgorthanc_cli import reindex
    from pgorthanc_cli.views import reindex as views

    if check and repair:
        raise UsageError("--check and --repair are two different runs", "give one of them")
    if check or repair:
        _refuse_without_effect("--check" if check else "--repair", options)
        if repair and not check:
            _repair(call, repair, options)
        else:
            _check(call, options)
        return

    area = {"--storage": options["storage"], "--storage-dir": options["storage_dir"]}
    options["resources"] = {level: options.pop(level) for level in LEVELS}
    with call.resolved() as resolved:
        settings = reindex.from_options(resolved.orthanc, **options)
        result = _run(call, resolved.target, settings)
    studies = sorted({each.study for each in result.unreadable})[: views.LISTED]
    words = [word for study in studies for word in ("--study", study)]
    for name, value in area.items():
        words += [name, str(value)] if words and value else []
    next_commands = views.Commands(
        for_real=call.again(without=("-n", "--dry-run")),
        again=call.again(),
        verify=call.command_line("verify", "storage", *words) if words else "",
    )
    call.emit_page(result, views.page(result, next_commands, verbose=call.verbose))
    if not result.complete:
        raise click.exceptions.Exit(Interrupted.exit_code)
    if result.unreadable:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _refuse_without_effect(name: str, options: dict[str, Any]) -> None:
    """Refuse options that choose files or resources, where all are looked at."""
    choosing = _CHOOSING if name == "--check" else [each for each in _CHOOSING if each != "dry_run"]
    if chosen := [f"--{each.replace('_', '-')}" for each in choosing if options[each]]:
        raise UsageError(f"{name} looks at all resources: {chosen[0]} has no effect", "leave it out")


def _repair(call: commands.Call, which: str, options: dict[str, Any]) -> None:
    """Repair what the index alone shows."""
    from pgorthanc_cli import reindex
    from pgorthanc_cli.views import reindex as views

    with call.resolved() as resolved, _progress(call) as (stop, report):
        profile = reindex.profile_of(
            resolved.orthanc, options["default_encoding"], options["orthanc_version"]
        )
        result = reindex.repair(
            resolved.target, which, profile, dry_run=options["dry_run"], stop=stop, report=report
        )
    again = call.again(without=("-n", "--dry-run"))
    call.emit_page(result, views.repaired_page(result, again))
    if not result.complete:
        raise click.exceptions.Exit(Interrupted.exit_code)


def _check(call: commands.Call, options: dict[str, Any]) -> None:
    """Report the signatures of all resources."""
    from pgorthanc_cli import reindex
    from pgorthanc_cli.views import reindex as views

    with call.resolved() as resolved, output.steps(quiet=call.quiet) as report:
        profile = reindex.profile_of(
            resolved.orthanc, options["default_encoding"], options["orthanc_version"]
        )
        is_configured = resolved.orthanc is not None
        result = reindex.check(resolved.target, profile, is_configured=is_configured, report=report)
    more = () if is_configured else ("--config", "PATH")
    call.emit_page(result, views.check_page(result, call.again(*more, without=("--check",))))
    if result.outdated:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _run(call: commands.Call, target: Target, settings: Settings) -> Reindexed:
    """Run it with its progress; Ctrl-C ends it after the current batches."""
    from pgorthanc_cli import reindex
    from pgorthanc_cli.views import reindex as views

    def started(estimate: Estimate) -> None:
        if not call.quiet:
            output.event(views.expectation(estimate))

    with _progress(call) as (stop, report):
        return reindex.reindex(target, settings, stop=stop, report=report, started=started)


@contextmanager
def _progress(call: commands.Call) -> Iterator[tuple[threading.Event, Report]]:
    """Show how far it is; yield what Ctrl-C sets, and what is called with each step."""
    from pgorthanc_cli.text import progress_line

    state = Progress("", "planning", None)

    def line(elapsed_s: float) -> str:
        if state.done is None:
            return f"  {state.what}"
        return progress_line(state.what, state.done, state.total, elapsed_s)

    with (
        signals.stop_on_signal("" if call.quiet else signals.STOPPING.format("after these batches")) as stop,
        output.progress(line, lambda elapsed_s: line(elapsed_s).strip(), quiet=call.quiet) as show,
    ):

        def report(progress: Progress) -> None:
            nonlocal state
            state = progress
            show()

        yield stop, report
