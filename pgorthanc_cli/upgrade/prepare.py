"""The first phase, while Orthanc is running: blocks no session, and can be interrupted and repeated.

A script names in its head, as comments, what spares it work: an index that is built CONCURRENTLY, or a constraint that
is added NOT VALID and validated afterwards. Both exist before the switch, which then only has to rename them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.schema import catalog, steps
from pgorthanc_cli.schema.steps import Step
from pgorthanc_cli.upgrade import counters
from pgorthanc_cli.upgrade.worker import execute, execute_with_retries, watched

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "prepare"
PREFIX = "pgorthanc_"
_POLL_S = 0.5
_CLEAN_UP = "5s"

_INDEX = re.compile(r"--   (CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+) ON (\w+) .+);")
_CONSTRAINT = re.compile(r"--   (ALTER TABLE (?P<table>\w+) ADD CONSTRAINT (?P<name>\w+) .+ NOT VALID);")
_BUILDER = "SELECT pid FROM pg_stat_progress_create_index WHERE index_relid = to_regclass(%s) AND pid <> %s"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prebuilt:
    """An object that a step uses if it exists.

    Attributes:
        name: Its name; one that begins with `pgorthanc_` is temporary: the step gives it its final name.
        table: Its table.
        statement: The statement that creates it.
        validate: The statement that validates it, if it is a constraint.
    """

    name: str
    table: str
    statement: str
    validate: str | None = None

    def state(self, objects: catalog.Catalog) -> str:
        """Return `ready`, `invalid` (must be built again, or validated), `missing`, or `pointless` (no such table)."""
        if f"table {self.table}" not in objects:
            return "pointless"
        kind = f"constraint {self.table}." if self.validate else "index "
        definition = objects.get(kind + self.name)
        if definition is None:
            return "missing"
        return "invalid" if definition.endswith("VALID") else "ready"


def prebuilt_objects(path: Iterable[Step]) -> list[Prebuilt]:
    """Return the objects that steps can use, in the order of the steps."""
    objects = []
    for step in path:
        head = steps.text(step.script).partition("\n\n")[0]
        for line in head.splitlines():
            if match := _INDEX.fullmatch(line):
                objects.append(Prebuilt(match[2], match[3], match[1]))
            elif match := _CONSTRAINT.fullmatch(line):
                validate = f"ALTER TABLE {match['table']} VALIDATE CONSTRAINT {match['name']}"
                objects.append(Prebuilt(match["name"], match["table"], match[1], validate))
    return objects


def leftovers(objects: catalog.Catalog) -> list[Prebuilt]:
    """Return the temporary objects in a schema, built for any step."""
    by_name = {prebuilt.name: prebuilt for prebuilt in prebuilt_objects(steps.all_steps())}
    return [
        prebuilt
        for prebuilt in by_name.values()
        if prebuilt.name.startswith(PREFIX) and prebuilt.state(objects) in ("ready", "invalid")
    ]


def prepare(
    conn: Connection,
    worker: Connection,
    schema: str,
    path: Sequence[Step],
    *,
    repair_duplicates: bool,
    report: Report,
) -> list[str]:
    """Build the objects that the steps use, and do the work that would keep the switch busy.

    Args:
        conn: A connection to inspect with; no transaction is left open on it.
        worker: A connection that commits each statement.
        schema: PostgreSQL namespace of the index.
        path: The steps.
        repair_duplicates: The switch will merge duplicates: an index that they prevent is left to it.
        report: Called with the progress.

    Returns:
        The repaired counters, as messages.

    Raises:
        psycopg2.errors.UniqueViolation: Public ids are not unique, and are not to be merged.
    """
    objects = catalog.snapshot(conn, schema)
    conn.commit()
    complete = partial(counters.complete, worker, objects)
    repaired = watched(conn, worker, complete, "looking for missing counters", PHASE, report)
    for prebuilt in prebuilt_objects(path):
        try:
            _ensure(conn, worker, prebuilt, objects, report)
        except psycopg2.errors.UniqueViolation:
            # The switch repairs a patient that is in the recycling order twice.
            if prebuilt.table == "resources" and not repair_duplicates:
                raise
    counters.merge_deltas(worker, objects, PHASE, report)
    if path:
        counters.count_marked_children(worker, objects, PHASE, report)
    # Revision 3 corrupts a count that is NULL (UPSTREAM_DEFECTS.md B6).
    if path and path[-1].end < path[0].start:
        counters.count_children(worker, objects, PHASE, report)
    return repaired


def build_index(conn: Connection, worker: Connection, index: Prebuilt, phase: str, report: Report) -> None:
    """Build an index CONCURRENTLY; if that fails, no invalid index remains."""
    try:
        build = partial(execute, worker, index.statement)
        watched(conn, worker, build, f"building index {index.name}", phase, report)
    except BaseException:
        try:
            # The drop waits for all transactions that use the table: after Ctrl-C, not
            # for long.
            execute(worker, f"SET statement_timeout = '{_CLEAN_UP}'")
            drop_index(worker, index.name)
            execute(worker, "SET statement_timeout = 0")
        except psycopg2.Error:
            # The session is gone, or a long transaction reads the table.
            _log.warning("index %s could not be removed now; the next run will do it", index.name)
        raise


def drop_index(worker: Connection, name: str) -> None:
    """Drop an index without blocking its table."""
    with worker.cursor() as cur:
        cur.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))


def _ensure(
    conn: Connection, worker: Connection, prebuilt: Prebuilt, objects: catalog.Catalog, report: Report
) -> None:
    """Build an object, or validate it, unless it is ready."""
    state = prebuilt.state(objects)
    if state in ("ready", "pointless"):
        return
    if prebuilt.validate:
        if state == "missing":
            execute_with_retries(worker, prebuilt.statement, PHASE, report)
        validate = partial(execute, worker, prebuilt.validate)
        watched(conn, worker, validate, f"validating constraint {prebuilt.name}", PHASE, report)
        return
    if state == "invalid":
        _wait_for_builder(conn, prebuilt, report)
        drop_index(worker, prebuilt.name)
    build_index(conn, worker, prebuilt, PHASE, report)


def _wait_for_builder(conn: Connection, index: Prebuilt, report: Report) -> None:
    """Wait while another session builds the index: it may have outlived the program that began it."""
    while True:
        # Within a transaction, PostgreSQL shows the statistics as they were read first.
        db.rows(conn, "SELECT pg_stat_clear_snapshot()")
        pid = db.value(conn, _BUILDER, index.name, db.backend_pid(conn))
        conn.commit()
        if pid is None:
            return
        report(Progress(PHASE, f"waiting for pid {pid}, which builds index {index.name}"))
        time.sleep(_POLL_S)
