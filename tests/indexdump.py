"""An index as plain values that two equal archives have in common: no internal ids, dates or UUIDs."""

from __future__ import annotations

import re
from typing import Any

from psycopg2.extensions import connection as Connection

_DATE = re.compile(r"\d{8}T\d{6}")
_OWN = "SELECT r.publicid, {columns} FROM {table} t JOIN resources r ON r.internalid = t.id ORDER BY 1, 2, 3"


def dump(conn: Connection) -> dict[str, Any]:
    """Everything that import decides, by public id; the same at every revision that has these tables."""
    with conn, conn.cursor() as cur:

        def rows(query: str) -> list[tuple[Any, ...]]:
            cur.execute(query)
            return cur.fetchall()

        metadata = rows(_OWN.format(columns="t.type, t.value, t.revision", table="metadata"))
        return {
            "resources": rows(
                """SELECT r.publicid, r.resourcetype, p.publicid FROM resources r
                   LEFT JOIN resources p ON p.internalid = r.parentid ORDER BY 1"""
            ),
            "maindicomtags": rows(
                _OWN.format(columns="taggroup, tagelement, t.value", table="maindicomtags")
            ),
            "dicomidentifiers": rows(
                _OWN.format(columns="taggroup, tagelement, t.value", table="dicomidentifiers")
            ),
            "metadata": [(i, t, _DATE.sub("<date>", v), r) for i, t, v, r in metadata if t != 19],
            "recycling": [i for _, i in sorted((int(v), i) for i, t, v, _ in metadata if t == 19)],
            "attachedfiles": rows(
                _OWN.format(
                    columns="filetype, compressedsize, uncompressedsize, compressiontype,"
                    " uncompressedhash, compressedhash, t.revision",
                    table="attachedfiles",
                )
            ),
            "changes": rows(
                """SELECT c.changetype, c.resourcetype, r.publicid FROM changes c
                   JOIN resources r ON r.internalid = c.internalid ORDER BY c.seq"""
            ),
            "statistics": rows(
                """SELECT g.key, g.value + COALESCE((SELECT sum(value) FROM globalintegerschanges d
                       WHERE d.key = g.key), 0) FROM globalintegers g WHERE g.key < 6 ORDER BY 1"""
            ),
        }


def attachments(conn: Connection) -> dict[str, tuple[int, str]]:
    """UUID -> stored size and MD5."""
    with conn, conn.cursor() as cur:
        cur.execute("SELECT uuid, compressedsize, compressedhash FROM attachedfiles")
        return {uuid: (size, md5) for uuid, size, md5 in cur.fetchall()}
