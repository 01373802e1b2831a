"""Moving all attachments from one storage area to another, in three phases.

`copy` works while Orthanc does. `switch` copies what came since, while Orthanc is stopped.
`clean` removes the source, attachment by attachment, once the target is proved to have it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pgorthanc_cli import db, locks
from pgorthanc_cli.errors import InUseError, UsageError
from pgorthanc_cli.placement import model, space
from pgorthanc_cli.placement.attachments import Attachments
from pgorthanc_cli.placement.model import Attachment, Failed, Moved, MoveSettings, Row
from pgorthanc_cli.placement.record import Keeper, Record
from pgorthanc_cli.placement.row_worker import RowBatch
from pgorthanc_cli.placement.worker import Batch
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.storage import FilesystemArea
from pgorthanc_cli.storage.listing import is_empty
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.workers import Pool, Stopped

_BATCH_FILES, _BATCH_BYTES = 256, 32 << 20
_LOCKS_SHARE = 4  # of all locks of the server, a quarter is ours
_SMALL_ARCHIVE = 4_000_000  # attachments; above it a folder is listed in 4096 parts, not in 256
_RECORD_S, _REPORT_S = 5.0, 0.2
_Sized = TypeVar("_Sized", Row, Attachment)


@dataclass
class Run:
    """One phase and what it has counted so far."""

    attachments: Attachments
    workers: Pool[Any]
    settings: MoveSettings
    stop: threading.Event
    report: Report
    keeper: Keeper
    record: Record
    total: int = 0
    seen: int = 0
    done: int = 0
    bytes: int = 0
    already_there: int = 0
    left: int = 0
    unknown: int = 0
    kept: int = 0
    freed_bytes: int = 0
    vacuumed: bool | None = None
    failures: list[tuple[Row, str]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    _started: float = field(default_factory=time.monotonic)
    _submitted_bytes: int = 0
    _reported: float = 0.0
    _recorded: float = field(default_factory=time.monotonic)
    _pending: deque[tuple[Sequence[Row | Attachment], Future[Any]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        most = self.attachments.most_locks() // (_LOCKS_SHARE * self.settings.jobs)
        self.batch_files = max(1, min(_BATCH_FILES, most))

    def result(self) -> Moved:
        """Do the phase and return the result."""
        self.total, _ = self.attachments.total()
        complete = False
        self.warnings = _owner_warning(self.settings)
        try:
            {model.COPY: self.copy, model.SWITCH: self.switch, model.CLEAN: self.clean}[self.settings.phase]()
            # A stop that comes after the last piece of work interrupts nothing.
            complete = not self.failures
        except Stopped:
            # What workers finish within a few seconds is copied or removed, and counts.
            with suppress(Stopped):
                while self._pending:
                    self._collect()
        finally:
            self._save()
        is_clean = self.settings.phase == model.CLEAN
        return Moved(
            source=self.settings.source.kind,
            target=self.settings.target.kind,
            source_folder=self.settings.source.folder,
            target_folder=self.settings.target.folder,
            phase=self.settings.phase,
            attachments=self.total,
            copied=0 if is_clean else self.done,
            bytes=self.bytes,
            already_there=0 if is_clean else self.already_there,
            removed=self.done if is_clean else 0,
            left=self.left,
            unknown=self.unknown,
            freed_bytes=self.freed_bytes,
            vacuumed=self.vacuumed,
            failed=tuple(Failed(row.uuid, reason) for row, reason in self.failures),
            complete=complete,
            elapsed_s=round(time.monotonic() - self._started, 3),
            endpoint=db.endpoint(self.attachments.conn),
            warnings=self.warnings,
            kept=self.kept,
            compression=model.COMPRESSION_NAMES.get(self.settings.compression or 0),
            partial=self.settings.is_partial,
        )

    # --- the phases ---------------------------------------------------------------------

    def copy(self) -> None:
        """Copy everything that is not in the target yet."""
        self.require_the_right_source()
        for rows in batches(self.attachments.all(), self.batch_files):
            trusted = self.record.is_trusted(*rows[-1][:2])
            self.submit("copy", rows, trusted)
        self.collect_all()
        self.forget_deleted()
        if not self.settings.is_partial:
            self.record.copied = not self.failures
            self.record.switched = False

    def switch(self) -> None:
        """Copy the remainder, with Orthanc stopped and kept from starting."""
        conn, schema = self.attachments.conn, self.attachments.conn.schema
        with ExitStack() as stack:
            for lock in (db.LOCK_INDEX, db.LOCK_STORAGE):
                stack.enter_context(db.advisory_lock(conn, lock, wait_s=0))
            self.warnings += locks.require_no_orthanc(conn, schema)
            conn.rollback()
            # Then the switch takes as long as a copy, with Orthanc stopped; but it is right.
            if not self.record.copied:
                self.copy()
            for rows in batches(self._missing(), self.batch_files):
                self.submit("copy", rows, False)
            self.collect_all()
            self.forget_deleted()
            self.record.switched = not self.failures
            if self.settings.target.folder is None:
                self.unknown = self.attachments.unknown_objects()

    def clean(self) -> None:
        """Remove what is in the source, after it was proved in the target."""
        self.require_switched()
        before = space.used(self.attachments.conn, self.settings.source)
        self.remove_all()
        self.forget_deleted()
        if self.settings.orphans:
            space.remove_orphans(self.attachments.conn, self.batch_files)
        self.left = self.count_left()
        if self.settings.source.folder is None:
            self.vacuumed = space.vacuum(self.attachments.conn)
            after = space.used(self.attachments.conn, self.settings.source)
            self.freed_bytes = max(before - after, 0)
        else:
            self.freed_bytes = self.bytes

    def remove_all(self) -> None:
        """Remove from the source what the target has."""
        for rows in batches(self.attachments.all(), self.batch_files):
            self.submit("clean", rows)
        self.collect_all()

    def count_left(self) -> int:
        """Return how many attachments of the source no row names."""
        return space.left(self.attachments.conn, self.settings.source) - len(self.failures)

    # --- conditions ---------------------------------------------------------------------

    def require_the_right_source(self) -> None:
        """Refuse a folder that is not mounted, in which every attachment would be missing."""
        folder = self.settings.source.folder
        if folder and self.total and is_empty(FilesystemArea(folder)):
            raise UsageError(
                f"{printable(str(folder))} is empty, but the index lists {plural(self.total, 'attachment')}",
                "check that it is mounted, or name the right folder",
            )

    def require_switched(self) -> None:
        """Refuse to remove what an Orthanc may still use.

        Raises:
            UsageError: The switch is not done, or the configuration names another area.
            InUseError: An Orthanc is connected that uses the source.
        """
        settings = self.settings
        if not self.record.switched:
            raise UsageError(
                f"there is no record of a switch from {settings.source} to {settings.target}",
                "nothing was removed; do the phases in their order: copy, switch, clean",
            )
        is_other = settings.target.storage is None and settings.configured != settings.target
        if settings.configured is not None and is_other:
            raise UsageError(
                f"Orthanc's configuration still names {settings.configured} instead of {settings.target}",
                "nothing was removed; change the configuration, and restart Orthanc",
            )
        conn = self.attachments.conn
        usage = locks.inspect(conn, conn.schema)
        conn.rollback()
        # The plugin takes this lock only with EnableStorage: it shows which configuration is in use.
        uses_objects = db.LOCK_STORAGE in {lock.key for lock in usage.held}
        if uses_objects and settings.source.folder is None:
            raise db.held_error(conn, db.lock_holders(conn, db.LOCK_STORAGE))
        if usage.held and not uses_objects and settings.target.folder is None:
            raise InUseError(
                f"{usage.endpoint} is in use by an Orthanc that does not use the large objects: {usage.summary}",
                "nothing was removed; restart it with the new configuration",
            )
        self.require_nothing_missing()

    def require_nothing_missing(self) -> None:
        """Refuse to clean while the index has attachments that are not in the target."""
        settings = self.settings
        missing = sum(1 for _ in self._missing())
        if missing:
            verb = "is" if missing == 1 else "are"
            raise UsageError(
                f"{plural(missing, 'attachment')} {verb} not in {settings.target}: "
                f"an Orthanc still stores in {settings.source}, or the target is not mounted",
                "nothing was removed; stop Orthanc, repeat --phase switch, and start it with the new configuration",
            )

    def _missing(self) -> Iterator[Row]:
        """Yield the attachments that are not in the target, and count what it has besides."""
        if self.settings.target.folder is None:
            yield from self.attachments.without_object()
            return
        digits = 2 if self.total <= _SMALL_ARCHIVE else 3
        parts = iter([f"{number:0{digits}x}" for number in range(16**digits)])
        part, self.unknown = "", 0
        names: set[str] = set()
        for row in self.attachments.by_uuid():
            while part < row.uuid[:digits] and (following := next(parts, None)) is not None:
                self.unknown += len(names)
                part, names = following, self._names(following)
            if row.uuid in names:
                names.discard(row.uuid)
            else:
                yield row
        self.unknown += len(names) + sum(len(self._names(following)) for following in parts)

    def _names(self, part: str) -> set[str]:
        return set(self.workers.result(self.workers.submit("list_part", part)).sizes)

    # --- batches ------------------------------------------------------------------------

    def submit(self, task: str, rows: Sequence[Row | Attachment], *arguments: object) -> None:
        """Give some attachments to a worker; wait if that is too early, or too many are waiting."""
        if self.stop.is_set():
            raise Stopped
        if self.settings.max_bytes_per_s:
            elapsed_s = time.monotonic() - self._started
            early_s = self._submitted_bytes / self.settings.max_bytes_per_s - elapsed_s
            if early_s > 0 and self.stop.wait(early_s):
                raise Stopped
            self._submitted_bytes += sum(row.size for row in rows)
        self._pending.append((rows, self.workers.submit(task, list(map(tuple, rows)), *arguments)))
        # Enough that no worker waits, few enough that the end is near when the run is stopped.
        while len(self._pending) > 2 * self.settings.jobs:
            self._collect()

    def _collect(self) -> None:
        rows, future = self._pending.popleft()
        batch: Batch | RowBatch = self.workers.result(future)
        self.seen += len(rows)
        self.done += batch.done
        self.bytes += batch.bytes
        self.already_there += batch.already_there
        self.failures += batch.failed
        self.note(batch)
        now = time.monotonic()
        if self.settings.phase == model.COPY and not self.settings.is_partial and not self.failures:
            # Batches are collected in their order.
            self.record.after = max(self.record.after, rows[-1][:2])
            if now - self._recorded > _RECORD_S:
                self._save()
        if now - self._reported > _REPORT_S:
            self._reported = now
            self._report_seen()

    def note(self, batch: Any) -> None:
        """Record more of a batch; here nothing."""

    def collect_all(self) -> None:
        """Wait for all workers."""
        while self._pending:
            self._collect()
        if self.stop.is_set():
            raise Stopped
        if self.seen >= self.total:
            self._report_seen()

    def _report_seen(self) -> None:
        self.report(Progress(self.settings.phase, "", min(self.seen, self.total), self.total))

    def _save(self) -> None:
        if self.settings.is_partial or (self.settings.phase == model.CLEAN):
            return
        self._recorded = time.monotonic()
        self.keeper.write(self.record)

    def forget_deleted(self) -> None:
        """Drop failures of attachments that Orthanc has deleted meanwhile."""
        existing = self.attachments.existing([row for row, _ in self.failures])
        self.failures = [(row, reason) for row, reason in self.failures if row in existing]


def _owner_warning(settings: MoveSettings) -> tuple[str, ...]:
    """Return a warning if root owns the target folder, so that Orthanc's own user could not write to it."""
    source, target = settings.source.folder, settings.target.folder
    if (
        settings.phase == model.CLEAN
        or not target
        or target.stat().st_uid
        or (source and not source.stat().st_uid)
    ):
        return ()
    return (
        f"{printable(str(target))} belongs to root: an Orthanc that runs as another user cannot store or delete "
        "files there; give it to that user, with everything in it, before you start Orthanc",
    )


def batches(rows: Iterable[_Sized], most: int) -> Iterator[list[_Sized]]:
    """Yield rows in batches of limited number and size."""
    batch: list[_Sized] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.size
        if len(batch) >= most or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
