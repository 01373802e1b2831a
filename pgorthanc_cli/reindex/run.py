"""A reindex from start to end: what is read, by whom, and what came of it.

The parent only plans and counts. Each batch is one call of a worker, and one transaction:
whatever happens, rows of a resource are all old or all new.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from pgorthanc_cli import db, dicom, index
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.reindex import arrivals, estimate, housekeeper, requirements, worker
from pgorthanc_cli.reindex.journal import Journal, Position
from pgorthanc_cli.reindex.model import (
    ALL_LEVELS,
    INSTANCE,
    PATIENT,
    SEQUENCES,
    SERIES,
    SIGNATURE,
    SOP_CLASS,
    STUDY,
    TRANSFER_SYNTAX,
    Change,
    Done,
    Estimate,
    Kind,
    Reindexed,
    Settings,
)
from pgorthanc_cli.reindex.plan import Batch, Planner
from pgorthanc_cli.reindex.selection import Selected
from pgorthanc_cli.reindex.write import writing_alone
from pgorthanc_cli.workers import Pool, Stopped, pool

_REPORT_S = 0.2
_METADATA = {
    TRANSFER_SYNTAX: "TransferSyntax",
    SOP_CLASS: "SopClassUid",
    SIGNATURE: "MainDicomTagsSignature",
    SEQUENCES: "MainDicomSequences",
}


def reindex(
    target: db.Target,
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    report: Report = silent,
    started: Callable[[Estimate], None] = lambda _: None,
) -> Reindexed:
    """Compute the rows of the selected resources again, and write those that differ.

    Args:
        target: The index; any revision from 1 on, also while an Orthanc uses it.
        settings: What, and how.
        stop: Ends the run when set; what was counted is committed.
        report: Called with the number of files that were read.
        started: Called before the first file is read.

    Raises:
        UsageError: The index does not have a resource that is named; the storage folder is empty; the tag lists
            are not known.
        InUseError: Another run is writing.
        RevisionError: There is no index, or none that can be written to.
        ConnectError: The connection was lost; what was counted is committed.
    """
    stop = stop or threading.Event()
    # The hours, and their clock, are for this process only.
    call = partial(worker.call, target, replace(settings, hours=None))
    # Before anything is opened that a forked process must not share.
    with (
        pool(settings.jobs, call, stop, fork=True) as workers,
        db.session(target, readonly=True) as conn,
        writing_alone(conn, settings),
    ):
        capabilities = index.Capabilities.read(conn)
        conn.rollback()
        if not settings.is_configured:
            requirements.require_configured_tags(conn, settings.profile)
        selected = Selected(conn, settings.selection)
        if selected.slow:
            report(Progress("", selected.slow, None))
        planner = Planner(conn, capabilities, settings, selected)
        with conn.cursor() as cur:
            journal = Journal(settings.journal, index.identity(cur) if settings.journal else "", settings)
        journal.load()
        # What arrives from here on may still have the old tags, and is looked at in the end.
        if not journal.position.newest:
            journal.position = Position(newest=arrivals.newest(conn))
        all_patients = selected.patients()
        # Patients are done in ascending order: all up to that one are right already.
        patients = all_patients[bisect(all_patients, journal.position.last_patient) :]
        requirements.require_stored_files(settings, len(patients))
        expected = estimate.estimate(conn, planner, selected, patients, settings)
        started(expected)
        run = _Run(conn, workers, settings, expected, stop, report, journal)
        run.done.unreadable = list(journal.position.unreadable)
        run.unreadable_before = len(run.done.unreadable)
        journal.reach(0, run.done.unreadable, now=True)  # a file that cannot be written fails now
        run.done_before = len(all_patients) - len(patients)
        run.work(planner.batches(patients))
        if not settings.dry_run:
            run.work_again(planner)
        result = run.result()
        # A part of the index says nothing about the rest; a file that could not be read has to be read again.
        is_all = (
            settings.selection.is_everything and settings.levels == ALL_LEVELS and not settings.limit_to_level
        )
        if is_all and result.complete and not result.unreadable and not settings.dry_run:
            state = housekeeper.bring_up_to_date(target, settings.profile, settings.server)
            result = replace(result, housekeeper=state)
    return result


@dataclass
class _Run:
    """One run, and what it has counted so far."""

    conn: db.Session
    workers: Pool[Done]
    settings: Settings
    expected: Estimate
    stop: threading.Event
    report: Report
    journal: Journal
    done: Done = field(default_factory=Done)
    done_before: int = 0
    unreadable_before: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    complete: bool = True
    _started: float = field(default_factory=time.monotonic)
    _reported: float = 0.0
    _due: float = 0.0
    _is_arrival: bool = False
    _pending: deque[tuple[Batch, Future[Done]]] = field(default_factory=deque)

    def work(self, batches: Iterator[Batch]) -> None:
        """Have batches worked on, and collect them in their order."""
        try:
            for batch in batches:
                self._keep_pace(batch)
                if self.stop.is_set():
                    raise Stopped
                self._pending.append((batch, self.workers.submit(batch.items)))
                # Enough that no worker waits, few enough that the end is near when the run is stopped.
                while len(self._pending) > 2 * self.settings.jobs:
                    self._collect()
            while self._pending:
                self._collect()
        except Stopped:
            self.complete = False
            # What workers finish within a few seconds is committed, and counts.
            with suppress(Stopped):
                while self._pending:
                    self._collect()

    def work_again(self, planner: Planner) -> None:
        """Do patients once more whose deciding file was deleted, or who got instances with other tags."""
        self._is_arrival = True
        newest = self.journal.position.newest
        # Until nothing is left: while a patient is done again, further instances arrive.
        while self.complete:
            patients, self.done.again = self.done.again, set()
            if self.settings.selection.is_everything:
                last, newest = newest, arrivals.newest(self.conn)
                patients |= set(arrivals.outdated(self.conn, last, self.settings) if newest > last else ())
            if not patients:
                return
            self.work(planner.batches(sorted(patients)))

    def _keep_pace(self, batch: Batch) -> None:
        """Wait until the batch may be read.

        Raises:
            Stopped: The run is to end.
        """
        hours, limits = self.settings.hours, self.settings.limits
        if hours and not hours.open():
            while self._pending:
                self._collect()
            what = f"waiting until {hours.opening():%A %H:%M}, as the schedule says"
            self.report(Progress("", what, self.done.files, self.expected.files))
            if not hours.wait(self.stop):
                raise Stopped
        early_s = self._due - time.monotonic()
        if early_s > 0 and self.stop.wait(early_s):
            raise Stopped
        # Before they are read: of a file without a known offset all bytes may be needed.
        size = sum(min(item.offset or item.size, item.size) for item in batch.items)
        cost_s = max(
            len(batch.items) / limits.max_files_per_s if limits.max_files_per_s else 0.0,
            size / limits.max_bytes_per_s if limits.max_bytes_per_s else 0.0,
        )
        self._due = max(self._due, time.monotonic()) + cost_s

    def _collect(self) -> None:
        batch, future = self._pending.popleft()
        self.done.add(self.workers.result(future))
        if not self._is_arrival:
            for level, count in enumerate((batch.patients, batch.studies, batch.series, batch.instances)):
                self.counts[level] += count
            self.journal.reach(batch.last_patient, self.done.unreadable)
        now = time.monotonic()
        if now - self._reported > _REPORT_S:
            self._reported = now
            self._report_read()

    def _report_read(self) -> None:
        files = self.done.files + len(self.done.unreadable) - self.unreadable_before
        self.report(Progress("", "reindexing", files, self.expected.files))

    def result(self) -> Reindexed:
        """Return what was counted."""
        elapsed_s = time.monotonic() - self._started
        if self.done.files or self.done.unreadable:
            self._report_read()
        if self.complete:
            self.journal.finish()
        else:
            self.journal.reach(0, self.done.unreadable, now=True)
        done, settings = self.done, self.settings
        changed = {name: done.changed[level] for level, name in enumerate(LEVELS) if level in settings.levels}
        decided_by = "first" if settings.keep_first else "smallest" if settings.limit_to_level else "greatest"
        return Reindexed(
            patients=self.counts[PATIENT],
            studies=self.counts[STUDY],
            series=self.counts[SERIES],
            instances=self.counts[INSTANCE],
            levels=tuple(LEVELS[level] for level in sorted(settings.levels)),
            decided_by=decided_by,
            files_read=done.files,
            bytes_read=done.bytes,
            rows_changed=changed,
            unchanged=done.resources.total() - done.changed.total(),
            changes=changes(done.kinds),
            unreadable=tuple(sorted(set(done.unreadable), key=lambda each: (each.uuid, each.instance))),
            gone=done.gone,
            done_before=self.done_before,
            instances_per_s=round(self.counts[INSTANCE] / max(elapsed_s, 0.001), 1),
            elapsed_s=round(elapsed_s, 3),
            dry_run=settings.dry_run,
            complete=self.complete,
            housekeeper="",
            area=str(settings.storage_dir or "large objects"),
            endpoint=db.endpoint(self.conn),
            estimate=self.expected,
            partial=not settings.selection.is_everything,
        )


def changes(kinds: dict[Kind, int]) -> tuple[Change, ...]:
    """Return the rows that differed by level, table and tag, with the names of the tags."""
    counts: dict[tuple[int, str, int], dict[str, int]] = {}
    for kind, count in kinds.items():
        counts.setdefault((kind.level, kind.table, kind.key), {})[kind.change] = count
    return tuple(
        Change(LEVELS[level], table, *_named(table, key), *_numbers(numbers))
        for (level, table, key), numbers in sorted(counts.items())
    )


def _numbers(numbers: dict[str, int]) -> Sequence[int]:
    return [numbers.get(change, 0) for change in ("missing", "different", "extra")]


def _named(table: str, key: int) -> tuple[str, str]:
    if table == "metadata":
        return str(key), _METADATA[key]
    if table == "attachedfiles":
        return str(key), "DicomAsJson"
    return dicom.format_tag(key), dicom.name_of(key)
