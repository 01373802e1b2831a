"""An index as plain values that two equal archives have in common: no internal ids, by default no dates or UUIDs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from psycopg2.extensions import connection as Connection

_Rows = list[tuple[Any, ...]]
_DATE = re.compile(r"\d{8}T\d{6}")
_OWN = "SELECT r.publicid, {columns} FROM {table} t JOIN resources r ON r.internalid = t.id ORDER BY 1, 2, 3"
# Since revision 6 these two types of metadata say what a table said before.
_PROTECTED, _RECYCLING_ORDER = 18, 19


def dump(conn: Connection, *, exact: bool = False) -> dict[str, Any]:
    """Everything that import decides, by public id; the same at every revision from 1 on.

    Args:
        conn: A connection.
        exact: With the dates, the UUIDs and the numbers of the changes: two dumps of one archive.
    """
    with conn, conn.cursor() as cur:

        def rows(query: str) -> _Rows:
            cur.execute(query)
            return cur.fetchall()

        def own(table: str, columns: str) -> _Rows:
            return rows(_OWN.format(columns=columns, table=table))

        metadata = own("metadata", "t.type, t.value, t.revision")
        uuid, when = ("t.uuid, ", ", c.date, c.seq") if exact else ("", "")
        return {
            "resources": rows(
                """SELECT r.publicid, r.resourcetype, p.publicid FROM resources r
                   LEFT JOIN resources p ON p.internalid = r.parentid ORDER BY 1"""
            ),
            "maindicomtags": own("maindicomtags", "taggroup, tagelement, t.value"),
            "dicomidentifiers": own("dicomidentifiers", "taggroup, tagelement, t.value"),
            "metadata": [
                (i, t, v if exact else _DATE.sub("<date>", v), r)
                for i, t, v, r in metadata
                if t not in (_PROTECTED, _RECYCLING_ORDER)
            ],
            **_recycling(metadata, rows),
            "attachedfiles": own(
                "attachedfiles",
                f"filetype, {uuid}compressedsize, uncompressedsize, compressiontype,"
                " uncompressedhash, compressedhash, t.revision",
            ),
            "changes": rows(
                f"""SELECT c.changetype, c.resourcetype, r.publicid {when} FROM changes c
                    JOIN resources r ON r.internalid = c.internalid ORDER BY c.seq"""
            ),
            "statistics": _statistics(rows),
        }


def _exists(table: str, rows: Callable[[str], _Rows]) -> bool:
    return rows(f"SELECT to_regclass('{table}') IS NOT NULL") == [(True,)]


def _recycling(metadata: _Rows, rows: Callable[[str], _Rows]) -> dict[str, list[str]]:
    """The patients that may be recycled, next victim first, and those that are protected."""
    if _exists("patientrecyclingorder", rows):
        order = rows(
            """SELECT r.publicid, o.seq FROM resources r LEFT JOIN patientrecyclingorder o
               ON o.patientid = r.internalid WHERE r.resourcetype = 0 ORDER BY o.seq, 1"""
        )
        protected = [patient for patient, position in order if position is None]
    else:
        protected = [i for i, t, v, _ in metadata if t == _PROTECTED and v == "true"]
        order = sorted(
            ((i, int(v)) for i, t, v, _ in metadata if t == _RECYCLING_ORDER), key=lambda row: row[1]
        )
    return {
        "recycling": [patient for patient, _ in order if patient not in protected],
        "protected": sorted(protected),
    }


def _statistics(rows: Callable[[str], _Rows]) -> _Rows:
    pending = "0"
    if _exists("globalintegerschanges", rows):
        pending = "COALESCE((SELECT sum(value) FROM globalintegerschanges d WHERE d.key = g.key), 0)"
    return rows(f"SELECT g.key, g.value + {pending} FROM globalintegers g WHERE g.key < 6 ORDER BY 1")


def attachments(conn: Connection) -> dict[str, tuple[int, str]]:
    """UUID -> stored size and MD5."""
    with conn, conn.cursor() as cur:
        cur.execute("SELECT uuid, compressedsize, compressedhash FROM attachedfiles")
        return {uuid: (size, md5) for uuid, size, md5 in cur.fetchall()}
