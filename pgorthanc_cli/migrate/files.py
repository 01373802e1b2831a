"""The attachments of an index in the storage folder of Orthanc: there, as long as they should be, and unchanged.

Read-only. `store` copies them into large objects; the files stay for the administrator to remove.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from pgorthanc_cli import storage, workers

if TYPE_CHECKING:
    import sqlite3

    from psycopg2.extensions import connection as Connection

_BATCH_FILES = 200
_BATCH_BYTES = 64 << 20
_EXAMPLES = 20
_ATTACHMENTS = """
    SELECT uuid, fileType, compressedSize, compressedMD5, {custom} FROM AttachedFiles t
        WHERE rowid > ? AND rowid <= ? AND typeof(uuid) = 'text' AND typeof(compressedSize) = 'integer'
            AND EXISTS (SELECT 1 FROM tree WHERE tree.internalId = t.id) ORDER BY rowid"""


@dataclass
class Seen:
    """What became of some attachments; the fields are those of `model.Files`."""

    checked: int = 0
    hashed: int = 0
    missing: int = 0
    differing: int = 0
    stored: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Seen) -> None:
        """Take in another part."""
        for name in ("checked", "hashed", "missing", "differing", "stored"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = [*self.examples, *other.examples][:_EXAMPLES]

    def complain(self, attachment: Attachment, what: str, *, missing: bool) -> None:
        """Count a file that is not as it should be."""
        self.missing += missing
        self.differing += not missing
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{attachment.uuid}: {what}")


@dataclass(frozen=True)
class Attachment:
    """One file of the storage area, as the index knows it."""

    uuid: str
    file_type: int
    size: int
    md5: str
    custom: bool


def attachments(conn: sqlite3.Connection, after: int, last: int, *, custom: bool) -> Iterator[Attachment]:
    """Those of a piece of the table; `custom` tells whether it has customData."""
    query = _ATTACHMENTS.format(custom="length(customData) > 0" if custom else "0")
    for uuid, file_type, size, md5, elsewhere in conn.execute(query, (after, last)):
        yield Attachment(
            uuid.decode("utf-8", "replace"), file_type, size, (md5 or b"").decode("latin-1"), bool(elsewhere)
        )


def look(area: storage.FilesystemArea, found: Iterator[Attachment], *, hashes: bool) -> Seen:
    """Compare sizes, and MD5s if wanted. What an advanced storage keeps elsewhere is passed over."""
    seen = Seen()
    for attachment in found:
        if attachment.custom:
            continue
        seen.checked += 1
        try:
            with area.open(attachment.uuid) as stream:
                what = _difference(stream, attachment, seen, hashes=hashes)
        except OSError as error:
            seen.complain(attachment, str(error.strerror), missing=True)
            continue
        if what:
            seen.complain(attachment, what, missing=False)
    return seen


def store(conn: Connection, area: storage.FilesystemArea, found: Iterator[Attachment]) -> Seen:
    """Copy files into large objects, some hundred at a time; what an earlier run has stored is passed over."""
    seen = Seen()
    objects = storage.LargeObjectArea(conn)
    batch: list[Attachment] = []
    for attachment in found:
        batch.append(attachment)
        if len(batch) >= _BATCH_FILES or sum(one.size for one in batch) >= _BATCH_BYTES:
            _store_batch(conn, area, objects, batch, seen)
            batch = []
    _store_batch(conn, area, objects, batch, seen)
    return seen


def _store_batch(
    conn: Connection,
    area: storage.FilesystemArea,
    objects: storage.LargeObjectArea,
    batch: list[Attachment],
    seen: Seen,
) -> None:
    with conn, conn.cursor() as cur:
        cur.execute("SELECT uuid FROM storagearea WHERE uuid = ANY (%s)", ([one.uuid for one in batch],))
        known = {uuid for (uuid,) in cur.fetchall()}
        for attachment in batch:
            seen.checked += 1
            if attachment.uuid in known:
                seen.stored += 1
                continue
            if attachment.custom:
                seen.complain(attachment, "a storage plugin keeps it elsewhere (customData)", missing=True)
                continue
            try:
                _store(area, objects, attachment, seen)
            except OSError as error:
                seen.complain(attachment, str(error.strerror), missing=True)


def _store(
    area: storage.FilesystemArea, objects: storage.LargeObjectArea, attachment: Attachment, seen: Seen
) -> None:
    with area.open(attachment.uuid) as stream:
        what = _difference(stream, attachment, seen, hashes=True)
        if what:
            seen.complain(attachment, what, missing=False)
            return
        stream.seek(0)
        chunks = iter(lambda: stream.read(storage.CHUNK_BYTES), b"")
        objects.put(attachment.uuid, attachment.file_type, chunks)
    seen.stored += 1


def _difference(stream: BinaryIO, attachment: Attachment, seen: Seen, *, hashes: bool) -> str | None:
    size = os.fstat(stream.fileno()).st_size
    if size != attachment.size:
        return f"{size:,} bytes, the index says {attachment.size:,}"
    if hashes and attachment.md5:
        seen.hashed += 1
        digest = hashlib.md5(usedforsecurity=False)
        while piece := stream.read(storage.CHUNK_BYTES):
            workers.checkpoint()
            digest.update(piece)
        if digest.hexdigest() != attachment.md5:
            return "its MD5 is not that of the index"
    return None
