"""Large objects read in bulk: one statement for many is several times faster than one each (STORAGE.md F12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.storage.area import CHUNK_BYTES

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

WHOLE_BYTES = 16 << 20  # a larger object is read piece by piece
# COPY BINARY: signature, flags, extension; then tuples of 2-byte counts and 4-byte lengths.
_COPY_HEADER = 19


def contents(conn: Connection, oids: Sequence[int]) -> dict[int, bytes]:
    """Return whole large objects by oid, without those that do not exist; for objects of few megabytes."""
    numbers = ",".join(map(str, oids))
    query = f"""COPY (SELECT oid::int8, pg_catalog.lo_get(oid) FROM pg_catalog.pg_largeobject_metadata
                      WHERE oid IN ({numbers})) TO STDOUT (FORMAT binary)"""  # noqa: S608
    return _copied(conn, query)


def pieces(conn: Connection, oid: int) -> Iterator[bytes]:
    """Yield a large object piece by piece; it may have any size."""
    offset, length = 0, CHUNK_BYTES * 4
    while True:
        query = f"""COPY (SELECT {oid}::int8, pg_catalog.lo_get({oid}::oid, {offset}, {length}))
                    TO STDOUT (FORMAT binary)"""
        piece = _copied(conn, query)[oid]
        if not piece:
            return
        yield piece
        offset += len(piece)


def _copied(conn: Connection, query: str) -> dict[int, bytes]:
    """Return (oid, content) of a COPY in binary format: text would be twice as long, and slow to decode."""
    stream = _CopyStream()
    if isinstance(conn, db.Session):
        conn.begin()
    with conn.cursor() as cur:
        cur.copy_expert(query, stream)
    return stream.contents()


class _CopyStream:
    """Collects what COPY BINARY of (oid, content) sends."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        self._parts.append(bytes(data))
        return len(data)

    def contents(self) -> dict[int, bytes]:
        """Return the contents by oid."""
        data = b"".join(self._parts)
        self._parts.clear()
        position = _COPY_HEADER
        contents: dict[int, bytes] = {}
        while True:
            (fields,) = struct.unpack_from(">h", data, position)
            if fields != 2:
                return contents
            (oid,) = struct.unpack_from(">q", data, position + 6)
            (length,) = struct.unpack_from(">i", data, position + 14)
            start = position + 18
            contents[oid] = data[start : start + max(length, 0)]
            position = start + max(length, 0)
