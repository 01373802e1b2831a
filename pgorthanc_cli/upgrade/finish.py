"""The last phase, while Orthanc is running: what Orthanc does not have to wait for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psycopg2

from pgorthanc_cli import db
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.upgrade import counters, preserved
from pgorthanc_cli.upgrade.model import ANALYZED, Settings
from pgorthanc_cli.upgrade.prepare import Prebuilt, build_index, drop_index, leftovers
from pgorthanc_cli.upgrade.worker import execute, execute_with_retries, watched

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "finish"
# The plugin looks for it in the schema public.
_EXTENSION = "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public"
_OPERATOR_CLASS = """
    SELECT quote_ident(nspname) || '.gin_trgm_ops' FROM pg_extension
        JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'pg_trgm'
"""


def finish(
    conn: Connection,
    worker: Connection,
    schema: str,
    settings: Settings,
    *,
    trigram: bool,
    report: Report,
) -> tuple[list[str], int]:
    """Count children, correct the statistics, drop leftovers, build the trigram index.

    Args:
        conn: A connection to inspect with; no transaction is left open on it.
        worker: A connection that commits each statement.
        schema: PostgreSQL namespace of the index.
        settings: What to do with rows that are kept aside.
        trigram: Build the trigram index if it is missing.
        report: Called with the progress.

    Returns:
        The corrected counters, as messages, and how many resources now have a child count.
    """
    objects = catalog.snapshot(conn, schema)
    preserved.export_or_drop(conn, settings)
    conn.commit()
    child_counts = counters.count_children(worker, objects, PHASE, report)
    counters.count_marked_children(worker, objects, PHASE, report)
    counters.merge_deltas(worker, objects, PHASE, report)
    correct = partial(counters.correct, worker, objects)
    repaired = watched(conn, worker, correct, "comparing the counters with what there is", PHASE, report)
    for prebuilt in leftovers(objects):
        if prebuilt.validate:
            drop = f"ALTER TABLE {prebuilt.table} DROP CONSTRAINT {prebuilt.name}"
            # DROP CONSTRAINT takes an ACCESS EXCLUSIVE lock, if only for an instant.
            execute_with_retries(worker, drop, PHASE, report)
        else:
            drop_index(worker, prebuilt.name)
    if trigram:
        _build_trigram_index(conn, worker, objects, report)
    for table in ANALYZED:
        analyze = partial(execute, worker, f"ANALYZE {table}")
        watched(conn, worker, analyze, f"analysing table {table}", PHASE, report)
    return repaired, child_counts


def unfinished(conn: Connection, objects: catalog.Catalog, report: Report = silent) -> bool:
    """Return whether this phase has something to do, by one scan of resources at most.

    Args:
        conn: A connection to the index.
        objects: What it has.
        report: If resources is large: receives that it will be read.
    """
    if leftovers(objects):
        return True
    if "column resources.childcount" not in objects:
        return False
    report = db.announce_scans(conn, ["resources"], report)
    report(Progress("", "looking for missing child counts", 1, 1))
    uncounted = "SELECT EXISTS (SELECT FROM index.resources WHERE resourcetype < 3 AND childcount IS NULL)"
    return bool(db.value(conn, uncounted))


def _build_trigram_index(
    conn: Connection, worker: Connection, objects: catalog.Catalog, report: Report
) -> None:
    """Build the trigram index, if the role may create the extension: Orthanc works without it."""
    state = catalog.trigram(conn, objects)
    conn.commit()
    if state not in ("missing", "invalid"):
        return
    try:
        execute(worker, _EXTENSION)
    except psycopg2.Error:
        # Not allowed: a warning of the command says what an administrator has to do.
        return
    # The extension may have existed before, in another schema.
    operators = db.value(worker, _OPERATOR_CLASS) or "gin_trgm_ops"
    name = catalog.TRIGRAM_INDEX
    statement = f"CREATE INDEX CONCURRENTLY {name} ON dicomidentifiers USING gin (value {operators})"
    if state == "invalid":
        drop_index(worker, name)
    build_index(conn, worker, Prebuilt(name, "dicomidentifiers", statement), PHASE, report)
