"""Orphans that hold an instance the index does not have, imported.

They get a new UUID, as every import gives one. With their own one, an import that is
interrupted would delete them: its recovery removes what its journal names and no row has.
So an orphan is deleted only when the row of its copy is committed, the copy is in place,
and its MD5 is that of the orphan; until then the same content exists twice, never less
than once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pgorthanc_cli import db, dicom, index, ingest, storage
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.scrub import content, model
from pgorthanc_cli.scrub.journal import record_resolved
from pgorthanc_cli.scrub.model import Indexed, Left, Settings, StorageReport
from pgorthanc_cli.scrub.quarantine import candidates
from pgorthanc_cli.scrub.rows import Rows, require_alone
from pgorthanc_cli.scrub.worker import Reader
from pgorthanc_cli.storage import FilesystemArea, LargeObjectArea

_BATCH_FILES, _BATCH_BYTES = 500, 1 << 30  # copied to a temporary folder at a time


class Orphan(NamedTuple):
    """An orphan to import: its UUID, its instance, size and MD5 of its content."""

    uuid: str
    instance: str
    size: int
    md5: str


class Orphans(NamedTuple):
    """What can be imported, and what cannot, and why."""

    files: list[Orphan]
    left: list[Left]


def require_indexable(settings: Settings) -> None:
    """Check that orphans are looked for at all.

    Raises:
        UsageError: Only a part of the index is checked.
    """
    if settings.is_partial:
        raise UsageError("--study and --since look for no orphans, which --index-orphans would import")


def find_orphans(
    target: db.Target,
    settings: Settings,
    report: StorageReport,
    *,
    stop: threading.Event | None = None,
    progress: Report = silent,
) -> Orphans:
    """Return which orphans of a report hold an instance that the index does not have; only reads."""
    # Of a file in another folder, the name may be that of an attachment in the right one.
    usual = (
        {each.uuid for each in candidates(report, settings.storage_dir)} if settings.storage_dir else set()
    )
    findings = [
        each
        for each in report.findings
        if each.kind == model.ORPHAN_DICOM and (each.uuid in usual or not settings.storage_dir)
    ]
    with db.session(target, readonly=True) as conn:
        rows = Rows(conn, index.Capabilities.read(conn), settings)
        indexed = rows.attachments_of([each.public_id or "" for each in findings])
    reader = Reader(target, settings)
    by_instance: dict[str, list[Orphan]] = defaultdict(list)
    left = []
    for number, finding in enumerate(findings, 1):
        uuid, instance = finding.uuid or "", finding.public_id or ""
        if stop and stop.is_set():
            break
        # Its content may be another one, but the index has an instance of that id.
        if instance in indexed:
            continue
        try:
            data = _content(reader, uuid, settings.profile)
            if not _is_whole(data, settings.profile):
                left.append(Left(uuid, "it has no pixel data: only the first part of a file"))
            else:
                md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
                by_instance[instance].append(Orphan(uuid, instance, len(data), md5))
        except (OSError, PgOrthancError, dicom.Refused) as error:
            left.append(Left(uuid, getattr(error, "strerror", None) or str(error)))
        progress(Progress("", "reading orphans", number, len(findings)))
    orphans = Orphans([], left)
    for several in by_instance.values():
        if len({orphan.md5 for orphan in several}) == 1:
            orphans.files.append(several[0])
            same = f"it has the content of {several[0].uuid}, which is imported"
            orphans.left.extend(Left(orphan.uuid, same) for orphan in several[1:])
        else:
            differ = "another orphan of its instance has other content: import the right one yourself"
            orphans.left.extend(Left(orphan.uuid, differ) for orphan in several)
    return orphans


def _content(reader: Reader, uuid: str, profile: dicom.Profile) -> bytes:
    """Return the content of an orphan, decompressed if it is compressed.

    Raises:
        OSError: It is gone, or cannot be read.
        PgOrthancError: It is not DICOM, and no compressed attachment.
    """
    data = reader.stored(uuid)
    return data if content.instance_of(iter([data]), profile) else storage.decode(data)


def _is_whole(data: bytes, profile: dicom.Profile) -> bool:
    """Return whether it is not merely the part of an image before its pixel data (file type 3)."""
    with_rows = dicom.Profile(
        default_encoding=profile.default_encoding, extra_main_dicom_tags={"Instance": ("0028,0010",)}
    )
    instance = dicom.parse(data, with_rows)
    tags = {(group, element) for group, element, _ in instance.levels[-1].main_dicom_tags}
    return instance.pixel_data_offset is not None or (0x0028, 0x0010) not in tags


def planned_imports(settings: Settings, orphans: Orphans, *, interrupted: bool = False) -> Indexed:
    """Return what `index_orphans` would do; `interrupted`: not all orphans were read."""
    return Indexed(
        area=str(settings.storage_dir or "large objects"),
        dry_run=True,
        files=len(orphans.files),
        bytes=sum(orphan.size for orphan in orphans.files),
        left=tuple(orphans.left),
        complete=not interrupted,
    )


def index_orphans(
    target: db.Target,
    settings: Settings,
    how: ingest.Settings,
    orphans: Orphans,
    *,
    stop: threading.Event | None = None,
    progress: Report = silent,
) -> Indexed:
    """Import orphans, and delete each one once its copy is in the index.

    Without any, only remove the copies that a killed run has left.

    Args:
        target: The index; its role must be able to write.
        settings: Those of the check.
        how: Of the import.
        orphans: From `find_orphans`.
        stop: Ends it after the current batch when set.
        progress: Called with the number of orphans that were imported.

    Raises:
        InUseError: Another repair of this index is running.
        PgOrthancError: As `ingest.run_import`.
    """
    left, done = list(orphans.left), []
    reader = Reader(target, settings)
    with db.session(target) as conn:
        require_alone(conn)
        rows = Rows(conn, index.Capabilities.read(conn), settings)
        copies = folder_of_copies(rows.identity())
        # Copies of patient data, which a killed run has left; another user's stay.
        with suppress(OSError):
            shutil.rmtree(copies)
        for batch in _batches(orphans.files):
            if stop and stop.is_set():
                break
            with _private(copies) as folder:
                refusals = _import(target, reader, settings, how, batch, folder)
            proved = _proved(rows, target, settings, batch)
            for orphan in batch:
                if orphan not in proved:
                    left.append(
                        Left(orphan.uuid, refusals.get(orphan.uuid, "it stays, as its copy is not proved"))
                    )
                    continue
                _delete(conn, settings, orphan)
                done.append(orphan)
            progress(Progress("", "importing", len(done), len(orphans.files)))
        record_resolved(settings, rows.identity(), [model.ORPHAN_DICOM] * len(done))
    return Indexed(
        area=str(settings.storage_dir or "large objects"),
        dry_run=False,
        files=len(done),
        bytes=sum(orphan.size for orphan in done),
        left=tuple(left),
        complete=not (stop and stop.is_set()),
    )


def _batches(orphans: Sequence[Orphan]) -> Iterator[list[Orphan]]:
    batch: list[Orphan] = []
    for orphan in orphans:
        if batch and (len(batch) == _BATCH_FILES or sum(o.size for o in batch) + orphan.size > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(orphan)
    if batch:
        yield batch


def folder_of_copies(identity: str) -> Path:
    """Return the temporary folder for copies of the orphans of an index.

    The lock of `require_alone` makes sure that no other process uses it.
    """
    digest = hashlib.sha256(f"{os.geteuid()} {identity}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"pgorthanc-orphans-{digest}"


@contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """Create a folder for the length of a block; yield it, or one with another name."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # another user's: everyone may write to /tmp
        with tempfile.TemporaryDirectory(prefix="pgorthanc-orphans-") as other:
            yield Path(other)
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _import(
    target: db.Target,
    reader: Reader,
    settings: Settings,
    how: ingest.Settings,
    batch: Sequence[Orphan],
    folder: Path,
) -> dict[str, str]:
    """Import the contents of orphans; return why some were refused, by UUID."""
    refusals = {}
    # Copies, because `ingest` reads files: an orphan may be compressed, or a large object.
    paths = []
    for orphan in batch:
        try:
            data = _content(reader, orphan.uuid, settings.profile)
        except OSError as error:  # moved or deleted meanwhile
            refusals[orphan.uuid] = error.strerror or str(error)
            continue
        paths.append(folder / orphan.uuid)
        paths[-1].write_bytes(data)
    plan = ingest.ImportPlan(list(map(str, paths)), jobs=1)
    result = ingest.run_import(target, plan, how) if paths else None
    problems = result.refusals if result else []
    return refusals | {Path(each.path).name: each.reason for each in problems}


def _proved(rows: Rows, target: db.Target, settings: Settings, batch: Sequence[Orphan]) -> set[Orphan]:
    """Return the orphans whose content the index has now, committed, in place and with the same MD5."""
    by_instance = {row.instance: row for row in rows.of_instances([orphan.instance for orphan in batch])}
    same = {
        by_instance[orphan.instance]: orphan
        for orphan in batch
        if orphan.instance in by_instance and by_instance[orphan.instance].md5 == orphan.md5
    }
    copies = list(same)
    if not settings.storage_dir:
        copies = rows.with_objects(copies)
    damaged = {
        each.row.uuid
        for each in Reader(target, replace(settings, depth=model.HASH)).check(copies)
        if each.row
    }
    # Orthanc may have committed a row for the orphan itself meanwhile: then it is none.
    known = rows.known([orphan.uuid for orphan in batch])
    return {orphan for row, orphan in same.items() if row.uuid not in damaged and orphan.uuid not in known}


def _delete(conn: db.Session, settings: Settings, orphan: Orphan) -> None:
    if settings.storage_dir:
        FilesystemArea(settings.storage_dir).delete(orphan.uuid)
        return
    file_type = db.value(conn, "SELECT type FROM index.storagearea WHERE uuid = %s", orphan.uuid)
    LargeObjectArea(conn).delete(orphan.uuid, file_type)
    conn.commit()
