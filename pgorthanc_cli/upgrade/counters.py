"""Statistics and child counts, corrected while Orthanc is running.

The actual value of a counter and the recorded one (row plus pending deltas) differ by a number that does not depend on
what other sessions do meanwhile, as the triggers keep both in step. So the difference that one statement sees may be
added later.

Children are counted in short transactions. A session that only adds children does not wait for a batch: the rows are
locked FOR NO KEY UPDATE, which foreign keys do not conflict with, and rows that another session has locked are left for
later. A child that is added meanwhile leaves a mark (from revision 4 on), or its own session counts (revision 3), so no
number is ever wrong.
"""

from __future__ import annotations

import time
from collections.abc import Container
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.upgrade.integrity import COUNTERS

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_BATCH = 10_000

# One counter at a time: `updatestatistics` locks them in another order than one statement would.
_MERGE = """
    WITH noted AS (
        DELETE FROM globalintegerschanges WHERE key = {key} AND ctid = ANY (ARRAY(
            SELECT ctid FROM globalintegerschanges
                WHERE key = {key} AND EXISTS (SELECT FROM globalintegers WHERE key = {key})
                LIMIT {batch}))
        RETURNING value
    ), merged AS (
        UPDATE globalintegers SET value = value + (SELECT coalesce(sum(noted.value), 0) FROM noted) WHERE key = {key}
    )
    SELECT count(*) {into} FROM noted
"""
_MERGE_SCRIPT = """
DO $$
DECLARE
    merged bigint;
BEGIN
    FOR counter IN 0..5 LOOP
        LOOP
            {statement};
            COMMIT;
            EXIT WHEN merged < {batch};
        END LOOP;
    END LOOP;
END
$$
"""
# Left by trigger functions of the plugin that insert by position (UPSTREAM_DEFECTS.md
# B10).
_GARBAGE = "DELETE FROM globalintegerschanges WHERE value IS NULL OR key IS NULL OR key NOT BETWEEN 0 AND 5"
_MISSING = """
    INSERT INTO globalintegers (key, value)
        SELECT key, 0 FROM generate_series(0, 6) AS wanted (key)
            WHERE NOT EXISTS (SELECT FROM globalintegers known WHERE known.key = wanted.key AND known.value IS NOT NULL)
        ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value WHERE globalintegers.value IS NULL
        RETURNING key
"""
# One statement, hence one snapshot. A last change above all remaining ones is right.
_DRIFT = """
    SELECT actual.key, actual.value - counter.value - coalesce(pending.value, 0), counter.value
        FROM (
            SELECT sums.* FROM (SELECT coalesce(sum(compressedsize), 0) AS size,
                                       coalesce(sum(uncompressedsize), 0) AS uncompressed FROM attachedfiles) files,
                LATERAL (VALUES (0, files.size), (1, files.uncompressed)) AS sums (key, value)
            UNION ALL
            SELECT level.key, coalesce(counted.number, 0) FROM generate_series(2, 5) AS level (key)
                LEFT JOIN (SELECT resourcetype + 2 AS key, count(*) AS number FROM resources GROUP BY 1) counted
                    USING (key)
            UNION ALL
            SELECT 6, greatest((SELECT max(seq) FROM changes), (SELECT value FROM globalintegers WHERE key = 6))
        ) AS actual (key, value)
        JOIN globalintegers counter USING (key)
        LEFT JOIN ({pending}) AS pending (key, value) USING (key)
        ORDER BY 1
"""
_PENDING = "SELECT key, sum(value) FROM globalintegerschanges GROUP BY key"
_NOTHING_PENDING = "SELECT NULL::integer, NULL::numeric WHERE false"

# A batch is as large as can be done in this time; another session may wait that long for one of its rows.
_BATCH_S = 0.05
_FIRST_IDS, _LEAST_IDS, _MOST_IDS = 5_000, 500, 2_000_000
_MARKS = 500
_REPORT_EVERY_S = 0.5

# The second condition is evaluated again on a row that has changed since the snapshot was taken.
_FILL = """
    WITH candidate AS MATERIALIZED (
        SELECT internalid FROM resources
            WHERE internalid >= %s AND internalid < %s AND resourcetype < 3 AND childcount IS NULL
            FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE resources parent
        SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
        FROM candidate WHERE parent.internalid = candidate.internalid
"""
_LOCK_MARKED = """
    SELECT internalid FROM resources
        WHERE internalid = ANY (ARRAY(SELECT DISTINCT id FROM (SELECT id FROM invalidchildcounts LIMIT %s) mark))
        FOR NO KEY UPDATE SKIP LOCKED
"""
# Its own snapshot, taken under the locks: it sees a child if and only if it sees that child's mark.
_COUNT_MARKED = """
    WITH unmarked AS (DELETE FROM invalidchildcounts WHERE id = ANY (%(ids)s))
    UPDATE resources parent
        SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
        WHERE internalid = ANY (%(ids)s)
"""
_FILL_SCRIPT = """
DO $$
DECLARE
    counted bigint;
BEGIN
    LOOP
        counted := computemissingchildcount(1000);
        COMMIT;
        EXIT WHEN counted = 0;
    END LOOP;
END
$$
"""


def merge_deltas(worker: Connection, objects: catalog.Catalog, phase: str, report: Report) -> None:
    """Add the pending deltas to their counters, until few are left; `worker` commits each statement."""
    if "table globalintegerschanges" not in objects:
        return
    total = 0
    with worker.cursor() as cur:
        for key in range(6):
            merged = _BATCH
            while merged == _BATCH:
                cur.execute(_MERGE.format(key=key, batch=_BATCH, into=""))
                merged = (cur.fetchone() or (0,))[0]
                total += merged
                if merged == _BATCH:
                    report(Progress(phase, "adding pending deltas to the counters", total))
        # The plugin reads this table every second: until a VACUUM, with all dead rows.
        if total >= _BATCH:
            cur.execute("VACUUM globalintegerschanges")


def merge_script() -> str:
    """Return `merge_deltas` as one statement for an administrator; not to be run in a transaction."""
    statement = _MERGE.format(key="counter", batch=_BATCH, into="INTO merged").strip()
    return _MERGE_SCRIPT.format(statement=statement, batch=_BATCH).strip()


def complete(worker: Connection, objects: catalog.Catalog) -> list[str]:
    """Give counters that are missing or NULL their value, and correct all; return messages of what was wrong."""
    if "table globalintegers" not in objects:
        return []
    missing = {key for (key,) in db.rows(worker, _MISSING)}
    if not missing:
        return []
    messages = [f"the counter of {COUNTERS[key]} was missing" for key in sorted(missing)]
    return messages + correct(worker, objects, without=missing)


def correct(worker: Connection, objects: catalog.Catalog, *, without: Container[int] = ()) -> list[str]:
    """Compare the counters with the contents, in one scan while Orthanc is running, and correct them.

    Returns:
        What differed, as messages, but for the counters in `without`.
    """
    with_deltas = "table globalintegerschanges" in objects
    with worker.cursor() as cur:
        if with_deltas:
            cur.execute(_GARBAGE)
        cur.execute(_DRIFT.format(pending=_PENDING if with_deltas else _NOTHING_PENDING))
        drift = [(key, int(difference), value) for key, difference, value in cur.fetchall() if difference]
        for key, difference, _ in drift:
            if with_deltas and key < 6:
                cur.execute(
                    "INSERT INTO globalintegerschanges (key, value) VALUES (%s, %s)", (key, difference)
                )
            else:
                cur.execute("UPDATE globalintegers SET value = value + %s WHERE key = %s", (difference, key))
    return [
        f"the counter of {COUNTERS[key]} was {value:,}, off by {-difference:+,}"
        for key, difference, value in drift
        if key not in without
    ]


def count_children(worker: Connection, objects: catalog.Catalog, phase: str, report: Report) -> int:
    """Count the children of all resources without a child count; return how many resources those were.

    Walks through all internal ids in batches, so that no long snapshot keeps VACUUM from removing dead rows.
    """
    if "column resources.childcount" not in objects:
        return 0
    counted, reported, ids = 0, time.monotonic(), _FIRST_IDS
    with worker.cursor() as cur:
        cur.execute("SELECT min(internalid), max(internalid) FROM resources")
        position, last = cur.fetchone() or (None, None)
        while position is not None and position <= last:
            started = time.monotonic()
            cur.execute(_FILL, (position, position + ids))
            counted += cur.rowcount
            position += ids
            now = time.monotonic()
            ids = _next_size(ids, now - started)
            if now - reported >= _REPORT_EVERY_S:
                reported = now
                report(Progress(phase, "counting children", min(position, last), last))
    return counted


def count_script() -> str:
    """Return `count_children` as one statement for an administrator; not to be run in a transaction."""
    return _FILL_SCRIPT.strip()


def count_marked_children(worker: Connection, objects: catalog.Catalog, phase: str, report: Report) -> None:
    """Count the children of the marked resources, and remove the marks, except those of locked ones."""
    if not {"column resources.childcount", "table invalidchildcounts"} <= objects.keys():
        return
    counted = 0
    with worker.cursor() as cur:
        while True:
            cur.execute("BEGIN")
            cur.execute(_LOCK_MARKED, (_MARKS,))
            ids = [internal_id for (internal_id,) in cur.fetchall()]
            if ids:
                cur.execute(_COUNT_MARKED, {"ids": ids})
            cur.execute("COMMIT")
            if not ids:
                return
            counted += len(ids)
            report(Progress(phase, "counting children of resources that have changed", counted))


def _next_size(ids: int, elapsed_s: float) -> int:
    """Return the size of the next batch: what fits into `_BATCH_S` at the last pace, at most doubled."""
    fitting = ids * _BATCH_S / max(elapsed_s, 0.0001)
    return int(min(max(fitting, ids / 4, _LEAST_IDS), ids * 2, _MOST_IDS))
