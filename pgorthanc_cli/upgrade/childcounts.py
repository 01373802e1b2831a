"""The numbers of children, counted beside a working Orthanc in short transactions.

Nobody waits for a batch who only adds children: the rows are locked FOR NO KEY UPDATE, which foreign keys do not
mind, and rows that somebody else has locked are left for later. A child that is added meanwhile leaves a mark (from
revision 4 on), or makes its own session count (revision 3), so no number is ever wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# A batch is as large as can be done in this time; so long another session may wait for one of its rows.
_BATCH_S = 0.05
_FIRST_IDS, _LEAST_IDS, _MOST_IDS = 5_000, 500, 2_000_000
_MARKS = 500
_TELL_EVERY_S = 0.5

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
# A snapshot of its own, taken under the locks: it sees a child if and only if it sees that child's mark.
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


def fill(worker: Connection, found: catalog.Catalog, phase: str) -> Iterator[Progress | int]:
    """Count the children of all resources whose number is not known; at the end, how many those were.

    Walks through all internal ids, so that no long snapshot keeps the server from tidying up.
    """
    if "column resources.childcount" not in found:
        return
    filled, told, ids = 0, time.monotonic(), _FIRST_IDS
    with worker.cursor() as cur:
        cur.execute("SELECT min(internalid), max(internalid) FROM resources")
        position, last = cur.fetchone() or (None, None)
        while position is not None and position <= last:
            started = time.monotonic()
            cur.execute(_FILL, (position, position + ids))
            filled += cur.rowcount
            position += ids
            now = time.monotonic()
            ids = _next_size(ids, now - started)
            if now - told >= _TELL_EVERY_S:
                told = now
                yield Progress(phase, "counting children", min(position, last), last)
    yield filled


def fill_script() -> str:
    """The same for an administrator, as one statement; not inside of a transaction."""
    return _FILL_SCRIPT.strip()


def drain(worker: Connection, found: catalog.Catalog, phase: str) -> Iterator[Progress]:
    """Count the children of the resources that are marked, and remove the marks, except those of busy ones."""
    if not {"column resources.childcount", "table invalidchildcounts"} <= found.keys():
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
            yield Progress(phase, "counting children of resources that have changed", counted)


def _next_size(ids: int, elapsed_s: float) -> int:
    """The size of the next batch: what the last one would have done in the time for one, growing by steps of two."""
    fitting = ids * _BATCH_S / max(elapsed_s, 0.0001)
    return int(min(max(fitting, ids / 4, _LEAST_IDS), ids * 2, _MOST_IDS))
