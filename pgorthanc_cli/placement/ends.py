"""The two ends of a move, each a storage area: sizes, content, new attachments proved, and removal.

What has its final name in a folder, or a row in `storagearea`, that a move has written, is
complete, durable, and was read back: so a run that is killed leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pgorthanc_cli import db, files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.placement.model import MoveSettings, Place, Row
from pgorthanc_cli.storage import (
    CHUNK_BYTES,
    FilesystemArea,
    LargeObjectArea,
    NamedFiles,
    bulk,
    durable,
    listing,
)
from pgorthanc_cli.workers import checkpoint

if TYPE_CHECKING:
    from pgorthanc_cli.db import Session

Chunks = Callable[[], Iterator[bytes]]
Key = tuple[str, int]

# The size of a large object by seeking to its end reads its last page only.
_OBJECTS = """
    SELECT s.uuid, s.type, s.content::int8, (
        SELECT size FROM (
            SELECT lo_lseek64(fd, 0, 2) AS size, lo_close(fd)
            FROM (SELECT lo_open(m.oid, 262144) AS fd OFFSET 0) AS opened OFFSET 0) AS measured)
    FROM index.storagearea s JOIN pg_largeobject_metadata m ON m.oid = s.content
    WHERE s.uuid = ANY(%s)
"""


class Unreadable(Exception):
    """An attachment of the source cannot be read; the text says why."""


class Content(NamedTuple):
    """An attachment to write: its row, its stored bytes, and their MD5."""

    row: Row
    chunks: Chunks
    md5: str


class End(Protocol):
    """A storage area as one end of a move."""

    def sizes(self, rows: Sequence[Row]) -> dict[Key, int]:
        """Return the sizes of those attachments that are there."""

    def open(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Chunks]]:
        """Yield the attachments with a function that yields their bytes, or raises Unreadable."""

    def put(self, contents: Sequence[Content]) -> None:
        """Write attachments durably and prove them, all or nothing; replace what has their names."""

    def remove(self, rows: Sequence[Row]) -> None:
        """Remove attachments, those that are there."""

    def finish(self) -> None:
        """End what reading has begun."""


def digest(chunks: Iterable[bytes]) -> tuple[int, str]:
    """Return size and MD5."""
    md5, size = hashlib.md5(usedforsecurity=False), 0
    for chunk in chunks:
        checkpoint()
        md5.update(chunk)
        size += len(chunk)
    return size, md5.hexdigest()


class Folder:
    """Files: in the usual places below a folder, or where their rows say."""

    def __init__(self, root: Path) -> None:
        """Open nothing yet."""
        self.root = root
        self._areas: dict[str, NamedFiles] = {}

    def _place(self, row: Row) -> tuple[NamedFiles, str]:
        """Return the folder of a row and the path in it."""
        root = row.root or str(self.root)
        if root not in self._areas:
            self._areas[root] = NamedFiles(Path(root))
        return self._areas[root], row.name or storage.file_path(row.uuid)

    def status(self, row: Row) -> os.stat_result | None:
        """Return the status of a file that is there."""
        area, name = self._place(row)
        with suppress(OSError):
            return os.stat(name) if os.path.isabs(name) else area.stat(name)
        return None

    def sizes(self, rows: Sequence[Row]) -> dict[Key, int]:
        """Return the sizes of those files that are there."""
        statuses = ((row.key, self.status(row)) for row in rows)
        return {key: status.st_size for key, status in statuses if status}

    def open(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Chunks]]:
        """Yield the attachments with their content."""
        for row in rows:
            yield row, partial(self._read, row)

    def _read(self, row: Row) -> Iterator[bytes]:
        area, name = self._place(row)
        try:
            # An adopted file is read as Orthanc reads it: its path may lead through links.
            opened = os.fdopen(files.open_regular(name), "rb") if os.path.isabs(name) else area.open(name)
            with opened as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            raise Unreadable("there is no file") from None
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None

    def put(self, contents: Sequence[Content]) -> None:
        """Write files under temporary names, sync and prove them, then give them their names."""
        places = [(*self._place(each.row), each.row.uuid) for each in contents]
        root = places[0][0]
        try:
            # Synced twice: the content before it gets its name, the name before the source may go.
            with durable.SyncGroup(root.area.descriptor) as group:
                try:
                    names = [
                        area.stage(name, uuid, each.chunks())
                        for (area, name, uuid), each in zip(places, contents, strict=True)
                    ]
                    with root.area.rights:
                        group.sync(names)
                    for each, staged in zip(contents, names, strict=True):
                        self._prove(each, root, staged)
                    names = [area.publish(name, uuid) for area, name, uuid in places]
                    with root.area.rights:
                        group.sync(names)
                # Also on Ctrl-C: what was not proved must not stay.
                except BaseException:
                    for area, name, uuid in places:
                        with suppress(OSError):
                            area.discard(name, uuid)
                    raise
        except OSError as error:
            raise storage.write_error(root.root, error) from error

    def _prove(self, content: Content, root: NamedFiles, staged: str) -> None:
        """Read a file back from the disk."""
        with root.open(staged) as stream:
            if hasattr(os, "posix_fadvise"):  # it was synced, so its pages can be dropped
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _require_equal(content, iter(partial(stream.read, CHUNK_BYTES), b""), str(root.root))

    def remove(self, rows: Sequence[Row]) -> None:
        """Remove files, and folders that are empty then."""
        for row in rows:
            area, name = self._place(row)
            # Not even by mistake: what is not below a storage folder was adopted.
            if not os.path.isabs(name):
                try:
                    area.delete(name, row.uuid)
                except OSError as error:
                    raise storage.write_error(area.root, error) from error

    def finish(self) -> None:
        """Keep the folder open for the next attachments."""


class Objects:
    """Large objects, on a connection of its own."""

    def __init__(self, target: db.Target) -> None:
        """Open nothing yet."""
        self.target = target
        self._conn: Session | None = None
        self._area: LargeObjectArea | None = None

    @property
    def conn(self) -> Session:
        """The connection."""
        if self._conn is None or self._conn.closed:
            self._conn, self._area = db.connect(self.target), None
        return self._conn

    @property
    def area(self) -> LargeObjectArea:
        """The storage area, in which this role can create objects that Orthanc can delete."""
        conn = self.conn
        if self._area is None:
            self._area = LargeObjectArea(conn)
        return self._area

    def _present(self, rows: Sequence[Row]) -> dict[Key, tuple[int, int]]:
        """Return oid and size of those objects that are there."""
        existing = db.rows(self.conn, _OBJECTS, [row.uuid for row in rows])
        return {(uuid, content_type): (oid, size) for uuid, content_type, oid, size in existing}

    def sizes(self, rows: Sequence[Row]) -> dict[Key, int]:
        """Return the sizes of those objects that are there."""
        with db.translate_errors(self.conn, self.target.schema), self.conn:
            return {key: size for key, (_, size) in self._present(rows).items()}

    def open(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Chunks]]:
        """Yield the attachments with their content, in one transaction."""
        # Its snapshot keeps objects readable that Orthanc deletes meanwhile.
        with db.translate_errors(self.conn, self.target.schema), self.conn:
            yield from self._open(rows)

    def _open(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Chunks]]:
        present = self._present(rows)
        small = [oid for oid, size in present.values() if size <= bulk.WHOLE_BYTES]
        contents = bulk.contents(self.conn, small) if small else {}
        for row in rows:
            oid, size = present.get(row.key, (0, 0))
            if oid in contents:
                # Out of the dictionary: after its use nothing else holds it in memory.
                yield row, partial(iter, (contents.pop(oid),))
            elif oid and size > bulk.WHOLE_BYTES:
                yield row, partial(bulk.pieces, self.conn, oid)
            else:
                yield row, _no_object

    def put(self, contents: Sequence[Content]) -> None:
        """Write objects and their rows, and prove them, in one transaction."""
        rows = [each.row for each in contents]
        with db.translate_errors(self.conn, self.target.schema), self.conn:
            # What has these names was not equal: left by an earlier move, or damaged.
            self.area.delete_many((row.uuid, row.file_type) for row in rows)
            self.area.put_many((each.row.uuid, each.row.file_type, each.chunks()) for each in contents)
            for each, (_, chunks) in zip(contents, self._open(rows), strict=True):
                _require_equal(each, chunks(), "the large objects")

    def remove(self, rows: Sequence[Row]) -> None:
        """Remove objects and their rows; each takes a lock until the end of the transaction."""
        with db.translate_errors(self.conn, self.target.schema), self.conn:
            self.area.delete_many((row.uuid, row.file_type) for row in rows)

    def finish(self) -> None:
        """End the transaction in which pieces were read."""
        if self._conn is not None and not self._conn.closed:
            self._conn.rollback()


def open_end(place: Place, target: db.Target) -> End:
    """Return an end."""
    return Folder(place.folder) if place.folder else Objects(target)


class BothEnds:
    """Both ends of a move, in one process."""

    def __init__(self, target: db.Target, settings: MoveSettings) -> None:
        """Open nothing yet."""
        self.target = target
        self.settings = settings
        self._from = open_end(settings.source, target)
        self._to = open_end(settings.target, target)

    def finish(self) -> None:
        """Leave no transaction open."""
        self._from.finish()
        self._to.finish()

    def list_part(self, digits: str) -> listing.Listing:
        """List a part of the target folder."""
        assert self.settings.target.folder  # noqa: S101
        return listing.list_part(FilesystemArea(self.settings.target.folder), digits, sizes=False)


def difference(row: Row, size: int, md5: str) -> str:
    """Return how the content of the source differs from its row, empty if it does not."""
    if size != row.size:
        return f"{size:,} bytes, the index says {row.size:,}"
    return "its MD5 is not that of the index" if row.md5 and md5 != row.md5 else ""


def _no_object() -> Iterator[bytes]:
    raise Unreadable("there is no large object")


def _require_equal(content: Content, chunks: Iterable[bytes], where: str) -> None:
    """Raise an error if what was written is not what was read.

    Raises:
        PgOrthancError: The disk or its driver does not keep what was written.
    """
    if digest(chunks) != (content.row.size, content.md5):
        raise PgOrthancError(
            f"attachment {content.row.uuid} was written to {where}, but other bytes were read back",
            "check this disk and its connection (dmesg, smartctl) before you use it",
        )
