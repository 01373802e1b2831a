"""Damaged attachments replaced by intact copies from a mirror or a backup of the storage area.

A copy is used only if size and MD5 are those of the row; they are computed once more
while it is written. A file appears under its name complete and synced, a large object
with the commit. Orthanc deletes a row before its file, so the row is looked at again
after the copy is in place: if it is gone, so is the copy.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psycopg2

from pgorthanc_cli import db, index
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.scrub import model, places
from pgorthanc_cli.scrub.journal import open_journal
from pgorthanc_cli.scrub.model import Finding, Left, Repaired, Row, Settings, StorageReport
from pgorthanc_cli.scrub.rows import Rows, require_alone
from pgorthanc_cli.scrub.worker import Reader
from pgorthanc_cli.storage import CHUNK_BYTES, FilesystemArea, LargeObjectArea, is_uuid
from pgorthanc_cli.text import printable

_DAMAGES = (model.MISSING, model.TRUNCATED, model.TOO_LONG, model.ALTERED, model.WRONG_INSTANCE)
# What Orthanc has read stays in its cache, although the MD5 is wrong (STORAGE.md D3);
# Orthanc 1.10.1 keeps short content, too, and even sends it.
_CACHED = (model.TRUNCATED, model.TOO_LONG, model.ALTERED, model.WRONG_INSTANCE)
_TOGETHER = 500  # attachments


class Copies(NamedTuple):
    """Intact copies of damaged attachments.

    Attributes:
        folder: Where they are.
        rows: The attachments.
        bytes: Their size.
        left: Damaged attachments without one, and why.
        kinds: The finding of each, by its UUID.
    """

    folder: Path
    rows: list[Row]
    bytes: int
    left: list[Left]
    kinds: dict[str, str]

    def need_restart(self, rows: Iterable[Row]) -> bool:
        """Return whether Orthanc may have damaged content of one of them in memory."""
        return any(self.kinds[row.uuid] in _CACHED for row in rows)


def require_mirror(settings: Settings, folder: Path) -> None:
    """Check that a folder can hold copies of the storage area.

    Raises:
        UsageError: It is no folder, or within the storage area, or the other way round.
    """
    name, area = printable(str(folder)), settings.storage_dir
    if not folder.is_dir():
        raise UsageError(f"{name} is not a folder", "name the mirror or the backup of the storage area")
    if area:
        ours, theirs = area.resolve(), folder.resolve()
        if theirs.is_relative_to(ours) or ours.is_relative_to(theirs):
            raise UsageError(
                f"{name} is not a copy: it holds the storage area itself, or is within it",
                "name the mirror or the backup of the storage area",
            )


def find_copies(
    target: db.Target,
    settings: Settings,
    report: StorageReport,
    folder: Path,
    *,
    stop: threading.Event | None = None,
    progress: Report = silent,
) -> Copies:
    """Return which damaged attachments of a report have an intact copy; only reads.

    Args:
        target: The index.
        settings: Those of the check.
        report: Its result.
        folder: Laid out as a storage folder: `ab/cd/abcd...`.
        stop: Ends it early when set; the other attachments are then left out.
        progress: Called with the number of copies that were read.

    Raises:
        UsageError: As `require_mirror`.
    """
    require_mirror(settings, folder)
    copies = Copies(folder, [], 0, [], {})
    findings = [each for each in report.findings if each.file_type is not None and _is_damage(each)]
    depth = model.IDENTITY if settings.depth == model.IDENTITY else model.HASH
    mirror = Reader(target, replace(settings, storage_dir=folder, depth=depth))
    size = 0
    with db.session(target, readonly=True) as conn:
        rows = Rows(conn, index.Capabilities.read(conn), settings).of(findings)
    for number, (finding, row) in enumerate(zip(findings, rows, strict=True), 1):
        if stop and stop.is_set():
            break
        if row is None:
            continue  # deleted meanwhile
        if reason := _unusable(row, settings, mirror):
            copies.left.append(Left(row.uuid, reason))
            continue
        copies.rows.append(row)
        size += row.stored_size or 0
        copies.kinds[row.uuid] = finding.kind
        progress(Progress("", "reading copies", number, len(findings)))
    return copies._replace(bytes=size)


def _is_damage(finding: Finding) -> bool:
    """Return whether a copy would repair it: also where the disk cannot read the file."""
    failed_disk = finding.kind == model.UNREADABLE and finding.detail == os.strerror(errno.EIO)
    return finding.kind in _DAMAGES or failed_disk


def _unusable(row: Row, settings: Settings, mirror: Reader) -> str:
    """Return why an attachment cannot be repaired from a mirror; empty if it can."""
    if not is_uuid(row.uuid):
        return "its name is not a UUID"
    if row.customdata is not None:
        place = places.resolve(row, settings)
        area = FilesystemArea(settings.storage_dir) if settings.storage_dir else None
        if not (area and isinstance(place, Row) and Path(place.path) == area.path(row.uuid)):
            return "the storage plugin keeps it in another place: copy it there yourself"
    if not row.md5:
        return "the index has no MD5 of it, so no copy can be proved"
    difference = next(iter(mirror.check([row._replace(customdata=None)])), None)
    if difference is None:
        return ""
    if difference.kind == model.MISSING:
        return "there is no copy of it"
    return f"its copy is {difference.kind}: {difference.detail or model.KINDS[difference.kind]}"


def repair(
    target: db.Target,
    settings: Settings,
    copies: Copies,
    *,
    stop: threading.Event | None = None,
    progress: Report = silent,
) -> Repaired:
    """Put intact copies in the place of damaged attachments, and check those again.

    Args:
        target: The index; for large objects its role must be able to write.
        settings: Those of the check.
        copies: From `find_copies`.
        stop: Ends it after the current attachment when set.
        progress: Called with the number of attachments that were repaired.

    Raises:
        InUseError: Another repair of this index is running.
    """
    left, intact = list(copies.left), []
    with db.session(target) as conn:
        require_alone(conn)
        rows = Rows(conn, index.Capabilities.read(conn), settings)
        put = _Put(conn, settings, copies.folder)
        for start in range(0, len(copies.rows), _TOGETHER):
            placed = []
            for row in copies.rows[start : start + _TOGETHER]:
                if stop and stop.is_set():
                    break
                if reason := put.one(row):
                    left.append(Left(row.uuid, reason))
                else:
                    placed.append(row)
                progress(Progress("", "repairing", start + len(placed), len(copies.rows)))
            # Orthanc deletes the row before the file: what has no row now must not stay.
            known = rows.known([row.uuid for row in placed])
            for row in placed:
                if row.uuid not in known:
                    put.undo(row)
            intact += _checked(rows, target, settings, [row for row in placed if row.uuid in known], left)
        kinds = Counter(copies.kinds[row.uuid] for row in intact)
        kinds[model.IMPORT_LEFTOVER] = put.leftovers
        if settings.journal:
            with open_journal(settings.journal, rows.identity(), settings.depth) as journal:
                assert journal  # noqa: S101 - there is a path
                journal.record([row.uuid for row in intact], damaged=False)
                journal.record_repaired(kinds.elements())
    return Repaired(
        folder=str(copies.folder),
        area=str(settings.storage_dir or "large objects"),
        dry_run=False,
        files=len(intact),
        bytes=sum(row.stored_size or 0 for row in intact),
        left=tuple(left),
        restart_orthanc=copies.need_restart(intact),
        complete=not (stop and stop.is_set()),
        kinds={kind: count for kind, count in kinds.items() if count},
    )


def planned_repairs(settings: Settings, copies: Copies, *, interrupted: bool = False) -> Repaired:
    """Return what `repair` would do; `interrupted`: not all copies were read."""
    return Repaired(
        folder=str(copies.folder),
        area=str(settings.storage_dir or "large objects"),
        dry_run=True,
        files=len(copies.rows),
        bytes=copies.bytes,
        left=tuple(copies.left),
        restart_orthanc=copies.need_restart(copies.rows),
        complete=not interrupted,
    )


class _Put:
    """Writes copies into the storage area of an index.

    Attributes:
        leftovers: Temporary files of an earlier repair that were removed.
    """

    def __init__(self, conn: db.Session, settings: Settings, folder: Path) -> None:
        self._conn = conn
        self.leftovers = 0
        self._copies = FilesystemArea(folder)
        self._files = FilesystemArea(settings.storage_dir) if settings.storage_dir else None

    def one(self, row: Row) -> str:
        """Put a copy in its place; return why not, empty if it is there."""
        try:
            with self._copies.open(row.uuid) as stream:
                if self._files:
                    # Of a repair that was killed; the check has reported it.
                    self.leftovers += self._files.discard_temporary(row.uuid)
                    self._files.put(row.uuid, row.file_type, _proved(stream, row))
                    return ""
                area = LargeObjectArea(self._conn)
                area.delete(row.uuid, row.file_type)
                area.put(row.uuid, row.file_type, _proved(stream, row))
                self._conn.commit()
                return ""
        except OSError as error:
            reason = error.strerror or str(error)
        except psycopg2.Error as error:
            if self._conn.closed:
                raise
            reason = db.primary_message(error)
        if not self._files:
            self._conn.rollback()
        return reason

    def undo(self, row: Row) -> None:
        """Delete a copy again, whose row has been deleted meanwhile."""
        if self._files:
            self._files.delete(row.uuid)
        else:
            LargeObjectArea(self._conn).delete(row.uuid, row.file_type)
            self._conn.commit()


def _proved(stream: BinaryIO, row: Row) -> Iterator[bytes]:
    """Yield a copy.

    Raises:
        OSError: Its MD5 is not that of the row.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(CHUNK_BYTES):
        md5.update(chunk)
        yield chunk
    if md5.hexdigest() != row.stored_md5:
        raise OSError(errno.ESTALE, "its copy has changed meanwhile")


def _checked(
    rows: Rows, target: db.Target, settings: Settings, placed: Sequence[Row], left: list[Left]
) -> list[Row]:
    """Return the attachments that are intact now; the others are added to `left`."""
    if not placed:
        return []
    depth = model.IDENTITY if settings.depth == model.IDENTITY else model.HASH
    reader = Reader(target, replace(settings, depth=depth))
    # They are in the usual place, as `_unusable` has made sure.
    plain = [row._replace(customdata=None) for row in placed]
    if not settings.storage_dir:
        plain = rows.with_objects(plain)
    damaged = {each.row.uuid: each for each in reader.check(plain) if each.row}
    left += [Left(uuid, f"it is damaged again: {each.detail or each.kind}") for uuid, each in damaged.items()]
    return [row for row in placed if row.uuid not in damaged]
