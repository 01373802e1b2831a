"""The single operations of a plan: locks, time, space, and the statements."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog, features, steps, verify
from pgorthanc_cli.schema.steps import Step
from pgorthanc_cli.upgrade import counters, drift
from pgorthanc_cli.upgrade.model import ANALYZED
from pgorthanc_cli.upgrade.prepare import Prebuilt, prebuilt_objects
from pgorthanc_cli.upgrade.survey import Survey

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Seconds per row, measured with 2.2 million resources (PostgreSQL 15, warm cache, 2 cores); used as ratios only.
_INDEX_S, _TRIGRAM_S, _VALIDATE_S, _CHILDREN_S, _RECOUNT_S = 2.2e-6, 33e-6, 1.4e-6, 31e-6, 0.3e-6
# For the recycling order: to convert it, and to compare it before and after.
_PATIENT_S = 40e-6
_STEP_S, _ANALYZE_S = 0.02, 0.2
_CONCURRENTLY = 2  # such an index reads its table twice
# How long the measured server takes to read some rows: the pace of another one is compared with it.
_TEST_ROWS, _TEST_S = 200_000, 0.025
_TEST = "SELECT count(publicid) FROM (SELECT publicid FROM index.resources LIMIT %s) sample"
_FASTEST, _SLOWEST = 0.5, 20.0

_EXCLUSIVE = "ACCESS EXCLUSIVE until the end of the switch"
_ENTRY_BYTES = 16  # of an index, besides its values
# The default fillfactor of a B-tree.
_FILLED = 0.9
_TRIGRAM_BYTES = 300  # of a value in the trigram index
_ROW_BYTES = 300  # of a new row version, with its entries in all indexes
_WIDTHS = "SELECT attname, avg_width FROM pg_stats WHERE schemaname = index_schema() AND tablename = %s"


@dataclass(frozen=True)
class Item:
    """One operation of a plan.

    Attributes:
        what: The operation.
        tables: Its tables.
        lock: The strongest lock that it takes on them.
        blocks: The sessions that have to wait for it.
        seconds: Its estimated duration.
        space_bytes: The estimated disk space that it needs.
        statements: Its statements.
    """

    what: str
    tables: tuple[str, ...]
    lock: str
    blocks: str
    seconds: float
    space_bytes: int
    statements: tuple[str, ...]


class Estimate:
    """Estimates of time and space in one database."""

    def __init__(self, conn: Connection, survey: Survey) -> None:
        self._conn = conn
        self.survey = survey
        self._speed = _speed(conn)

    def seconds(self, rows: int, per_row_s: float) -> float:
        """Return the time for a number of rows on this server."""
        return rows * per_row_s * self._speed

    def index_bytes(self, index: Prebuilt, rows: int) -> int:
        """Return the size of an index, by the columns that it names."""
        columns = re.findall(r"\w+", " ".join(re.findall(r"\((.*?)\)", index.statement)))
        widths = dict(db.rows(self._conn, _WIDTHS, index.table))
        return int(rows * (_ENTRY_BYTES + sum(widths.get(column, 8) for column in columns)) / _FILLED)


def prepare_items(estimate: Estimate, objects: catalog.Catalog, path: Sequence[Step]) -> list[Item]:
    """Return the operations before the switch, while Orthanc is running."""
    items = [
        _prebuilt_item(estimate, prebuilt, prebuilt.state(objects))
        for prebuilt in prebuilt_objects(path)
        if prebuilt.state(objects) in ("missing", "invalid")
    ]
    if "table globalintegerschanges" in objects:
        pending = estimate.survey.rows("globalintegerschanges")
        items.append(
            Item(
                what="apply the pending counter updates",
                tables=("globalintegerschanges", "globalintegers"),
                lock="ROW EXCLUSIVE",
                blocks="no session",
                seconds=estimate.seconds(pending, _INDEX_S),
                space_bytes=0,
                statements=(counters.merge_script(),),
            )
        )
    return items


def switch_items(estimate: Estimate, objects: catalog.Catalog, path: Sequence[Step]) -> list[Item]:
    """Return the repairs and the steps, during which no other session may work."""
    repairs = estimate.survey.drift.repairs
    items = [_repair_item(repairs)] if repairs else []
    for step in path:
        seconds = _step_s(estimate, objects, step)
        items.append(_exclusive_item(_purpose(step), _locked(step), seconds, (steps.text(step.script),)))
    return items


def finish_items(estimate: Estimate, to: int, *, down: bool) -> list[Item]:
    """Return the operations after the switch, while Orthanc is running."""
    survey = estimate.survey
    parents = max(survey.rows("resources") - survey.rows("attachedfiles"), 0)
    identifiers = survey.rows("dicomidentifiers")
    items = []
    if features.of_revision(to).child_counts:
        items.append(
            _online_item(
                "count the children of patients, studies and series",
                ("resources",),
                estimate.seconds(parents, _CHILDREN_S),
                parents * _ROW_BYTES,
                counters.count_script(),
            )
        )
    counted = survey.rows("resources") + survey.rows("attachedfiles")
    items.append(
        _online_item(
            "recount the statistics",
            ("resources", "attachedfiles"),
            estimate.seconds(counted, _RECOUNT_S),
            0,
        )
    )
    if survey.trigram == "missing" and not down:
        items.append(
            _online_item(
                "build the wildcard-search index (needs the extension pg_trgm)",
                ("dicomidentifiers",),
                estimate.seconds(identifiers, _TRIGRAM_S),
                identifiers * _TRIGRAM_BYTES,
            )
        )
    analyze = [f"ANALYZE {table}" for table in ANALYZED]
    items.append(
        _online_item(
            "update the statistics of the query planner (ANALYZE)",
            ANALYZED,
            len(ANALYZED) * _ANALYZE_S,
            0,
            *analyze,
        )
    )
    return items


def _prebuilt_item(estimate: Estimate, prebuilt: Prebuilt, state: str) -> Item:
    rows = estimate.survey.rows(prebuilt.table)
    if prebuilt.validate:
        validate = (prebuilt.validate,)
        return Item(
            what=f"add and validate constraint {prebuilt.name}",
            tables=(prebuilt.table,),
            lock="SHARE ROW EXCLUSIVE for an instant, then SHARE UPDATE EXCLUSIVE",
            blocks="writers for less than 0.1 s",
            seconds=estimate.seconds(rows, _VALIDATE_S),
            space_bytes=0,
            statements=(prebuilt.statement, *validate) if state == "missing" else validate,
        )
    drop = (f"DROP INDEX CONCURRENTLY {prebuilt.name}",) if state == "invalid" else ()
    return Item(
        what=f"build index {prebuilt.name}",
        tables=(prebuilt.table,),
        lock="SHARE UPDATE EXCLUSIVE",
        blocks="no session",
        seconds=_CONCURRENTLY * estimate.seconds(rows, _INDEX_S),
        space_bytes=estimate.index_bytes(prebuilt, rows),
        statements=(*drop, prebuilt.statement),
    )


def _repair_item(repairs: list[verify.Finding]) -> Item:
    what = f"repair: {'; '.join(drift.messages(repairs))}"
    return _exclusive_item(what, (), _STEP_S, tuple(drift.statements(repairs)))


def _exclusive_item(what: str, tables: tuple[str, ...], seconds: float, statements: tuple[str, ...]) -> Item:
    return Item(what, tables, _EXCLUSIVE, "all sessions", seconds, 0, statements)


def _online_item(what: str, tables: tuple[str, ...], seconds: float, space: int, *statements: str) -> Item:
    return Item(what, tables, "SHARE UPDATE EXCLUSIVE at most", "no session", seconds, space, statements)


def _purpose(step: Step) -> str:
    """Return the purpose of a script by its head: the first sentence, and the paragraph after it."""
    head = steps.text(step.script).partition("\n\n")[0]
    paragraphs = [
        " ".join(line.removeprefix("--").strip() for line in paragraph.splitlines())
        for paragraph in re.split(r"^--$\n", head, flags=re.MULTILINE)
    ]
    return " ".join(paragraphs[:2]).removesuffix(".")


def _locked(step: Step) -> tuple[str, ...]:
    """Return the tables that a script locks."""
    match = re.search(r"^LOCK TABLE (.+?)\sIN ", steps.text(step.script), re.DOTALL | re.MULTILINE)
    return tuple(re.findall(r"\w+", match[1])) if match else ()


def _step_s(estimate: Estimate, objects: catalog.Catalog, step: Step) -> float:
    survey = estimate.survey
    start, end = (features.of_revision(n or catalog.revisions()[0]) for n in (step.start, step.end))
    seconds = _STEP_S
    if start.recycling_in_metadata is not end.recycling_in_metadata:
        seconds += estimate.seconds(survey.patients, _PATIENT_S)
    # The first step counts an index that has no counters yet.
    if step.start == 0 and "table globalintegers" not in objects:
        seconds += estimate.seconds(survey.rows("resources") + survey.rows("attachedfiles"), _RECOUNT_S)
    return seconds


def _speed(conn: Connection) -> float:
    """Return how much slower this server reads than the measured one; the better of two runs counts."""
    durations = []
    for _ in range(2):
        started = time.monotonic()
        rows = db.value(conn, _TEST, _TEST_ROWS)
        durations.append(time.monotonic() - started)
    if rows != _TEST_ROWS:
        return 1.0
    return min(max(min(durations) / _TEST_S, _FASTEST), _SLOWEST)
