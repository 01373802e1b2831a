"""Large objects read in bulk: one statement for many is several times faster than one each (STORAGE.md F12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.storage.compression import CHUNK_BYTES

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

WHOLE_BYTES = 16 << 20  # a larger object is read piece by piece
# COPY BINARY: signature, flags, extension; then tuples of 2-byte counts and 4-byte lengths; the last has the count -1.
_COPY_HEADER = 19
_COPY_ROW = struct.Struct(">hiqi")  # two fields: length and value of the oid, length of the content


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
    return stream.contents


class _CopyStream:
    """Takes what COPY BINARY of (oid, content) sends, usually a row at a time.

    Attributes:
        contents: By oid.
    """

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}
        self._rest = b""
        self._skipped = _COPY_HEADER

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        # Joining all of them would copy each content twice more.
        received = self._rest + data if self._rest else data
        position, end = self._skipped, len(received)
        while position + _COPY_ROW.size <= end:
            fields, _, oid, length = _COPY_ROW.unpack_from(received, position)
            start = position + _COPY_ROW.size
            if fields != 2 or start + length > end:
                break
            self.contents[oid] = received[start : start + max(length, 0)]
            position = start + max(length, 0)
        self._rest = received[position:] if position < end else b""
        self._skipped = max(position - end, 0)
        return len(data)
