"""The counters of an index beside a working Orthanc: deltas merged in small batches, drift found and corrected.

A counter's true value and what the index says (row plus pending deltas) differ by a number that does not depend on
what others do meanwhile, as the triggers keep both in step. So the difference that one statement sees may be added
later.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.upgrade.proof import COUNTERS

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_BATCH = 10_000

# One counter at a time: `updatestatistics` locks them in another order than one statement would.
_DRAIN = """
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
_DRAIN_SCRIPT = """
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
_GARBAGE = "DELETE FROM globalintegerschanges WHERE value IS NULL OR key IS NULL OR key NOT BETWEEN 0 AND 5"
_MISSING = """
    INSERT INTO globalintegers (key, value)
        SELECT key, 0 FROM generate_series(0, 6) AS wanted (key)
            WHERE NOT EXISTS (SELECT FROM globalintegers known WHERE known.key = wanted.key AND known.value IS NOT NULL)
        ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value WHERE globalintegers.value IS NULL
        RETURNING key
"""
# One statement, hence one snapshot. A last change that is higher than all that are left is right.
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


def drain(worker: Connection, found: catalog.Catalog, phase: str) -> Iterator[Progress]:
    """Add the pending deltas to their counters, until few are left; `worker` commits each statement."""
    if "table globalintegerschanges" not in found:
        return
    total = 0
    with worker.cursor() as cur:
        for key in range(6):
            merged = _BATCH
            while merged == _BATCH:
                cur.execute(_DRAIN.format(key=key, batch=_BATCH, into=""))
                merged = (cur.fetchone() or (0,))[0]
                total += merged
                if merged == _BATCH:
                    yield Progress(phase, "adding pending deltas to the counters", total)
        if total >= _BATCH:
            cur.execute("VACUUM globalintegerschanges")


def drain_script() -> str:
    """The same for an administrator, as one statement; not inside of a transaction."""
    statement = _DRAIN.format(key="counter", batch=_BATCH, into="INTO merged").strip()
    return _DRAIN_SCRIPT.format(statement=statement, batch=_BATCH).strip()


def complete(worker: Connection, found: catalog.Catalog) -> list[str]:
    """Give counters that are missing or NULL their value, and correct all; what was done, in words."""
    if "table globalintegers" not in found:
        return []
    with worker.cursor() as cur:
        cur.execute(_MISSING)
        missing = {key for (key,) in cur.fetchall()}
    words = [f"the counter of {COUNTERS[key]} was missing" for key in sorted(missing)]
    return words + correct(worker, found, told=missing) if missing else []


def correct(worker: Connection, found: catalog.Catalog, *, told: Container[int] = ()) -> list[str]:
    """Compare the counters with what there is, one scan beside Orthanc, and correct them.

    Returns:
        What differed, in words, without the counters in `told`.
    """
    with_deltas = "table globalintegerschanges" in found
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
        if key not in told
    ]
