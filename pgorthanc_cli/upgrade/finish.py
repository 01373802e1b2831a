"""The part after the switch, beside a working Orthanc: what Orthanc does not have to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import psycopg2

from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.upgrade import childcounts, kept, prepare, statistics
from pgorthanc_cli.upgrade.model import ANALYZED, Settings
from pgorthanc_cli.upgrade.preparation import Preparation, left_over
from pgorthanc_cli.upgrade.statements import execute, patiently, watched

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "finish"
_EXTENSION = "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public"  # where the plugin looks for it
_OPERATOR_CLASS = """
    SELECT quote_ident(nspname) || '.gin_trgm_ops' FROM pg_extension
        JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'pg_trgm'
"""


def finish(
    conn: Connection, worker: Connection, schema: str, settings: Settings, *, trigram: bool
) -> Iterator[Progress | str | int]:
    """Count children, merge and correct the statistics, drop what was not needed, build what searches like to have.

    Args:
        conn: A connection to look with; nothing is left open on it.
        worker: A connection that commits each statement.
        schema: PostgreSQL namespace of the index.
        settings: What becomes of rows that are kept aside.
        trigram: Build the trigram index if it is missing.

    Yields:
        What goes on; as text what was mended; as a number how many resources have got their number of children.
    """
    found = catalog.snapshot(conn, schema)
    kept.settle(conn, settings)
    conn.commit()
    yield from childcounts.fill(worker, found, PHASE)
    yield from childcounts.drain(worker, found, PHASE)
    yield from statistics.drain(worker, found, PHASE)
    correct = partial(statistics.correct, worker, found)
    yield from (yield from watched(conn, worker, correct, "comparing the counters with what there is", PHASE))
    for preparation in left_over(found):
        yield from _drop(worker, preparation)
    if trigram:
        yield from _trigram(conn, worker, found)
    yield from _analyze(conn, worker)


def unfinished(conn: Connection, found: catalog.Catalog) -> bool:
    """Whether this phase has something to do that shows without a scan of a big table."""
    if left_over(found):
        return True
    if "column resources.childcount" not in found:
        return False
    with conn.cursor() as cur:
        cur.execute("SELECT EXISTS (SELECT FROM resources WHERE resourcetype < 3 AND childcount IS NULL)")
        return bool((cur.fetchone() or (False,))[0])


def _drop(worker: Connection, made: Preparation) -> Iterator[Progress]:
    if made.validate:
        yield from patiently(worker, f"ALTER TABLE {made.table} DROP CONSTRAINT {made.name}", PHASE)
    else:
        prepare.drop_index(worker, made.name)


def _trigram(conn: Connection, worker: Connection, found: catalog.Catalog) -> Iterator[Progress]:
    """Build the trigram index, or leave it: Orthanc works without it."""
    state = catalog.trigram(conn, found)
    conn.commit()
    if state not in ("missing", "invalid"):
        return
    with worker.cursor() as cur:
        try:
            cur.execute(_EXTENSION)
        except psycopg2.Error:  # not allowed: `Changed.warnings` says what an administrator has to do
            return
        cur.execute(_OPERATOR_CLASS)
        (operators,) = cur.fetchone() or ("gin_trgm_ops",)
    statement = (
        f"CREATE INDEX CONCURRENTLY {catalog.TRIGRAM_INDEX} ON dicomidentifiers USING gin (value {operators})"
    )
    if state == "invalid":
        prepare.drop_index(worker, catalog.TRIGRAM_INDEX)
    wanted = Preparation(catalog.TRIGRAM_INDEX, "dicomidentifiers", statement)
    yield from prepare.build(conn, worker, wanted, PHASE)


def _analyze(conn: Connection, worker: Connection) -> Iterator[Progress]:
    for table in ANALYZED:
        analyze = partial(execute, worker, f"ANALYZE {table}")
        yield from watched(conn, worker, analyze, f"analysing table {table}", PHASE)
