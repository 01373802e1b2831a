"""What `verify storage` shows while it works, and what it asks before it changes anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgorthanc_cli import output, signals
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.errors import PartialFailure, UsageError
from pgorthanc_cli.progress import Progress, Report

if TYPE_CHECKING:
    from pgorthanc_cli import ingest
    from pgorthanc_cli.config import Resolved
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.scrub import Settings, StorageReport

_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNCONFIRMED = UsageError("confirmation needed, but stdin is not a terminal", "add --yes to confirm")
_FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True)
class Changes:
    """What the options want changed after a check; see their help."""

    repair_from: Path | None
    index_orphans: bool
    quarantine: Path | None
    restore: bool
    dry_run: bool
    yes: bool

    def require_usable(self, settings: Settings) -> None:
        """Refuse options that do not fit together, or folders that cannot be used, before the check.

        Raises:
            UsageError: They do not.
        """
        from pgorthanc_cli import scrub

        if self.restore and not self.quarantine:
            raise UsageError("--restore needs the folder that the files are in", "add --quarantine DIR")
        if self.dry_run and self.restore:
            raise UsageError(
                "--restore has no dry run: it moves every file in the quarantine back",
                "look into that folder first; a file that exists in the storage area is never replaced",
            )
        if self.dry_run and not (self.repair_from or self.index_orphans or self.quarantine):
            raise UsageError(
                "--dry-run is about --repair-from, --index-orphans and --quarantine",
                "leave it out: a check changes nothing",
            )
        if self.index_orphans:
            scrub.require_indexable(settings)
        if self.quarantine:
            scrub.require_usable(settings, self.quarantine)
        if self.repair_from:
            scrub.require_mirror(settings, self.repair_from)


def change_options(command: _Command) -> _Command:
    """Add the options that change something after a check; `split` takes them out again."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option(
            "-n",
            "--dry-run",
            is_flag=True,
            help="Only show what --repair-from, --index-orphans and --quarantine would do.",
        ),
        click.option("--restore", is_flag=True, help="Move everything in the --quarantine back, and stop."),
        click.option(
            "--quarantine",
            type=_FOLDER,
            metavar="DIR",
            help="Move orphans to DIR, beside the storage area; nothing is deleted.",
        ),
        click.option(
            "--index-orphans",
            is_flag=True,
            help="Import orphans that hold an instance which is not in the index.",
        ),
        click.option(
            "--repair-from",
            type=_FOLDER,
            metavar="DIR",
            help="Replace missing and damaged files by intact copies in DIR, a mirror or backup of the area.",
        ),
    ):
        command = option(command)
    return command


def split(options: dict[str, Any]) -> tuple[Changes, dict[str, Any]]:
    """Return the options of `change_options`, and the others."""
    names = [field.name for field in fields(Changes)]
    return Changes(*map(options.get, names)), {  # type: ignore[arg-type]
        name: value for name, value in options.items() if name not in names
    }


def restore(call: Call, target: Target, settings: Settings, changes: Changes) -> None:
    """Move the orphans back."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.views import scrub as views

    assert changes.quarantine  # noqa: S101 - required by --restore
    moved = scrub.restore(target, settings, changes.quarantine)
    call.emit_page(moved, views.moved_page(moved))
    if moved.left:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def check(call: Call, target: Target, settings: Settings) -> StorageReport:
    """Run the check with its progress; Ctrl-C ends it early."""
    from pgorthanc_cli import scrub

    with _progress(call, "verifying", "the check") as (stop, report):
        return scrub.check(target, settings, stop=stop, report=report)


@contextmanager
def _progress(call: Call, label: str, work: str) -> Iterator[tuple[threading.Event, Report]]:
    """Yield the event that a signal sets, and the callback that shows the progress."""
    from pgorthanc_cli.text import progress_line

    state = Progress("", label, 0)

    def line(elapsed_s: float) -> str:
        if state.done is None:
            return f"  {state.what}"
        return progress_line(label, state.done, state.total, elapsed_s)

    with (
        signals.stop_on_signal("" if call.quiet else signals.STOPPING.format(work)) as stop,
        output.progress(line, lambda elapsed_s: line(elapsed_s).strip(), quiet=call.quiet) as show,
    ):

        def report(progress: Progress) -> None:
            nonlocal state
            state = progress
            show()

        yield stop, report


def change(
    call: Call, resolved: Resolved, settings: Settings, result: StorageReport, changes: Changes
) -> StorageReport:
    """Make the changes that the options want, each confirmed first; return the report with them."""
    target = resolved.target
    if changes.repair_from and result.interrupted:
        call.warn("nothing was repaired, as the check was interrupted")
    elif changes.repair_from:
        result = _repair(call, target, settings, result, changes)
    if changes.index_orphans and not result.complete:
        call.warn("no orphan was imported, as the check was not complete")
    elif changes.index_orphans:
        result = _index_orphans(call, resolved, settings, result, changes)
    if changes.quarantine:
        result = _set_aside(call, target, settings, result, changes)
    return result


def _set_aside(
    call: Call, target: Target, settings: Settings, result: StorageReport, changes: Changes
) -> StorageReport:
    """Ask, then move the orphans of a complete check."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.text import plural, printable

    folder = changes.quarantine
    assert folder  # noqa: S101 - checked by the caller
    if not result.complete:
        call.warn("no orphan was moved, as the check was not complete")
        return result
    if changes.dry_run:
        return replace(result, quarantined=scrub.planned_moves(settings, result, folder))
    orphans = scrub.candidates(result, scrub.require_usable(settings, folder))
    if orphans:
        upgrade_options.confirm(
            f"Move {plural(len(orphans), 'orphan')} to {printable(str(folder))}?",
            ("Another Orthanc that stores files in the same folder would lose them.",),
            yes=changes.yes,
            needed=True,
        )
    return replace(result, quarantined=scrub.set_aside(target, settings, result, folder))


def _repair(
    call: Call, target: Target, settings: Settings, result: StorageReport, changes: Changes
) -> StorageReport:
    """Look for intact copies, ask, then put them in place."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.text import plural
    from pgorthanc_cli.views import scrub as views

    assert changes.repair_from  # noqa: S101 - checked by the caller
    with _progress(call, "reading copies", "the search") as (stop, report):
        copies = scrub.find_copies(target, settings, result, changes.repair_from, stop=stop, progress=report)
        interrupted = stop.is_set()
    plan = scrub.planned_repairs(settings, copies, interrupted=interrupted)
    if changes.dry_run or interrupted or not copies.rows:
        return replace(result, repaired=plan)
    if not changes.yes:
        question = f"Repair {plural(plan.files, 'attachment')}?"
        upgrade_options.confirm_page(question, views.copies_page(copies, plan), _UNCONFIRMED)
    with _progress(call, "repairing", "after this attachment") as (stop, report):
        repaired = scrub.repair(target, settings, copies, stop=stop, progress=report)
    return replace(result, repaired=repaired)


def _index_orphans(
    call: Call, resolved: Resolved, settings: Settings, result: StorageReport, changes: Changes
) -> StorageReport:
    """Read the orphans, ask, then import them as `pgorthanc import --concurrent` would."""
    from pgorthanc_cli import scrub
    from pgorthanc_cli.text import plural
    from pgorthanc_cli.views import scrub as views

    target = resolved.target
    with _progress(call, "reading orphans", "the search") as (stop, report):
        orphans = scrub.find_orphans(target, settings, result, stop=stop, progress=report)
        interrupted = stop.is_set()
    plan = scrub.planned_imports(settings, orphans, interrupted=interrupted)
    if changes.dry_run or interrupted:
        return replace(result, indexed=plan)
    if orphans.files and not changes.yes:
        question = f"Import {plural(plan.files, 'orphan')}?"
        upgrade_options.confirm_page(question, views.orphans_page(orphans, plan), _UNCONFIRMED)
    how = _import_settings(resolved, settings)
    with _progress(call, "importing", "after this batch") as (stop, report):
        indexed = scrub.index_orphans(target, settings, how, orphans, stop=stop, progress=report)
    return replace(result, indexed=indexed)


def _import_settings(resolved: Resolved, settings: Settings) -> ingest.Settings:
    """Return the settings of an `import --concurrent` into the same area, with its defaults."""
    from pgorthanc_cli import ingest
    from pgorthanc_cli.commands import import_

    area = ["--storage", "postgresql"]
    if settings.storage_dir:
        area = ["--storage-dir", str(settings.storage_dir)]
    words = ["--concurrent", "--overwrite", "never", *area, "."]
    # The parent knows the names of the help option, which click remembers in the command.
    root = click.get_current_context().find_root()
    options = import_.command.make_context("import", words, parent=root).params
    return ingest.from_options((".",), None, resolved.orthanc, options)[1]
