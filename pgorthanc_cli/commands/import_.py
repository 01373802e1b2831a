"""`pgorthanc import`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pgorthanc_cli import commands, output, signals
from pgorthanc_cli.commands import pace_options
from pgorthanc_cli.commands.type_options import TIME
from pgorthanc_cli.errors import Interrupted, PartialFailure, PgOrthancError

if TYPE_CHECKING:
    from pgorthanc_cli.ingest import Batch, ImportPlan, ImportResult
    from pgorthanc_cli.views.progress import ImportProgress

_input, _archive, _report = map(commands.section, ("Input", "Archive", "Report"))
_file = click.Path(dir_okay=False, path_type=Path)
_list = click.Path(dir_okay=False, path_type=Path, allow_dash=True)
_STOPPING = signals.STOPPING.format("after this batch")
_rate = click.FloatRange(min=0, min_open=True)


@commands.command("import")
@click.argument("paths", nargs=-1, type=click.Path(exists=True), metavar="PATH...")
@_input(
    "--files-from",
    type=commands.List(),
    metavar="FILE",
    help="Also import the paths listed in FILE (- for stdin).",
)
@_input(
    "--journal", type=_file, metavar="FILE", help="Remember in FILE what files hold; a rerun is quick then."
)
@_input("--follow", is_flag=True, help="Go on with what arrives in the folders, until Ctrl-C or SIGTERM.")
@_input(
    "--settle",
    type=TIME,
    default="5s",
    show_default=True,
    metavar="TIME",
    help="With --follow: how long a file must have stayed the same.",
)
@_input("--shard", metavar="I/N", help="Only share I of N; other machines import the others.")
@_input(
    "--shard-by",
    type=click.Choice(["folder", "patient"]),
    default="folder",
    show_default=True,
    help="What is never split.",
)
@_archive(
    "--storage",
    type=click.Choice(["filesystem", "postgresql"]),
    help="Where the DICOM files go.  [default: by --config]",
)
@_archive(
    "--storage-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Orthanc's StorageDirectory.",
)
@_archive(
    "--link",
    type=click.Choice(["auto", "reflink", "hardlink", "copy"]),
    default="auto",
    show_default=True,
    help="How files come into --storage-dir; auto: reflink or copy.",
)
@_archive("--adopt", is_flag=True, help="Index the files where they lie (advanced-storage plugin).")
@_archive("--take-ownership", is_flag=True, help="With --adopt: Orthanc deletes them with their instances.")
@_archive(
    "--overwrite",
    type=click.Choice(["never", "always", "if-changed"]),
    help="Whether to replace what is stored already.  [default: OverwriteInstances of --config, else never]",
)
@_archive(
    "--orthanc-version",
    metavar="X.Y.Z",
    default="1.13.0",
    show_default=True,
    help="Write what this Orthanc would.",
)
@_archive("--stable-changes", is_flag=True, help="Log the Stable* changes at the end, as Orthanc would.")
@_archive("--concurrent", is_flag=True, help="Run while Orthanc or other imports use the database.")
@_archive("-n", "--dry-run", is_flag=True, help="Read and report, write nothing.")
@pace_options.paced_jobs
@pace_options.pace(
    "--dask", metavar="ADDRESS", help="Work on a Dask cluster: tcp://HOST:8786, or a scheduler file."
)
@pace_options.limits
@pace_options.pace("--max-mb-per-s", type=_rate, hidden=True)  # the option before
@_report("--refused", type=_list, metavar="FILE", help="List refused files, and why, in FILE (- for stdout).")
@_report(
    "--html",
    "report",
    aliases=["--report"],
    type=_file,
    metavar="FILE",
    help="Write a report as a web page to FILE.",
)
@_report(
    "--html-names",
    "report_names",
    aliases=["--report-names"],
    is_flag=True,
    help="Show names of patients, folders and files on that page, too.",
)
# For tests: small batches give many moments at which an import can be interrupted.
@pace_options.pace("--batch-files", type=click.IntRange(min=1), default=1000, hidden=True)
def command(
    call: commands.Call,
    paths: tuple[str, ...],
    files_from: BinaryIO | None,
    refused: Path | None,
    report: Path | None,
    report_names: bool,
    max_mb_per_s: float | None,
    **options: Any,
) -> None:
    """Import DICOM files, folders, ZIP and gzip archives.

    Writes what Orthanc writes when it receives the same files one after the other; see docs/import.md.
    Interrupted at any point, run it again: files that are stored already are skipped. With StorageCompression,
    install pgorthanc[fast]: it compresses about ten times as fast.

    \b
    Examples:
      pgorthanc import --config /etc/orthanc /mnt/dicom
      pgorthanc import --config /etc/orthanc --dry-run --refused bad.txt /mnt/cd
      pgorthanc import --config /etc/orthanc --concurrent --follow /srv/incoming
      find /mnt -mtime -7 | pgorthanc import --config /etc/orthanc --files-from -

    Exit codes: 0 all imported or stored already; 3 cannot reach the server or log in; 5 another session uses the
    database (see --concurrent); 6 some files were refused; 130 interrupted, run it again to continue.
    """
    from pgorthanc_cli import ingest
    from pgorthanc_cli.views import import_page
    from pgorthanc_cli.views.progress import ImportProgress

    if max_mb_per_s:
        options["max_bytes_per_s"] = max_mb_per_s * 1e6
    tally: ingest.Tally | None = None
    state = ImportProgress()
    try:
        with (
            call.resolved() as resolved,
            signals.stop_on_signal("" if call.quiet else _STOPPING) as stop,
            import_page.refusal_list(refused) as list_refusals,
        ):
            target = resolved.target
            plan, settings = ingest.from_options(paths, files_from, resolved.orthanc, options)
            facts = import_page.facts(target, plan, settings, options["schedule"])
            writer = import_page.page_writer(report, paths, facts, stop.is_set, names=report_names)
            # A list can be read only once, a followed folder has no end, and `walk`
            # counts the files of all shards.
            is_countable = not (files_from or plan.follow or plan.shard)
            count = partial(ingest.walk, paths, settings.own_folders) if is_countable else None
            with writer as add_to_page, _progress(call, plan, count, stop, state) as show:

                def progress(batch: Batch) -> None:
                    add_to_page(batch)
                    show(batch)
                    list_refusals(batch)
                    for warning in batch.warnings:
                        call.warn(warning)

                tally = ingest.Tally(dry_run=settings.dry_run, adopting=options["adopt"])
                result = ingest.run_import(target, plan, settings, stop=stop, report=progress, tally=tally)
    except (PgOrthancError, KeyboardInterrupt) as error:
        so_far = tally.result(interrupted=True) if tally else None
        # What was counted is committed, whatever happened then.
        if so_far and so_far.files:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            _show(call, so_far, paths, refused, options, state, failed=not stopped)
            if stopped:
                raise click.exceptions.Exit(Interrupted.exit_code) from None
        raise
    _show(call, result, paths, refused, options, state)
    if result.interrupted:
        raise click.exceptions.Exit(Interrupted.exit_code)
    if result.refused and not options["follow"]:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _show(
    call: commands.Call,
    result: ImportResult,
    paths: tuple[str, ...],
    refused: Path | None,
    options: dict[str, Any],
    state: ImportProgress,
    *,
    failed: bool = False,
) -> None:
    """Show what was counted, and how to go on; `failed`: an error follows."""
    from pgorthanc_cli.views import import_result as views

    suggested = views.Commands()
    words = click.get_current_context().obj
    # A list from standard input cannot be given again by a command alone.
    if ("--files-from", "-") not in itertools.pairwise(words):
        # To list refused files, no stored instance has to be replaced once more.
        rehearse = ("--dry-run",) if options["overwrite"] == "always" else ()
        list_refused = call.again(*rehearse, "--refused", "refused.txt")
        suggested = views.Commands(
            again=call.again(),
            for_real=call.again(without=("-n", "--dry-run")),
            list_refused="" if refused else list_refused,
            overwrite=call.again("--overwrite", "if-changed"),
        )
    page = views.page(
        result,
        paths,
        suggested,
        follow=options["follow"],
        refused_in=str(refused) if refused else "",
        total=state.total if state.counted else None,
        failed=failed,
        adopt=options["adopt"],
    )
    call.emit_page(result, page)


@contextmanager
def _progress(
    call: commands.Call,
    plan: ImportPlan,
    count: Callable[[], Iterable[object]] | None,
    stop: threading.Event,
    state: ImportProgress,
) -> Iterator[Callable[[Batch], None]]:
    """Show how far the import is; yield what is to be called with each batch.

    `count` walks through the files, so that the time left is known; None if that is impossible.
    """
    from pgorthanc_cli.views import progress as views

    def count_files(files: Iterable[object]) -> None:
        for state.total, _ in enumerate(files, 1):
            if stop.is_set():
                return
        state.counted = True

    line = state.following_line if plan.follow else state.line
    with output.progress(line, state.log_line, quiet=call.quiet) as show:

        def add(batch: Batch) -> None:
            # Not before the first batch: where there is a second thread, workers cannot be forked.
            if count and batch.files and not (state.files or call.quiet):
                threading.Thread(target=count_files, args=(count(),), daemon=True).start()
            state.add(batch)
            arrived = views.arrived(batch) if plan.follow else ""
            if arrived and not call.quiet:
                output.event(arrived)
            show()

        yield add
