"""The part before the switch, beside a working Orthanc: blocks nobody, and can be interrupted and repeated."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog, steps
from pgorthanc_cli.upgrade import childcounts, statistics
from pgorthanc_cli.upgrade.preparation import Preparation, beforehand
from pgorthanc_cli.upgrade.statements import execute, patiently, watched

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "prepare"
_POLL_S = 0.5
_CLEAN_UP = "5s"

_log = logging.getLogger(__name__)

_BUILDER = "SELECT pid FROM pg_stat_progress_create_index WHERE index_relid = to_regclass(%s) AND pid <> %s"


def prepare(
    conn: Connection, worker: Connection, schema: str, way: Sequence[steps.Step], *, repair_duplicates: bool
) -> Iterator[Progress | str]:
    """Make what the steps of a way take, and settle what would keep them busy.

    Args:
        conn: A connection to look with; nothing is left open on it.
        worker: A connection that commits each statement.
        schema: PostgreSQL namespace of the index.
        way: The steps.
        repair_duplicates: The switch will merge duplicates: an index that they prevent is left to it.

    Yields:
        What goes on, and as text what was mended.
    """
    found = catalog.snapshot(conn, schema)
    conn.commit()
    complete = partial(statistics.complete, worker, found)
    yield from (yield from watched(conn, worker, complete, "looking for missing counters", PHASE))
    for preparation in beforehand(way):
        try:
            yield from _make(conn, worker, preparation, found)
        except psycopg2.errors.UniqueViolation:
            # A patient that is twice in the recycling order is mended in the switch.
            if preparation.table == "resources" and not repair_duplicates:
                raise
    yield from statistics.drain(worker, found, PHASE)
    if way:
        yield from childcounts.drain(worker, found, PHASE)
    if way and way[-1].end < way[0].start:
        yield from (event for event in childcounts.fill(worker, found, PHASE) if isinstance(event, Progress))


def build(conn: Connection, worker: Connection, wanted: Preparation, phase: str) -> Iterator[Progress]:
    """Build an index CONCURRENTLY; whatever goes wrong, no invalid one stays behind."""
    try:
        build_it = partial(execute, worker, wanted.statement)
        yield from watched(conn, worker, build_it, f"building index {wanted.name}", phase)
    except BaseException:
        try:
            execute(worker, f"SET statement_timeout = '{_CLEAN_UP}'")
            drop_index(worker, wanted.name)
            execute(worker, "SET statement_timeout = 0")
        except psycopg2.Error:  # the session is gone, or a long transaction reads the table
            _log.warning("index %s could not be removed now; the next run will do it", wanted.name)
        raise


def drop_index(worker: Connection, name: str) -> None:
    """Drop an index without keeping anybody from the table."""
    with worker.cursor() as cur:
        cur.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))


def _make(
    conn: Connection, worker: Connection, wanted: Preparation, found: catalog.Catalog
) -> Iterator[Progress]:
    state = wanted.state(found)
    if state in ("ready", "pointless"):
        return
    if wanted.validate:
        if state == "missing":
            yield from patiently(worker, wanted.statement, PHASE)
        validate = partial(execute, worker, wanted.validate)
        yield from watched(conn, worker, validate, f"validating constraint {wanted.name}", PHASE)
        return
    if state == "invalid":
        yield from _outlast_builder(conn, wanted)
        drop_index(worker, wanted.name)
    yield from build(conn, worker, wanted, PHASE)


def _outlast_builder(conn: Connection, wanted: Preparation) -> Iterator[Progress]:
    """A session that builds this index may have outlived the program that began it."""
    while True:
        with conn.cursor() as cur:
            cur.execute("SELECT pg_stat_clear_snapshot()")
            cur.execute(_BUILDER, (wanted.name, db.backend_pid(conn)))
            builder = cur.fetchone()
        conn.commit()
        if builder is None:
            return
        yield Progress(PHASE, f"waiting for pid {builder[0]}, which builds index {wanted.name}")
        time.sleep(_POLL_S)
