"""Digests that prove that a change of revision has lost nothing: read before and after, in the same transaction.

Nothing here reads a table in proportion to the number of instances. The server itself counts how many rows a
transaction inserts and deletes, the counters of the index say how many resources and bytes there are, and the
recycling order is one row for each patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
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
# A patient without a row is protected. Below revision 2 a patient may have two rows: the last one counts.
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
# Counted by the server itself: no table has to be read.
_CHANGED_ROWS = """
    SELECT relname, pg_stat_get_xact_tuples_inserted(oid), pg_stat_get_xact_tuples_deleted(oid) FROM pg_class
        WHERE relnamespace = quote_ident(index_schema())::regnamespace AND relkind = 'r' AND relname = ANY (%s)
"""


@dataclass(frozen=True)
class IntegrityDigest:
    """What must be the same before and after.

    Attributes:
        counters: Values of the counters by their key, pending deltas included.
        order: Number of unprotected patients, and a digest of their order.
        rows: Rows that this transaction has inserted and deleted, by table.
    """

    counters: Mapping[int, int | None]
    order: tuple[int, str | None]
    rows: Mapping[str, tuple[int, int]]


def digest(conn: Connection, objects: catalog.Catalog) -> IntegrityDigest:
    """Return the digest of an index of any layout; `objects` is its present catalog."""
    counters: dict[int, int | None] = {}
    if "table globalintegers" in objects:
        with_deltas = "table globalintegerschanges" in objects
        counters = dict(db.rows(conn, _COUNTED_WITH_DELTAS if with_deltas else _COUNTED))
    by_table = "table patientrecyclingorder" in objects
    order = db.row(conn, _ORDER_BY_TABLE if by_table else _ORDER_BY_METADATA) or (0, None)
    changed = db.rows(conn, _CHANGED_ROWS, list(_UNTOUCHED))
    rows = {table: (inserted, deleted) for table, inserted, deleted in changed}
    return IntegrityDigest(counters, (order[0], order[1]), rows)


def prewarm(conn: Connection) -> None:
    """Read what the steps and the digests will read, so that the server has it in memory."""
    db.rows(conn, _ORDER_BY_METADATA)


def losses(before: IntegrityDigest, after: IntegrityDigest) -> list[str]:
    """Return messages of what differs; a counter that was missing may have any value now."""
    messages = []
    for key, name in COUNTERS.items():
        value, new = before.counters.get(key), after.counters.get(key)
        if value is not None and value != new:
            text = "missing" if new is None else f"{new:,}"
            messages.append(f"the counter of {name} was {value:,} and is {text}")
    for key, name in COUNTERS.items():
        if after.counters.get(key) is None:
            messages.append(f"the counter of {name} is missing")
    if before.order != after.order:
        messages.append(
            f"the recycling order of {before.order[0]:,} unprotected patients "
            f"is now another one of {after.order[0]:,}"
        )
    for table, (inserted, deleted) in after.rows.items():
        # A repair in the same transaction may have changed rows before.
        old = before.rows.get(table, (0, 0))
        if (inserted, deleted) != old:
            added, removed = inserted - old[0], deleted - old[1]
            messages.append(f"{added:,} rows of {table} were added and {removed:,} removed")
    return messages
