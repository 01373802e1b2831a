"""Compare attachments with Orthanc's storage folder, or copy them into large objects.

The folder is only read: the administrator removes the files when Orthanc works without
them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pgorthanc_cli import db, files, storage, workers
from pgorthanc_cli.index import customdata
from pgorthanc_cli.migrate.model import FileCheck
from pgorthanc_cli.migrate.source import Attachment

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# A transaction: large enough that commits cost little, small enough to repeat after a crash.
_BATCH_FILES = 200
_BATCH_BYTES = 64 << 20


def compare(
    area: storage.FilesystemArea,
    attachments: Iterator[Attachment],
    *,
    storages: Mapping[str, Path] | None,
    hashes: bool,
) -> FileCheck:
    """Compare the sizes, and with `hashes` the MD5s; `storages` are those of AdvancedStorage."""
    result = FileCheck()
    for attachment in attachments:
        uuid, custom = attachment.uuid, attachment.custom
        try:
            path = customdata.locate(uuid, custom, area.root, storages) if custom else None
        except customdata.NotLocated:
            result.elsewhere += 1
            continue
        result.checked += 1
        try:
            with open(files.open_regular(path), "rb") if path else area.open(uuid) as stream:
                _is_equal(stream, attachment, result, hashes=hashes)
        except OSError as error:
            result.add_problem(attachment.uuid, str(error.strerror), missing=True)
    return result


def copy(conn: Connection, area: storage.Area, attachments: Iterator[Attachment]) -> FileCheck:
    """Copy files into large objects, in batches; skip those of an earlier run.

    Every attachment that is neither missing nor differing is stored then.
    """
    result = FileCheck()
    objects = storage.LargeObjectArea(conn)
    batch: list[Attachment] = []
    for attachment in attachments:
        batch.append(attachment)
        if len(batch) >= _BATCH_FILES or sum(a.size for a in batch) >= _BATCH_BYTES:
            _copy_batch(conn, area, objects, batch, result)
            batch = []
    _copy_batch(conn, area, objects, batch, result)
    return result


def _copy_batch(
    conn: Connection,
    area: storage.Area,
    objects: storage.Area,
    batch: list[Attachment],
    result: FileCheck,
) -> None:
    uuids = [attachment.uuid for attachment in batch]
    with conn:
        stored = db.rows(conn, "SELECT uuid FROM storagearea WHERE uuid = ANY (%s)", uuids)
        known = {uuid for (uuid,) in stored}
        for attachment in batch:
            result.checked += 1
            if attachment.uuid in known:
                continue
            if attachment.custom:
                problem = "a storage plugin keeps it elsewhere (customData)"
                result.add_problem(attachment.uuid, problem, missing=True)
                continue
            try:
                with area.open(attachment.uuid, attachment.file_type) as stream:
                    if _is_equal(stream, attachment, result, hashes=True):
                        stream.seek(0)
                        chunks = iter(partial(stream.read, storage.CHUNK_BYTES), b"")
                        objects.put(attachment.uuid, attachment.file_type, chunks)
            except OSError as error:
                result.add_problem(attachment.uuid, str(error.strerror), missing=True)


def _is_equal(stream: storage.Stream, attachment: Attachment, result: FileCheck, *, hashes: bool) -> bool:
    """Compare a file with its attachment, and add any difference to the result."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size != attachment.size:
        problem = f"{size:,} bytes, the index says {attachment.size:,}"
        result.add_problem(attachment.uuid, problem, missing=False)
        return False
    # Orthanc stores no MD5 if StoreMD5ForAttachments is off.
    if hashes and attachment.md5:
        result.hashed += 1
        digest = hashlib.md5(usedforsecurity=False)
        while block := stream.read(storage.CHUNK_BYTES):
            workers.checkpoint()
            digest.update(block)
        if digest.hexdigest() != attachment.md5:
            result.add_problem(attachment.uuid, "its MD5 is not that of the index", missing=False)
            return False
    return True
