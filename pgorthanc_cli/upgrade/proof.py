"""The evidence that a change of revision has lost nothing: read before and after, in the same transaction.

Nothing here reads a table in proportion to the number of instances. The server itself counts how many rows a
transaction inserts and deletes, the counters of the index say how many resources and bytes there are, and the
recycling order is one row for each patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# No step adds or removes rows of these.
_UNTOUCHED = (
    "resources",
    "maindicomtags",
    "dicomidentifiers",
    "attachedfiles",
    "labels",
    "changes",
    "exportedresources",
)
COUNTERS = {
    0: "compressed size", 1: "uncompressed size", 2: "patients", 3: "studies", 4: "series", 5: "instances",
    6: "last change",
}  # fmt: skip

_COUNTED = "SELECT key, value FROM globalintegers WHERE key BETWEEN 0 AND 6"
_COUNTED_WITH_DELTAS = """
    SELECT key, value + (SELECT coalesce(sum(c.value), 0) FROM globalintegerschanges c WHERE c.key = g.key)::bigint
        FROM globalintegers g WHERE key BETWEEN 0 AND 6
"""
# A patient without a row is protected. Nothing below revision 2 keeps a patient from having two rows: the last counts.
_ORDER_BY_TABLE = """
    SELECT count(*), md5(string_agg(patientid::text, ',' ORDER BY seq)) FROM (
        SELECT patientid, max(seq) AS seq FROM patientrecyclingorder WHERE patientid IS NOT NULL GROUP BY patientid
    ) patient
"""
# = ANY (ARRAY(...)) and BETWEEN keep to the primary key of metadata: there is no index on their type. A regular
# expression would take longer than all the rest to say what is a number.
_ORDER_BY_METADATA = """
    SELECT count(*), md5(string_agg(internalid::text, ',' ORDER BY place NULLS LAST, internalid))
        FROM resources LEFT JOIN (
            SELECT id,
                   max(CASE WHEN type = 19 AND length(value) BETWEEN 1 AND 18
                                 AND translate(value, '0123456789', '') = ''
                            THEN value::bigint END) AS place,
                   bool_or(type = 18 AND value = 'true') AS isprotected
                FROM metadata
                WHERE id = ANY (ARRAY(SELECT internalid FROM resources WHERE resourcetype = 0))
                    AND type BETWEEN 18 AND 19
                GROUP BY id
        ) known ON id = internalid
        WHERE resourcetype = 0 AND isprotected IS NOT TRUE
"""
_CHANGED_ROWS = """
    SELECT relname, pg_stat_get_xact_tuples_inserted(oid), pg_stat_get_xact_tuples_deleted(oid) FROM pg_class
        WHERE relnamespace = quote_ident(index_schema())::regnamespace AND relkind = 'r' AND relname = ANY (%s)
"""


@dataclass(frozen=True)
class Evidence:
    """What must be the same before and after.

    Attributes:
        counters: Values of the counters by their key, what is still to be added to them included.
        order: Number of unprotected patients, and a digest of their order.
        rows: Rows that this transaction has inserted and deleted, by table.
    """

    counters: Mapping[int, int | None]
    order: tuple[int, str | None]
    rows: Mapping[str, tuple[int, int]]


def collect(conn: Connection, found: catalog.Catalog) -> Evidence:
    """The evidence in an index of any layout; `found` is its present catalog."""
    return Evidence(_counters(conn, found), _order(conn, found), _rows(conn))


def warm(conn: Connection) -> None:
    """Read beforehand what the steps and the proof will read, so that they find it in memory."""
    with conn.cursor() as cur:
        cur.execute(_ORDER_BY_METADATA)


def lost(before: Evidence, after: Evidence) -> list[str]:
    """What differs, in words; empty if nothing does. A counter that was missing may have any value now."""
    words = [
        f"the counter of {name} was {before.counters[key]:,} and is {_number(after.counters.get(key))}"
        for key, name in COUNTERS.items()
        if before.counters.get(key) is not None and before.counters[key] != after.counters.get(key)
    ]
    words += [
        f"the counter of {name} is missing"
        for key, name in COUNTERS.items()
        if after.counters.get(key) is None
    ]
    if before.order != after.order:
        words.append(
            f"the recycling order of {before.order[0]:,} unprotected patients is now another one of {after.order[0]:,}"
        )
    for table, (inserted, deleted) in after.rows.items():
        old = before.rows.get(table, (0, 0))
        if (inserted, deleted) != old:
            words.append(f"{inserted - old[0]:,} rows of {table} were added and {deleted - old[1]:,} removed")
    return words


def _counters(conn: Connection, found: catalog.Catalog) -> dict[int, int | None]:
    if "table globalintegers" not in found:
        return {}
    with conn.cursor() as cur:
        cur.execute(_COUNTED_WITH_DELTAS if "table globalintegerschanges" in found else _COUNTED)
        return dict(cur.fetchall())


def _order(conn: Connection, found: catalog.Catalog) -> tuple[int, str | None]:
    with conn.cursor() as cur:
        cur.execute(_ORDER_BY_TABLE if "table patientrecyclingorder" in found else _ORDER_BY_METADATA)
        count, digest = cur.fetchone() or (0, None)
        return count, digest


def _rows(conn: Connection) -> dict[str, tuple[int, int]]:
    with conn.cursor() as cur:
        cur.execute(_CHANGED_ROWS, (list(_UNTOUCHED),))
        return {table: (inserted, deleted) for table, inserted, deleted in cur.fetchall()}


def _number(value: int | None) -> str:
    return "missing" if value is None else f"{value:,}"
