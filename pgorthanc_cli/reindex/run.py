"""A reindex from start to end: what is read, by whom, and what came of it.

The parent only plans and counts. Each batch is one call of a worker, and one transaction:
whatever happens, rows of a resource are all old or all new.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from pgorthanc_cli import db, dicom, index
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.reindex import estimate, worker
from pgorthanc_cli.reindex.model import (
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
        UsageError: The index does not have a resource that is named.
        RevisionError: There is no index, or none that can be written to.
        ConnectError: The connection was lost; what was counted is committed.
    """
    stop = stop or threading.Event()
    # Before anything is opened that a forked process must not share.
    with (
        pool(settings.jobs, partial(worker.call, target, settings), stop, fork=True) as workers,
        db.session(target, readonly=True) as conn,
    ):
        capabilities = index.Capabilities.read(conn)
        conn.rollback()
        selected = Selected(conn, settings.selection)
        planner = Planner(conn, capabilities, settings, selected)
        patients = selected.patients()
        expected = estimate.estimate(conn, planner, selected, patients, settings)
        started(expected)
        run = _Run(conn, workers, settings, expected, stop, report)
        run.work(planner.batches(patients))
        return run.result()


@dataclass
class _Run:
    """One run, and what it has counted so far."""

    conn: db.Session
    workers: Pool[Done]
    settings: Settings
    expected: Estimate
    stop: threading.Event
    report: Report
    done: Done = field(default_factory=Done)
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    complete: bool = True
    _started: float = field(default_factory=time.monotonic)
    _reported: float = 0.0
    _pending: deque[tuple[Batch, Future[Done]]] = field(default_factory=deque)

    def work(self, batches: Iterator[Batch]) -> None:
        """Have batches worked on, and collect them in their order."""
        try:
            for batch in batches:
                if self.stop.is_set():
                    raise Stopped
                self._pending.append((batch, self.workers.submit(batch.items)))
                while len(self._pending) > 2 * self.settings.jobs:
                    self._collect()
            while self._pending:
                self._collect()
        except Stopped:
            self.complete = False

    def _collect(self) -> None:
        batch, future = self._pending.popleft()
        self.done.add(self.workers.result(future))
        for level, count in enumerate((batch.patients, batch.studies, batch.series, batch.instances)):
            self.counts[level] += count
        now = time.monotonic()
        if now - self._reported > _REPORT_S:
            self._reported = now
            self.report(Progress("", "reindexing", self.done.files, self.expected.files))

    def result(self) -> Reindexed:
        """Return what was counted."""
        elapsed_s = time.monotonic() - self._started
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
            unreadable=tuple(sorted(done.unreadable, key=lambda each: each.uuid)),
            gone=done.gone,
            instances_per_s=round(self.counts[INSTANCE] / max(elapsed_s, 0.001), 1),
            elapsed_s=round(elapsed_s, 3),
            dry_run=settings.dry_run,
            complete=self.complete,
            area=str(settings.storage_dir or "large objects"),
            endpoint=db.endpoint(self.conn),
            estimate=self.expected,
        )


def changes(kinds: dict[Kind, int]) -> tuple[Change, ...]:
    """Return the rows that differed by level, table and tag, with the names of the tags."""
    counts: dict[tuple[int, str, int], dict[str, int]] = {}
    for kind, count in kinds.items():
        counts.setdefault((kind.level, kind.table, kind.key), {})[kind.change] = count
    return tuple(
        Change(LEVELS[level], table, *_named(table, key), *_numbers(found))
        for (level, table, key), found in sorted(counts.items())
    )


def _numbers(found: dict[str, int]) -> Sequence[int]:
    return [found.get(change, 0) for change in ("missing", "different", "extra")]


def _named(table: str, key: int) -> tuple[str, str]:
    if table == "metadata":
        return str(key), _METADATA[key]
    if table == "attachedfiles":
        return str(key), "DicomAsJson"
    return dicom.format_tag(key), dicom.name_of(key)
