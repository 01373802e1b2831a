"""An index as plain values that are the same at every revision, and what can be wrong with one.

Each part is keyed by public ids. A part that a revision cannot hold is missing there, so two states are compared
by what both have.
"""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection as Connection

State = dict[str, Any]

_OWN = "SELECT r.publicid, {} FROM {} t JOIN resources r ON r.internalid = t.id ORDER BY 1, 2, 3"

_ALWAYS = {
    "resources": """SELECT r.internalid, r.publicid, r.resourcetype, p.publicid FROM resources r
                    LEFT JOIN resources p ON p.internalid = r.parentid ORDER BY 1""",
    "main DICOM tags": _OWN.format("taggroup, tagelement, value", "maindicomtags"),
    "identifiers": _OWN.format("taggroup, tagelement, value", "dicomidentifiers"),
    "metadata": """SELECT publicid, type, value, revision FROM metadata JOIN resources ON internalid = id
                   WHERE resourcetype > 0 OR type NOT IN (18, 19) ORDER BY 1, 2""",
    "attachments": _OWN.format(
        "filetype, uuid, compressedsize, uncompressedsize, compressiontype, uncompressedhash, compressedhash,"
        " t.revision",
        "attachedfiles",
    ),
    "labels": _OWN.format("label, 0", "labels"),
    "changes": """SELECT seq, changetype, publicid, c.resourcetype, date FROM changes c
                  JOIN resources r USING (internalid) ORDER BY 1""",
    "exported": "SELECT * FROM exportedresources ORDER BY seq",
    "server properties": "SELECT * FROM serverproperties ORDER BY 1, 2",
    "properties": "SELECT * FROM globalproperties WHERE property NOT IN (4, 11, 14) ORDER BY 1",
    "last change": "SELECT value FROM globalintegers WHERE key = 6",
}
# Column by which the part is recognised, and its query.
_SOMETIMES = {
    "audit logs": ("auditlogs.ts", "SELECT * FROM auditlogs ORDER BY ts, userid"),
    "custom data": (
        "attachedfiles.customdata",
        _OWN.format("filetype, convert_from(customdata, 'UTF8')", "attachedfiles"),
    ),
    "key-value stores": (
        "keyvaluestores.key",
        "SELECT storeid, key, convert_from(value, 'UTF8') FROM keyvaluestores ORDER BY 1, 2",
    ),
    "queues": ("queues.id", "SELECT id, queueid, convert_from(value, 'UTF8') FROM queues ORDER BY 1"),
    "reservations": ("queues.reserveduntil", "SELECT id, reserveduntil FROM queues ORDER BY 1"),
}
_COUNTED = """
    SELECT 0, coalesce(sum(compressedsize), 0) FROM attachedfiles
    UNION ALL SELECT 1, coalesce(sum(uncompressedsize), 0) FROM attachedfiles
    UNION ALL SELECT level + 2, (SELECT count(*) FROM resources WHERE resourcetype = level)
        FROM generate_series(0, 3) level
    ORDER BY 1"""
_CHILDREN = (
    "SELECT publicid, (SELECT count(*) FROM resources c WHERE c.parentid = p.internalid) FROM resources p"
)
_SEQUENCES = ("resources_internalid_seq", "changes_seq_seq", "exportedresources_seq_seq", "queues_id_seq")


class _Reader:
    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.columns = {
            name
            for (name,) in self.rows(
                """SELECT format('%s.%s', c.relname, attname) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
                   WHERE attnum > 0 AND NOT attisdropped
                       AND c.relnamespace = quote_ident(current_schema())::regnamespace"""
            )
        }

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.conn.cursor() as cur:
            cur.execute(query)
            return cur.fetchall()


def state(conn: Connection) -> State:
    """Everything that the index in the first schema of search_path holds."""
    read = _Reader(conn)
    found: State = {name: read.rows(query) for name, query in _ALWAYS.items()}
    found |= {
        name: read.rows(query) for name, (column, query) in _SOMETIMES.items() if column in read.columns
    }
    found["recycling"], found["protected"] = _recycling(read)
    found["statistics"] = _statistics(read)
    for name in _SEQUENCES:
        if f"{name}.last_value" in read.columns:
            found[f"next of {name}"] = read.rows(f"SELECT last_value + is_called::integer FROM {name}")
    if "auditlogs.ts" in read.columns:
        found["raw protection"] = read.rows(
            "SELECT publicid, value FROM metadata JOIN resources ON internalid = id"
            " WHERE resourcetype = 0 AND type = 18 ORDER BY 1"
        )
        found["places"] = [publicid for publicid, _ in _places(read)]
    conn.rollback()
    return found


def differing(one: State, other: State) -> list[str]:
    """The parts that both states have, and that are not the same."""
    return [name for name in one if name in other and one[name] != other[name]]


def problems(conn: Connection) -> list[str]:
    """The invariants of SCHEMA 5 that do not hold."""
    read = _Reader(conn)
    found = []
    if _statistics(read) != read.rows(_COUNTED):
        found.append(f"statistics {_statistics(read)}, counted {read.rows(_COUNTED)}")
    if read.rows("SELECT FROM resources GROUP BY publicid HAVING count(*) > 1"):
        found.append("duplicate public ids")
    if read.rows("SELECT FROM pg_index WHERE NOT indisvalid"):
        found.append("invalid index")
    if "resources.childcount" in read.columns and _children(read) != dict(read.rows(_CHILDREN)):
        found.append("numbers of children")
    found += _recycling_problems(read)
    conn.rollback()
    return found


def _statistics(read: _Reader) -> list[tuple[Any, ...]]:
    notes = (
        "coalesce((SELECT sum(n.value) FROM globalintegerschanges n WHERE n.key = g.key), 0)"
        if "globalintegerschanges.key" in read.columns
        else "0"
    )
    return read.rows(f"SELECT key, value + {notes} FROM globalintegers g WHERE key < 6 ORDER BY 1")


def _children(read: _Reader) -> dict[str, int]:
    """As the plugin sees them: counted if the number is NULL or marked."""
    marked = (
        "internalid IN (SELECT id FROM invalidchildcounts)"
        if "invalidchildcounts.id" in read.columns
        else "false"
    )
    query = f"SELECT publicid FROM resources WHERE childcount IS NULL OR resourcetype = 3 OR {marked}"
    unknown = {publicid for (publicid,) in read.rows(query)}
    true = dict(read.rows(_CHILDREN))
    stored = read.rows("SELECT publicid, childcount FROM resources")
    return {publicid: true[publicid] if publicid in unknown else count for publicid, count in stored}


def _places(read: _Reader) -> list[tuple[str, int]]:
    return [
        (publicid, place)
        for publicid, place in read.rows(
            "SELECT publicid, value::bigint FROM metadata JOIN resources ON internalid = id"
            " WHERE resourcetype = 0 AND type = 19 ORDER BY 2"
        )
    ]


def _recycling(read: _Reader) -> tuple[list[str], list[str]]:
    """The unprotected patients in the order in which they are recycled, and the protected ones."""
    patients = {row[1] for row in read.rows(_ALWAYS["resources"]) if row[2] == 0}
    if "patientrecyclingorder.seq" in read.columns:
        rows = read.rows(
            "SELECT publicid FROM patientrecyclingorder JOIN resources ON internalid = patientid ORDER BY seq"
        )
        order = [row[0] for row in rows]
        return order, sorted(patients - set(order))
    query = """SELECT publicid FROM metadata JOIN resources ON internalid = id
               WHERE resourcetype = 0 AND type = 18 AND value = 'true'"""
    protected = {row[0] for row in read.rows(query)}
    return [patient for patient, _ in _places(read) if patient not in protected], sorted(protected)


def _recycling_problems(read: _Reader) -> list[str]:
    if "patientrecyclingorder.seq" not in read.columns:
        query = "SELECT last_value + is_called::integer FROM patientrecyclingordersequence"
        highest = max((place for _, place in _places(read)), default=0)
        return [] if read.rows(query)[0][0] > highest else ["the next place is not behind all others"]
    highest = read.rows("SELECT coalesce(max(seq), 0) FROM patientrecyclingorder")[0][0]
    counter = read.rows("SELECT value FROM globalintegers WHERE key = 7")
    sequence = read.rows("SELECT last_value + is_called::integer FROM patientrecyclingorder_seq_seq")[0][0]
    if (counter[0][0] + 1 if counter else sequence) <= highest:
        return ["the next place is not behind all others"]
    return []
