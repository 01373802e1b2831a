"""The check itself: index and storage part by part, content by workers, then a second look.

Orthanc writes a file before it commits the row, and deletes the row before the file
(STORAGE.md D5). So a difference seen once proves nothing while Orthanc works; see `second`.
Longer than other modules, because all passes count in the state of one run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from pgorthanc_cli import db, index
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.scrub import bulk, content, model, places, second
from pgorthanc_cli.scrub.due import Due
from pgorthanc_cli.scrub.journal import open_journal
from pgorthanc_cli.scrub.model import Difference, Row, Settings, StorageReport
from pgorthanc_cli.scrub.right_area import require_the_right_area
from pgorthanc_cli.scrub.rows import Rows
from pgorthanc_cli.scrub.spool import Spool
from pgorthanc_cli.scrub.worker import Reader, unreadable_area, work
from pgorthanc_cli.storage import file_path, is_uuid
from pgorthanc_cli.storage.listing import Listing, top_level
from pgorthanc_cli.workers import Pool, Stopped, pool

_BATCH_FILES, _BATCH_BYTES = 256, 32 << 20  # given to a worker together
_SMALL_ARCHIVE = 4_000_000  # attachments; above it a part is a 4096th, not a 256th
_STRETCH_ROWS, _STRETCH_BYTES = 2_000_000, 50 << 30  # of the first query
_PART_BYTES = 128 << 20  # on average; of larger ones a worker would be busy too long
_STRETCH_S = 300.0  # what the transactions of the next queries should last
_REPORT_S = 0.2


def check(
    target: db.Target,
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    report: Report = silent,
) -> StorageReport:
    """Compare the attachments of an index with a storage area, in both directions; only reads.

    Args:
        target: The index.
        settings: What to check.
        stop: Ends the check early when set; the report is then not complete.
        report: Called with the number of checked attachments.

    Raises:
        RevisionError: There is no index, or no storage area.
        PgOrthancError: The area cannot be read, is empty, or is that of another index.
    """
    stop = stop or threading.Event()
    started, hours = time.monotonic(), settings.hours
    while True:
        if hours and not hours.open():
            report(
                Progress("", f"outside the hours of the schedule: waiting until {hours.opening():%A %H:%M}")
            )
            hours.wait(stop)
        result = _check(target, settings, stop, report)
        elapsed_s = time.monotonic() - started
        budget_left = settings.budget_s is None or elapsed_s < settings.budget_s
        if not (hours and result.budget_used and budget_left and not stop.is_set()):
            return result


def _check(target: db.Target, settings: Settings, stop: threading.Event, report: Report) -> StorageReport:
    """Run one check, which ends at the end of the hours at the latest."""
    # The hours, and their clock, are for this process only.
    call = partial(work, target, replace(settings, hours=None))
    # Before anything is opened that a forked process must not share.
    with (
        pool(settings.jobs, call, stop, fork=True) as workers,
        db.session(target, readonly=True) as conn,
    ):
        capabilities = index.Capabilities.read(conn)
        conn.rollback()
        rows = Rows(conn, capabilities, settings)
        with open_journal(settings.journal, rows.identity(), settings.depth) as journal:
            due = Due(journal, settings) if journal else None
            run = _Run(rows, Reader(target, settings), workers, settings, stop, report, due)
            return run.result()


class _BudgetUsed(Exception):
    """No further content is to be read."""


@dataclass
class _Run:
    """One check and what it has counted so far."""

    rows: Rows
    reader: Reader
    workers: Pool[Any]
    settings: Settings
    stop: threading.Event
    report: Report
    due: Due | None = None
    attachments: int = 0
    total_bytes: int = 0
    checked: int = 0
    bytes: int = 0
    without_md5: int = 0
    differences: Spool = field(default_factory=Spool)
    _started: float = field(default_factory=time.monotonic)
    _reported: float = 0.0
    _batch: list[Row] = field(default_factory=list)
    _batch_bytes: int = 0
    _pending: deque[tuple[list[Row], Future[Any]]] = field(default_factory=deque)
    _submitted_bytes: int = 0
    _others: int = 0  # attachments that are not in plain small files

    def __post_init__(self) -> None:
        self._reads_content = self.settings.depth in (model.HASH, model.IDENTITY)

    def result(self) -> StorageReport:
        """Check everything and return the report."""
        self.attachments, self.total_bytes, self._others = self.rows.total()
        require_the_right_area(self.rows, self.reader, self.settings, self.attachments)
        complete, budget_used, outcome = False, False, second.Outcome()
        try:
            try:
                self._pass()
                for first, end in self.due.bands() if self.due else ():
                    self._check_again(first, end)
                if self.checked >= self.attachments:
                    self._report_checked()
            except _BudgetUsed:
                budget_used = True
                self._collect_all()
            outcome = second.look(
                self.rows, self.reader, self.settings, self.differences, self.stop, self.report
            )
            complete = not (self.stop.is_set() or budget_used)
        except Stopped:
            # What differs may be a file in flight: without a second look only damages of
            # content are certain, which no other session causes.
            outcome = second.certain(self.rows, self.settings, self.differences)
        elapsed_s = time.monotonic() - self._started
        order = list(model.KINDS)
        findings = sorted(outcome.findings, key=lambda each: (order.index(each.kind), each.uuid or ""))
        counts = {kind: outcome.counts[kind] for kind in order if outcome.counts.get(kind)}
        if self.due:
            self.due.record_run(self.attachments, counts, complete=complete)
        return StorageReport(
            area=str(self.settings.storage_dir or "large objects"),
            depth=self.settings.depth,
            attachments=self.attachments,
            bytes=self.bytes,
            checked=self.checked,
            skipped_recent=outcome.skipped_recent + (self.due.skipped if self.due else 0),
            without_md5=self.without_md5,
            findings=tuple(findings),
            counts=counts,
            damaged=outcome.damaged,
            affected_studies=len(outcome.studies),
            studies=tuple(sorted(outcome.studies)) if self.settings.list_studies else None,
            complete=complete,
            oldest_unverified=self.due.oldest(self.attachments) if self.due else None,
            rate_mb_per_s=round(self.bytes / elapsed_s / 1e6, 1) if self._reads_content else 0.0,
            elapsed_s=round(elapsed_s, 3),
            undecided=outcome.skipped_recent,
            budget_used=budget_used,
            endpoint=db.endpoint(self.rows.conn),
            partial=self.settings.is_partial,
        )

    # --- the pass -----------------------------------------------------------------------

    def _pass(self) -> None:
        """Go through index and area, part by part."""
        if self.reader.area and not self.settings.is_partial:
            self.differences.extend(second.of_odd(odd) for odd in top_level(self.reader.area))
        for parts, start, end in self._stretches():
            self._stretch(parts, start, end)
        if self.due:
            self.due.finish()
        self._collect_all()

    def _stretches(self) -> Iterator[tuple[Sequence[str], int, int]]:
        """Yield ranges of parts, each for one query that lasts some minutes."""
        digits = 2 if self.attachments <= _SMALL_ARCHIVE else 3
        parts = [f"{number:0{digits}x}" for number in range(16**digits)]
        share = min(
            1.0,
            _STRETCH_ROWS / max(self.attachments, 1),
            _STRETCH_BYTES / max(self.total_bytes, 1) if self._reads_content else 1.0,
        )
        length, start = max(1, int(len(parts) * share)), 0
        while start < len(parts):
            began = time.monotonic()
            yield parts, start, min(start + length, len(parts))
            start += length
            took = max(time.monotonic() - began, 0.001)
            # A transaction of hours would keep VACUUM from its work in the whole database.
            length = max(1, min(length * 4, int(length * _STRETCH_S / took)))

    def _stretch(self, parts: Sequence[str], start: int, end: int) -> None:
        """Compare some parts, whose rows come from one query."""
        if self._are_small(len(parts)):
            start = self._hash_parts(parts, start, end)
            if start == end:
                return
        limit = parts[end] if end < len(parts) else None
        first = "" if start == 0 else parts[start]
        if self.reader.area is None:
            for stored in self.rows.between(first, limit):
                self._take_object(stored)
            return
        if not self._reads_content and not self.settings.is_partial and self._bulk(parts, start, end):
            return
        rows = iter(self.rows.between(first, limit))
        if self.settings.is_partial:
            nothing = Listing({}, [], [])
            for row_of_part in rows:
                self._take_file(row_of_part, nothing, None)
            return
        row: Row | None = next(rows, None)
        for number, listing in zip(range(start, end), self._listings(parts[start:end]), strict=True):
            limit = parts[number + 1] if number + 1 < len(parts) else None
            previous: Row | None = None
            while row is not None and (limit is None or row.uuid < limit):
                self._take_file(row, listing, previous)
                row, previous = next(rows, None), row
            self._take_rest(listing)

    def _are_small(self, parts: int) -> bool:
        """Return whether nearly all content is in small files, and nothing is to be decided about single ones."""
        settings = self.settings
        return (
            self.reader.area is not None
            and settings.depth == model.HASH
            and not (settings.is_partial or settings.journal or settings.budget_s)
            and not (settings.hours or settings.max_bytes_per_s)
            and self._others < bulk.MAX_DIFFERENCES
            and self.total_bytes < parts * _PART_BYTES
        )

    def _hash_parts(self, parts: Sequence[str], start: int, end: int) -> int:
        """Let workers hash parts as a whole; then single rows that differ.

        Returns:
            The first part that must be compared row by row, `end` if there is none.
        """
        first, limit = "" if start == 0 else parts[start], parts[end] if end < len(parts) else None
        names = self.rows.names(first, limit, len(parts[0]))
        doubtful: list[str] = []
        rest, done = Listing({}, [], []), start
        for hashed in self._hashed(bulk.joined(names, parts[start:end])):
            if hashed is None:
                break
            done += 1
            self._count(hashed.equal, hashed.bytes)
            doubtful += hashed.doubtful
            rest.sizes.update(hashed.rest.sizes)
            rest.odd.extend(hashed.rest.odd)
            rest.unreadable.extend(hashed.rest.unreadable)
            if len(doubtful) + len(rest.sizes) + len(rest.odd) > bulk.MAX_DIFFERENCES:
                break
        names.close()
        self.rows.conn.rollback()
        limit = parts[done] if done < len(parts) else None
        deque(self._doubtful(first, limit, doubtful, rest), maxlen=0)
        return done

    def _hashed(self, texts: Iterator[tuple[str, str]]) -> Iterator[bulk.Hashed | None]:
        """Yield the results of parts; the workers are a few parts ahead."""
        ahead: deque[Future[Any]] = deque()
        for part in texts:
            ahead.append(self.workers.submit("hash_part", part))
            if len(ahead) <= 2 * self.settings.jobs:
                continue
            yield self._part_result(ahead.popleft())
        while ahead:
            yield self._part_result(ahead.popleft())

    def _part_result(self, future: Future[Any]) -> Any:
        try:
            return self.workers.result(future)
        except OSError as error:
            assert self.settings.storage_dir  # noqa: S101
            raise unreadable_area(self.settings.storage_dir, error) from None

    def _doubtful(self, first: str, limit: str | None, doubtful: list[str], rest: Listing) -> Iterator[Row]:
        """Look at single rows of parts that were compared as a whole, yield them, then at what no row names."""
        previous: Row | None = None
        for row in self.rows.between(first, limit, doubtful) if doubtful else ():
            self._take_file(row, rest, previous)
            previous = row
            yield row
        self._take_rest(rest)

    def _bulk(self, parts: Sequence[str], start: int, end: int) -> bool:
        """Compare names, or names and sizes, of some parts as a whole; then single rows that differ.

        Returns:
            False if more differs than fits into memory: then nothing was counted.
        """
        first, limit = "" if start == 0 else parts[start], parts[end] if end < len(parts) else None

        def listed() -> Iterator[tuple[str, Listing]]:
            what, rows = f"verifying, depth {self.settings.depth}", self.checked
            for digits, listing in zip(parts[start:end], self._listings(parts[start:end]), strict=True):
                rows += len(listing.sizes)
                self.report(Progress("", what, min(rows, self.attachments), self.attachments))
                if self.stop.is_set():
                    raise Stopped
                yield digits, listing

        compared = bulk.compare(self.rows.names(first, limit, len(parts[0])), listed())
        self.rows.conn.rollback()
        if compared is None:
            return False
        self._count(compared.equal, compared.bytes)
        for row in self._doubtful(first, limit, compared.doubtful, compared.rest):
            self.bytes -= row.stored_size or 0  # counted with the others, and now again
        return True

    def _check_again(self, first: int, end: int) -> None:
        """Check the content of what was last checked between two times, `end` excluded."""
        assert self.due  # noqa: S101 - without a journal nothing is left for later
        for parts, start, stop in self._stretches():
            limit = parts[stop] if stop < len(parts) else None
            for row in self.due.between(self.rows.between(parts[start], limit), first, end):
                resolved = row if row.customdata is None else places.resolve(row, self.settings)
                if isinstance(resolved, Row):
                    self._add(resolved)
        self._collect_all()

    def _listings(self, parts: Sequence[str]) -> Iterator[Listing]:
        """Yield what lies in each part; the workers list a few parts ahead."""
        ahead: deque[Future[Any]] = deque()
        waiting = iter(parts)
        # To list a folder on a network drive takes longer than to compare it.
        for _ in range(2 * self.settings.jobs):
            ahead += [self.workers.submit("list_part", digits) for digits in islice(waiting, 1)]
        while ahead:
            listing: Listing = self._part_result(ahead.popleft())
            ahead += [self.workers.submit("list_part", digits) for digits in islice(waiting, 1)]
            yield listing

    def _take_file(self, row: Row, listing: Listing, previous: Row | None) -> None:
        """Compare a row with what is in the area."""
        if previous is not None and previous.uuid == row.uuid:
            self._note(Difference(model.DUPLICATE_UUID, "", row))
            return
        actual = listing.sizes.pop(row.uuid, None)
        if row.customdata is not None:
            self._take_elsewhere(row)
        elif actual is not None:
            self._take(row, actual if actual >= 0 else None)
        elif not is_uuid(row.uuid):
            self._note(Difference(model.INVALID_UUID, "", row))
        else:
            # In the wrong case, or missing, or a link, or its folder cannot be read.
            self._submit(row, None)

    def _take_object(self, row: Row) -> None:
        """Compare a row of the index, of the storage area, or of both."""
        if not row.resource:
            kind = model.ORPHAN_OTHER
            self.differences.append(Difference(kind, "", row, row.uuid))
        elif row.customdata is not None:
            self._take_elsewhere(row)
        elif not row.oid:
            self._note(Difference(model.MISSING, "", row))
        else:
            self._take(row, row.actual_size)

    def _take_elsewhere(self, row: Row) -> None:
        resolved = places.resolve(row, self.settings)
        if isinstance(resolved, Difference):
            self._note(resolved)
        elif self.reader.area is None:
            self._note(Difference(model.UNREADABLE, "it is a file; name the folder with --storage-dir", row))
        else:
            self._submit(resolved, None)

    def _take(self, row: Row, actual_size: int | None) -> None:
        """Check a row whose file exists, as deep as asked for."""
        if self.settings.depth == model.SIZE:
            damage = content.shallow_problem(row, actual_size, store_md5=self.settings.store_md5)
            if damage is not None:
                self._note(Difference(*damage, row))
                return
        if self._reads_content:
            self._submit(row, actual_size)
        else:
            self._count(1, row.stored_size or 0)

    def _take_rest(self, listing: Listing) -> None:
        """Note what no row names."""
        for uuid in sorted(listing.sizes):
            path = file_path(uuid)
            self.differences.append(Difference(model.ORPHAN_OTHER, "", None, uuid, path))
        self.differences.extend(second.of_odd(odd) for odd in listing.odd)
        if self.stop.is_set():
            raise Stopped

    def _note(self, difference: Difference) -> None:
        """Note a difference of a row, which counts as checked."""
        self.differences.append(difference)
        self._count(1, (difference.row.stored_size if difference.row else 0) or 0)

    # --- content ------------------------------------------------------------------------

    def _submit(self, row: Row, actual_size: int | None) -> None:
        """Let a worker check a row, unless it was checked before, and is still there.

        Args:
            row: The row.
            actual_size: Bytes in the area, None if they have not been looked at yet.
        """
        check = self.due.last_check(row) if self.due else None
        # It proved the content; the file may have vanished since, or the row have changed.
        if self.due and check and self._seems_intact(row, actual_size):
            self.due.postpone(check)
            return
        self._add(row)

    def _seems_intact(self, row: Row, actual_size: int | None) -> bool:
        """Return whether row and size of the file show no damage."""
        if actual_size is None and not row.oid:
            actual_size = self.reader.size(row)
        store_md5 = self.settings.store_md5
        return actual_size is not None and not content.shallow_problem(row, actual_size, store_md5=store_md5)

    def _add(self, row: Row) -> None:
        """Let a worker check a row, together with others."""
        self._batch.append(row)
        self._batch_bytes += row.actual_size or row.stored_size or 0
        if not row.md5:
            self.without_md5 += 1
        if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._keep_pace()
            # Plain tuples are pickled several times faster than named ones.
            future = self.workers.submit("check", list(map(tuple, self._batch)))
            self._pending.append((self._batch, future))
            self._batch, self._batch_bytes = [], 0
        while len(self._pending) > 2 * self.settings.jobs:
            self._collect()

    def _collect(self) -> None:
        rows, future = self._pending.popleft()
        differences: list[Difference] = self.workers.result(future)
        self.differences.extend(differences)
        if self.due:
            self.due.record(rows, differences)
        self._count(len(rows), sum(row.stored_size or 0 for row in rows))

    def _collect_all(self) -> None:
        self._flush()
        while self._pending:
            self._collect()

    def _keep_pace(self) -> None:
        """Wait until the next batch may be read.

        Raises:
            _BudgetUsed: The time is up; the batch is dropped.
        """
        elapsed_s = time.monotonic() - self._started
        used = self.settings.budget_s is not None and elapsed_s > self.settings.budget_s
        if used or (self.settings.hours and not self.settings.hours.open()):
            self._batch = []
            raise _BudgetUsed
        if self.settings.max_bytes_per_s:
            early_s = self._submitted_bytes / self.settings.max_bytes_per_s - elapsed_s
            if early_s > 0 and self.stop.wait(early_s):
                raise Stopped
            self._submitted_bytes += sum(row.stored_size or 0 for row in self._batch)

    def _count(self, rows: int, size: int) -> None:
        self.checked += rows
        self.bytes += size
        if self.checked & 0xFF and rows == 1:
            return
        now = time.monotonic()
        if now - self._reported > _REPORT_S:
            self._reported = now
            self._report_checked()
            if self.stop.is_set():
                raise Stopped

    def _report_checked(self) -> None:
        self.report(Progress("", f"verifying, depth {self.settings.depth}", self.checked, self.attachments))
