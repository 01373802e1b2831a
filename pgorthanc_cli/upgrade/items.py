"""The single things that a change of revision does: locks, time, space, and the statements."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli.schema import catalog, steps, verify
from pgorthanc_cli.upgrade import childcounts, mend, statistics
from pgorthanc_cli.upgrade.model import ANALYZED
from pgorthanc_cli.upgrade.preparation import Preparation, beforehand
from pgorthanc_cli.upgrade.survey import Survey

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Seconds per row, measured with 2.2 million resources (PostgreSQL 15, warm cache, 2 cores); used as ratios only.
_INDEX_S, _TRIGRAM_S, _VALIDATE_S, _CHILDREN_S, _RECOUNT_S = 2.2e-6, 33e-6, 1.4e-6, 31e-6, 0.3e-6
_PATIENT_S = 40e-6  # to convert the recycling order, and to compare it before and after
_STEP_S, _ANALYZE_S = 0.02, 0.2
_CONCURRENTLY = 2  # such an index reads its table twice
# How long the server on which that was measured takes to read some rows; another one may be slower or faster.
_TEST_ROWS, _TEST_S = 200_000, 0.025
_TEST = "SELECT count(publicid) FROM (SELECT publicid FROM index.resources LIMIT %s) sample"
_FASTEST, _SLOWEST = 0.5, 20.0

_EXCLUSIVE = "ACCESS EXCLUSIVE until the end of the switch"
_ENTRY_BYTES = 16  # of an index, besides its values
_FILLED = 0.9
_TRIGRAM_BYTES = 300  # of a value in the trigram index
_ROW_BYTES = 300  # of a row that is written anew, with its entries in all indexes
_WIDTHS = "SELECT attname, avg_width FROM pg_stats WHERE schemaname = index_schema() AND tablename = %s"


@dataclass(frozen=True)
class Item:
    """One thing that is done.

    Attributes:
        what: What is done.
        tables: To which tables.
        lock: The strongest lock it takes on them.
        blocks: Whom that keeps waiting.
        seconds: How long it takes, estimated.
        space_bytes: How much disk space it takes, estimated.
        statements: The statements.
    """

    what: str
    tables: tuple[str, ...]
    lock: str
    blocks: str
    seconds: float
    space_bytes: int
    statements: tuple[str, ...]

    def __str__(self) -> str:
        """A line of the plan."""
        on = f" on {', '.join(self.tables)}" if self.tables else ""
        space = f", {self.space_bytes / 1e6:,.0f} MB" if self.space_bytes else ""
        return f"{self.what}: {self.lock}{on}, blocks {self.blocks}, about {self.seconds:,.1f} s{space}"


class Estimate:
    """How long things take and how large they become in one database."""

    def __init__(self, conn: Connection, there: Survey) -> None:
        self._conn = conn
        self.there = there
        self._speed = _speed(conn)

    def seconds(self, rows: int, per_row_s: float) -> float:
        """The time for so many rows on this server."""
        return rows * per_row_s * self._speed

    def index_bytes(self, made: Preparation, rows: int) -> int:
        """The size of an index, by the columns that it names."""
        columns = re.findall(r"\w+", " ".join(re.findall(r"\((.*?)\)", made.statement)))
        with self._conn.cursor() as cur:
            cur.execute(_WIDTHS, (made.table,))
            widths = dict(cur.fetchall())
        return int(rows * (_ENTRY_BYTES + sum(widths.get(column, 8) for column in columns)) / _FILLED)


def preparing(estimate: Estimate, found: catalog.Catalog, way: Sequence[steps.Step]) -> list[Item]:
    """What is done beside a working Orthanc before the switch."""
    items = [
        _beforehand(estimate, made, made.state(found))
        for made in beforehand(way)
        if made.state(found) in ("missing", "invalid")
    ]
    if "table globalintegerschanges" in found:
        pending = estimate.there.rows("globalintegerschanges")
        items.append(
            Item(
                what="add the pending deltas to the counters, 10,000 at a time",
                tables=("globalintegerschanges", "globalintegers"),
                lock="ROW EXCLUSIVE",
                blocks="nobody",
                seconds=estimate.seconds(pending, _INDEX_S),
                space_bytes=0,
                statements=(statistics.drain_script(),),
            )
        )
    return items


def switching(estimate: Estimate, found: catalog.Catalog, way: Sequence[steps.Step]) -> list[Item]:
    """What is mended, and the steps, for which nobody else may work."""
    repairs = estimate.there.damage.repairs
    items = [_alone(step, _step_s(estimate, found, step)) for step in way]
    if not repairs:
        return items
    return [_mending(repairs), *items]


def finishing(estimate: Estimate, to: int, *, down: bool) -> list[Item]:
    """What is done beside a working Orthanc after the switch."""
    there = estimate.there
    parents = max(there.rows("resources") - there.rows("attachedfiles"), 0)
    identifiers = there.rows("dicomidentifiers")
    then = catalog.expected(to, with_storage=False)
    items = [
        _beside(
            "count the children of patients, studies and series that have no number yet",
            ("resources",), estimate.seconds(parents, _CHILDREN_S), parents * _ROW_BYTES, childcounts.fill_script(),
        ),
        _beside(
            "compare the counters with what there is, and correct them", ("resources", "attachedfiles"),
            estimate.seconds(there.rows("resources") + there.rows("attachedfiles"), _RECOUNT_S), 0,
        ),
        _beside(
            "build the trigram index concurrently, if the extension may be created", ("dicomidentifiers",),
            estimate.seconds(identifiers, _TRIGRAM_S), identifiers * _TRIGRAM_BYTES,
        ),
        _beside("analyse", ANALYZED, len(ANALYZED) * _ANALYZE_S, 0, *(f"ANALYZE {table}" for table in ANALYZED)),
    ]  # fmt: skip
    wanted = (
        "column resources.childcount" in then,
        True,
        there.trigram == "missing" and not down,
        True,
    )
    return [item for item, needed in zip(items, wanted, strict=True) if needed]


def _beforehand(estimate: Estimate, made: Preparation, state: str) -> Item:
    rows = estimate.there.rows(made.table)
    if made.validate:
        return Item(
            what=f"add constraint {made.name}, and validate it",
            tables=(made.table,),
            lock="SHARE ROW EXCLUSIVE for an instant, then SHARE UPDATE EXCLUSIVE",
            blocks="writers for less than 0.1 s",
            seconds=estimate.seconds(rows, _VALIDATE_S),
            space_bytes=0,
            statements=(made.statement, made.validate) if state == "missing" else (made.validate,),
        )
    drop = (f"DROP INDEX CONCURRENTLY {made.name}",) if state == "invalid" else ()
    return Item(
        what=f"build index {made.name} concurrently",
        tables=(made.table,),
        lock="SHARE UPDATE EXCLUSIVE",
        blocks="nobody",
        seconds=_CONCURRENTLY * estimate.seconds(rows, _INDEX_S),
        space_bytes=estimate.index_bytes(made, rows),
        statements=(*drop, made.statement),
    )


def _mending(repairs: list[verify.Finding]) -> Item:
    return Item(
        what=f"mend what is not as it must be: {'; '.join(mend.words(repairs))}",
        tables=(),
        lock=_EXCLUSIVE,
        blocks="everybody",
        seconds=_STEP_S,
        space_bytes=0,
        statements=tuple(mend.statements(repairs)),
    )


def _alone(step: steps.Step, seconds: float) -> Item:
    return Item(
        what=_purpose(step),
        tables=_locked(step),
        lock=_EXCLUSIVE,
        blocks="everybody",
        seconds=seconds,
        space_bytes=0,
        statements=(steps.text(step.script),),
    )


def _beside(what: str, tables: tuple[str, ...], seconds: float, space: int, *statements: str) -> Item:
    return Item(what, tables, "SHARE UPDATE EXCLUSIVE at most", "nobody", seconds, space, statements)


def _purpose(step: steps.Step) -> str:
    """What the head of a script says that it does: its first sentence, and the paragraph after it."""
    head = steps.text(step.script).partition("\n\n")[0]
    paragraphs = [
        " ".join(line.removeprefix("--").strip() for line in paragraph.splitlines())
        for paragraph in re.split(r"^--$\n", head, flags=re.MULTILINE)
    ]
    return " ".join(paragraphs[:2]).removesuffix(".")


def _locked(step: steps.Step) -> tuple[str, ...]:
    """The tables that a script locks."""
    match = re.search(r"^LOCK TABLE (.+?)\sIN ", steps.text(step.script), re.DOTALL | re.MULTILINE)
    return tuple(re.findall(r"\w+", match[1])) if match else ()


def _step_s(estimate: Estimate, found: catalog.Catalog, step: steps.Step) -> float:
    there = estimate.there
    order = [
        "table patientrecyclingorder" in catalog.expected(max(n, 1), with_storage=False)
        for n in (step.start, step.end)
    ]
    converts = _PATIENT_S if order[0] is not order[1] else 0
    counts = step.start == 0 and "table globalintegers" not in found
    rows = there.rows("resources") + there.rows("attachedfiles") if counts else 0
    return _STEP_S + estimate.seconds(there.patients, converts) + estimate.seconds(rows, _RECOUNT_S)


def _speed(conn: Connection) -> float:
    """How much slower this server reads than the one on which the times were measured; at best of two, to be fair."""
    taken = []
    with conn.cursor() as cur:
        for _ in range(2):
            started = time.monotonic()
            cur.execute(_TEST, (_TEST_ROWS,))
            (rows,) = cur.fetchone() or (0,)
            taken.append(time.monotonic() - started)
    return min(max(min(taken) / _TEST_S, _FASTEST), _SLOWEST) if rows == _TEST_ROWS else 1.0
