"""Stored DICOM files, read up to their pixel data where that is proved to be enough.

`dicom.parse` reads whole files. It gives the same rows for the bytes before the pixel data
if that is the last element, which its header shows, in two thirds of the time even of a
small file. Everything else is read whole.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import db, dicom, files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.reindex.model import Item, Settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_CHUNK_BYTES = 32 << 10  # of a compressed attachment, in one read
_AHEAD_FILES = 32  # that the disk already reads, while the ones before them are parsed
_AHEAD_BYTES = 1 << 20  # of each, at most
_MEMORY_BYTES = 64 << 20  # a larger file that has to be read whole is mapped
_MAX_OBJECT = 1 << 30  # bytes: PostgreSQL returns no more of a large object
_OBJECTS_BYTES = 16 << 20  # of large objects, in one answer of the server
_ZLIB = 2
_GONE = "the file is gone"

_OBJECTS = """SELECT asked.uuid, s.content::int8,
           CASE WHEN m.oid IS NOT NULL THEN lo_get(s.content, 0, asked.length) END
    FROM unnest(%s::text[], %s::int4[]) AS asked (uuid, length)
    JOIN index.storagearea s ON s.uuid = asked.uuid AND s.type = 1
    LEFT JOIN pg_largeobject_metadata m ON m.oid = s.content"""


class Read(NamedTuple):
    """What became of a file: its rows, or why it cannot be read; and how much was read."""

    item: Item
    instance: dicom.Instance | None
    reason: str
    bytes: int


class _Stored:
    """The stored bytes of one attachment, of which ranges can be read; counts them."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self.size = size
        self.count = 0
        self._read = read

    def range(self, position: int, length: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        data = self._read(position, length)
        self.count += len(data)
        return data


class Heads:
    """Reads and parses the files of a batch."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self.profile = settings.profile
        self.area = storage.FilesystemArea(settings.storage_dir) if settings.storage_dir else None
        # An extra main tag behind the pixel data: nothing may be cut off.
        needed = dicom.indexed_tags(settings.profile).needed
        self._always_whole = max(needed) >= dicom.PIXEL_DATA

    def read(self, items: Sequence[Item], conn: Connection, checkpoint: Callable[[], None]) -> Iterator[Read]:
        """Yield what became of each file.

        Args:
            items: The files.
            conn: For large objects; the caller ends the transaction.
            checkpoint: Called before each file; raises to end the work.
        """
        for item in items:
            if item.problem:
                yield Read(item, None, item.problem, 0)
        usable = [item for item in items if not item.problem]
        if self.area is None:
            yield from self._objects([item for item in usable if not item.path], conn, checkpoint)
            usable = [item for item in usable if item.path]
        yield from self._files(usable, checkpoint)

    # --- files ----------------------------------------------------------------------------

    def _files(self, items: Sequence[Item], checkpoint: Callable[[], None]) -> Iterator[Read]:
        """Yield what became of each file; the disk reads the next ones meanwhile."""
        opened: deque[tuple[Item, int | Read]] = deque()
        rest = iter(items)
        try:
            while True:
                for item in islice(rest, _AHEAD_FILES - len(opened)):
                    opened.append((item, self._open(item)))
                if not opened:
                    return
                checkpoint()
                item, file = opened.popleft()
                yield file if isinstance(file, Read) else self._file(item, file)
        finally:
            for _, file in opened:
                if isinstance(file, int):
                    os.close(file)

    def _open(self, item: Item) -> int | Read:
        """Return an open descriptor, and have the disk read what will be needed; else why there is none."""
        try:
            if self.area is None:
                descriptor = files.open_regular(item.path, os.O_NOFOLLOW)
            else:
                descriptor = self.area.open_file(item.uuid, item.path)
        except OSError as error:
            gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
            return Read(item, None, _GONE if gone else error.strerror or str(error), 0)
        length = item.size
        if item.compression == _ZLIB:
            length = _CHUNK_BYTES
        elif self._may_be_cut(item, item.size):
            length = item.offset + dicom.PIXEL_HEADER_BYTES
        os.posix_fadvise(descriptor, 0, min(length, _AHEAD_BYTES), os.POSIX_FADV_WILLNEED)
        return descriptor

    def _file(self, item: Item, descriptor: int) -> Read:
        """Read and parse an open file; close it."""
        try:
            stored = _Stored(
                os.fstat(descriptor).st_size, lambda at, length: os.pread(descriptor, length, at)
            )
            with ExitStack() as stack:
                return self._parsed(item, stored, lambda: _whole_file(stored, descriptor, stack))
        finally:
            os.close(descriptor)

    # --- large objects --------------------------------------------------------------------

    def _objects(
        self, items: Sequence[Item], conn: Connection, checkpoint: Callable[[], None]
    ) -> Iterator[Read]:
        for part in _portions(items, self._length):
            checkpoint()
            lengths = [self._length(item) for item in part]
            rows = db.rows(conn, _OBJECTS, [item.uuid for item in part], lengths)
            contents = {uuid: (oid, data) for uuid, oid, data in rows}
            for item in part:
                oid, data = contents.get(item.uuid, (0, None))
                if data is None:
                    yield Read(item, None, "it is not in the storage area of the database", 0)
                    continue
                yield self._object(item, conn, oid, bytes(data))

    def _object(self, item: Item, conn: Connection, oid: int, beginning: bytes) -> Read:
        def read(position: int, length: int) -> bytes:
            if position + length <= len(beginning) or len(beginning) == size:
                return beginning[position : position + length]
            return bytes(db.value(conn, "SELECT lo_get(%s::oid, %s, %s)", oid, position, length))

        # Fewer bytes than were asked for: this is all of it.
        size = len(beginning) if len(beginning) < self._length(item) else item.size
        if item.compression == _ZLIB:
            size = len(beginning)
        stored = _Stored(size, read)
        read_result = self._parsed(item, stored, lambda: stored.range(0, stored.size))
        return read_result._replace(bytes=max(read_result.bytes, len(beginning)))

    def _length(self, item: Item) -> int:
        """Return how many bytes of a large object to ask for at first."""
        if item.compression == _ZLIB or not self._may_be_cut(item, item.size):
            return _MAX_OBJECT - 1
        return item.offset + dicom.PIXEL_HEADER_BYTES

    # --- both -------------------------------------------------------------------------------

    def _may_be_cut(self, item: Item, size: int) -> bool:
        return not self._always_whole and 0 < item.offset < size

    def _parsed(self, item: Item, stored: _Stored, whole: Callable[[], dicom.Buffer]) -> Read:
        """Parse the head of a file if that is enough, else all of it."""
        levels = frozenset(resource.level for resource in item.decides)
        try:
            is_compressed = item.compression == _ZLIB
            # Rows from the head of a damaged file would look right.
            if not is_compressed and item.size and stored.size != item.size:
                reason = f"it has {stored.size:,} bytes, and {item.size:,} in the index"
                return Read(item, None, reason, 0)
            head = _inflated_head if is_compressed else _head
            data = head(item, stored) if self._may_be_cut(item, item.size) else None
            if data is not None:
                try:
                    return Read(item, dicom.parse(data, self.profile, levels), "", stored.count)
                except dicom.Refused:
                    pass  # the index may name a wrong place
            content = whole()
            if is_compressed:
                content = storage.decode(bytes(content))
            instance = dicom.parse(content, self.profile, levels)
            return Read(item, instance, "", max(stored.count, len(content)))
        except dicom.Refused as refused:
            return Read(item, None, refused.reason, stored.count)
        except PgOrthancError as error:
            return Read(item, None, error.fact, stored.count)
        except OSError as error:
            return Read(item, None, error.strerror or str(error), stored.count)


def _head(item: Item, stored: _Stored) -> bytes | None:
    """Return the bytes before the pixel data, None if something may follow that."""
    data = stored.range(0, item.offset + dicom.PIXEL_HEADER_BYTES)

    def read(position: int, length: int) -> bytes:
        if position + length <= len(data):
            return data[position : position + length]
        return stored.range(position, length)

    return data[: item.offset] if dicom.ends_with_pixel_data(read, item.offset, stored.size) else None


def _inflated_head(item: Item, stored: _Stored) -> bytes | None:
    """Return the same of a compressed attachment; None also if the pixel data is in fragments."""
    end = item.offset + dicom.PIXEL_HEADER_BYTES
    # No more than is needed: a few kilobytes may inflate to gigabytes.
    inflater = storage.Inflater(piece_bytes=end)
    data = b""
    for piece in _inflated(stored, inflater):
        data += piece
        if len(data) >= end:
            break
    # Of a damaged one, reading the whole says why.
    if inflater.problem or inflater.announced != item.size:
        return None
    read = partial(_slice, data[:end])
    return data[: item.offset] if dicom.ends_with_pixel_data(read, item.offset, item.size) else None


def _inflated(stored: _Stored, inflater: storage.Inflater) -> Iterator[bytes]:
    position = 0
    while not inflater.problem and (chunk := stored.range(position, _CHUNK_BYTES)):
        position += len(chunk)
        yield from inflater.inflate(chunk)


def _slice(data: bytes, position: int, length: int) -> bytes:
    return data[position : position + length]


def _whole_file(stored: _Stored, descriptor: int, stack: ExitStack) -> dicom.Buffer:
    """Return all of a file; a large one is mapped until the stack ends."""
    if stored.size <= _MEMORY_BYTES:
        return stored.range(0, stored.size)
    return stack.enter_context(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))


def _portions(items: Sequence[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items by what the server may return at once."""
    portion: list[Item] = []
    size = 0
    for item in items:
        expected = min(length(item), item.size)
        if portion and size + expected > _OBJECTS_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += expected
    if portion:
        yield portion
