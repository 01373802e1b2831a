"""Rows of SQLite as lines of COPY: built by SQLite itself, block by block; odd blocks row by row in Python.

A block is sent as SQLite made it if all its lines are there, it is valid UTF-8, and nothing in it means anything to
COPY. That is checked for the block as a whole, which costs next to nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from pgorthanc_cli.migrate import tree
from pgorthanc_cli.migrate.model import Finding, Outcome
from pgorthanc_cli.migrate.source import Source, connect
from pgorthanc_cli.migrate.tables import (  # fmt: skip
    BY_SOURCE,
    DELIMITER,
    NULL,
    QUOTE,
    TABLES,
    Column,
    Resource,
    Table,
    Unusable,
    field_text,
    label,
    storable_text,
)

_BLOCK_ROWS, _BLOCKS = 5_000, 200  # rows of a block, or blocks of a piece
_CHUNK_IDS, _CHUNK_FILES = 200_000, 5_000
_SPARSE = 10  # so many times more ids than rows: much was deleted, or the ids are damaged
_META = tuple(character.encode() for character in (QUOTE, "\r", "\0"))
_LAST_INT4 = 2**31 - 1  # the plugin reads a place in the recycling order as such, too

RESOURCES, RECYCLING = "Resources", "PatientRecyclingOrder"
"""What has rules of its own, by its name in SQLite."""

_PLACES = """
    WITH member (id, patient) AS (
        SELECT internalId, internalId FROM tree WHERE resourceType = 1
        UNION ALL
        SELECT loser, survivor FROM moved JOIN tree ON internalId = survivor AND resourceType = 1)
    SELECT patient, CASE WHEN min(seq IS NOT NULL) THEN max(seq) END
        FROM member LEFT JOIN (SELECT patientId, max(seq) AS seq FROM PatientRecyclingOrder GROUP BY patientId) place
            ON place.patientId = member.id
        GROUP BY patient ORDER BY 2, patient"""
_NO_PLACES = """
    WITH placed AS (
        SELECT seq, patientId, internalId AS patient
            FROM PatientRecyclingOrder LEFT JOIN moved ON loser = patientId
            LEFT JOIN tree ON internalId = coalesce(survivor, patientId) AND resourceType = 1)
    SELECT seq, patient IS NOT NULL, (SELECT publicId FROM Resources WHERE internalId = patientId)
        FROM placed WHERE patient IS NULL OR seq NOT IN (SELECT max(seq) FROM placed GROUP BY patient)
        ORDER BY seq"""


class Reader:
    """Reads one source for one revision of the index; every process has its own."""

    def __init__(
        self, source: Source, tree_file: Path | None, revision: int, targets: Sequence[str] | None = None
    ) -> None:
        """`tree_file` is that of `tree.survey`, `targets` are the tables of PostgreSQL (None: all of the revision)."""
        self.targets = targets
        self.source = source
        self.revision = revision
        self.conn = connect(source.file)
        tree.attach(self.conn, tree_file)

    def chunks(self, *, files: bool = False) -> list[tuple[str, int, int]]:
        """The work: table of the source, and the ids after the first up to the second number; `files`: small pieces."""
        if files:
            return [("AttachedFiles", *bounds) for bounds in self._ranges("AttachedFiles", step=_CHUNK_FILES)]
        found = [(table.source, *bounds) for table in self.tables() for bounds in self._ranges(table.source)]
        resources = [(RESOURCES, *bounds) for bounds in self._ranges("tree", "internalId")]
        return [*found, *resources, (RECYCLING, 0, 0)]

    def tables(self) -> list[Table]:
        """The tables that are there and have a place in the revision."""
        return [
            table
            for table in TABLES
            if self.source.has(table.source)
            and table.since <= self.revision
            and (self.targets is None or table.target in self.targets)
        ]

    def columns(self, name: str) -> tuple[str, tuple[str, ...]]:
        """The table of PostgreSQL that a piece of work goes to, and its columns in the order of the lines."""
        if name == RESOURCES:
            count = ("childcount",) if self.revision >= 3 else ()
            return "resources", ("internalid", "resourcetype", "publicid", "parentid", *count)
        if name == RECYCLING:
            if self.revision >= 6:
                return self.columns("Metadata")
            return "patientrecyclingorder", ("seq", "patientid")
        table = BY_SOURCE[name]
        return table.target, tuple(column.target for column in self._columns(table))

    def blocks(self, name: str, after: int, last: int, outcome: Outcome) -> Iterator[bytes]:
        """The lines of a piece of work, many at a time; what becomes of the rows is noted in `outcome`."""
        if name == RECYCLING:
            order = self._recycling(outcome)
            while some := list(itertools.islice(order, _BLOCK_ROWS)):
                yield _counted(b"".join(map(_line, some)), len(some), outcome)
            return
        query = self._resource_lines() if name == RESOURCES else self._lines(BY_SOURCE[name])
        plain = self._plain(name)
        step = -(-(last - after) // _BLOCKS)
        for start in range(after, last, step):
            end = min(start + step, last)
            (rows, block), *_ = self.conn.execute(query, (start, end))
            if rows and plain(block, rows):
                yield _counted(block + b"\n", rows, outcome)
            elif rows:
                lines = list(self._odd(name, start, end, outcome))
                yield _counted(b"".join(lines), len(lines), outcome)

    def _ranges(self, table: str, key: str = "rowid", step: int = _CHUNK_IDS) -> Iterator[tuple[int, int]]:
        """Pieces of a table of about so many rows."""
        bounds = f"SELECT (SELECT min({key}) FROM {table}), (SELECT max({key}) FROM {table})"
        first, last = self.conn.execute(bounds).fetchone()
        (rows,) = self.conn.execute(f"SELECT count(*) FROM {table}").fetchone()
        if not rows:
            return
        if last - first < _SPARSE * (rows + step):
            step = step * (last - first + 1) // rows
            yield from ((start, min(start + step, last)) for start in range(first - 1, last, step))
            return
        numbered = f"SELECT {key} AS id, row_number() OVER (ORDER BY {key}) - 1 AS place FROM {table}"
        ends = self.conn.execute(f"SELECT max(id) FROM ({numbered}) GROUP BY place / ? ORDER BY 1", (step,))
        for (end,) in ends.fetchall():
            yield first - 1, end
            first = end + 1

    def _plain(self, name: str) -> Callable[[bytes, int], bool]:
        """Tells whether a block of so many lines can be sent as it is."""
        delimiters = len(self.columns(name)[1]) - 1
        optional = name == RESOURCES or any(column.optional for column in BY_SOURCE[name].columns)
        meaning = _META if optional else (*_META, NULL.encode())

        def plain(block: bytes, rows: int) -> bool:
            try:
                block.decode()
            except UnicodeDecodeError:
                return False
            return (
                block.count(b"\n") == rows - 1
                and block.count(DELIMITER.encode()) == rows * delimiters
                and not any(character in block for character in meaning)
            )

        return plain

    def _columns(self, table: Table) -> list[Column]:
        return [column for column in table.columns if column.since <= self.revision]

    def _lines(self, table: Table) -> str:
        columns = self._columns(table)
        numbers = list(itertools.takewhile(lambda column: column.number, columns))
        head = f"printf('{f'%d{DELIMITER}' * len(numbers)}', {', '.join(c.expression for c in numbers)})"
        rest = f" || '{DELIMITER}' || ".join(column.expression for column in columns[len(numbers) :])
        line = f"{head} || {rest}" if numbers else rest
        sound = " AND ".join((table.condition, *(column.condition for column in columns)))
        query = f"CASE WHEN {sound} THEN {line} END"
        for column in columns:
            if not self.source.has(table.source, column.source):
                query = re.sub(rf"\bt\.{column.source}\b", "NULL", query)
        rows = f"{table.source} t"
        if table.resource:  # an outer join takes a quarter less time than a subquery for each row
            rows += f" LEFT JOIN tree r ON r.internalId = t.{table.resource}"
        return _block(query, rows, "t.rowid")

    def _resource_lines(self) -> str:
        fields = ["t.internalId", "(t.resourceType - 1)", "t.publicId", f"coalesce(t.parentId, '{NULL}')"]
        if self.revision >= 3:
            children = "SELECT count(*) FROM tree child WHERE child.parentId = t.internalId"
            fields.append(f"CASE t.resourceType WHEN 4 THEN 0 ELSE ({children}) END")
        return _block(f" || '{DELIMITER}' || ".join(fields), "tree t", "t.internalId")

    def _odd(self, name: str, after: int, last: int, outcome: Outcome) -> Iterator[bytes]:
        """The lines of a block that holds something odd."""
        table = BY_SOURCE[name]
        for row in self._rows(table, after, last):
            done: list[str] = []
            shown = label(table, row)
            try:
                resource = self._resource(table, row, done)
                table.check(row)
                values = [c.convert(row[c.source], done, resource) for c in self._columns(table)]
            except Unusable as why:
                outcome.skipped.append(Finding(name, tree.name(row["_owner"]), f"{shown} skipped: {why}"))
                continue
            if done:
                public_id = resource.public_id if resource else tree.name(row.get("publicId"))
                outcome.repaired.append(Finding(name, public_id, f"{shown}: {'; '.join(done)}"))
            yield _line(values)

    def _rows(self, table: Table, after: int, last: int) -> Iterator[dict[str, Any]]:
        names = [column.source for column in self._columns(table)]
        there = [f"t.{n}" if self.source.has(table.source, n) else "NULL" for n in names]
        owner, joins = ["NULL"] * 6, ""
        if table.resource:
            owner = [
                "r.internalId", "r.resourceType", "r.publicId", "moved.loser", table.stays,
                f"(SELECT publicId FROM Resources WHERE internalId = t.{table.resource})",
            ]  # fmt: skip
            joins = f"""LEFT JOIN moved ON moved.loser = t.{table.resource}
                LEFT JOIN tree r ON r.internalId = coalesce(moved.survivor, t.{table.resource})"""
        cursor = self.conn.execute(
            f"SELECT {', '.join(there + owner)} FROM {table.source} t {joins}"
            " WHERE t.rowid > ? AND t.rowid <= ? ORDER BY t.rowid",
            (after, last),
        )
        for row in cursor:
            yield dict(
                zip([*names, "_id", "_level", "_public_id", "_loser", "_stays", "_owner"], row, strict=True)
            )

    def _resource(self, table: Table, row: dict[str, Any], done: list[str]) -> Resource | None:
        """What the row belongs to, if it belongs to something.

        Raises:
            Unusable: It belongs to a resource that was merged into another one, which has such a row already.
        """
        if row["_id"] is None:
            return None
        if row["_loser"] is not None:
            if row["_stays"] or self._taken(table, row):
                raise Unusable("the resource that its own was merged with has one already")
            done.append("moved to the resource of the same public id")
        return Resource(row["_id"], row["_level"], tree.name(row["_public_id"]))

    def _taken(self, table: Table, row: dict[str, Any]) -> bool:
        if not table.key:
            return False
        # As text: a text is read as bytes, and a number is compared as such whatever it is cast to.
        same = " AND ".join(f"o.{name} IS CAST(? AS TEXT)" for name in table.key)
        found = self.conn.execute(
            f"""SELECT 1 FROM {table.source} o WHERE {same} AND o.{table.resource} IN (
                    SELECT ? UNION SELECT loser FROM moved WHERE survivor = ? AND loser < ?)""",
            (*(row[name] for name in table.key), row["_id"], row["_id"], row["_loser"]),
        )
        return found.fetchone() is not None

    def _recycling(self, outcome: Outcome) -> Iterator[tuple[object, ...]]:
        """The order in which patients are given up, as rows of the revision's table."""
        for seq, known, public_id in self.conn.execute(_NO_PLACES):
            why = "the patient has a later one" if known else "it is of no patient"
            outcome.skipped.append(Finding(RECYCLING, tree.name(public_id), f"place {seq} skipped: {why}"))
        for place, patient, protected in self._places():
            if self.revision < 6:
                yield from () if protected else ((place, patient),)
                continue
            yield patient, 19, place, 0
            if protected:
                yield patient, 18, "true", 0

    def _places(self) -> Iterator[tuple[int, int, bool]]:
        """Place, patient, whether it is protected; the protected ones come last, as no order is known of them."""
        (patients,) = self.conn.execute("SELECT count(*) FROM tree WHERE resourceType = 1").fetchone()
        highest = self.highest(RECYCLING)
        renumber = self.revision >= 6 and highest + patients > _LAST_INT4
        numbers = itertools.count(1 if renumber else highest + 1)
        for patient, seq in self.conn.execute(_PLACES):
            yield next(numbers) if seq is None or renumber else seq, patient, seq is None

    def counts(self) -> Iterator[tuple[str, int]]:
        """How many rows there are to convert, by table of the source."""
        for name, table in ((RESOURCES, "tree"), *((table.source, table.source) for table in self.tables())):
            (rows,) = self.conn.execute(f"SELECT count(*) FROM {table}").fetchone()
            yield name, rows

    def without_place(self, revision: int) -> Iterator[tuple[str, int]]:
        """What a revision cannot hold: the table, and how many of its rows."""
        lost = [(table.source, table.source, "1") for table in TABLES if table.since > revision]
        if revision < 5 and self.source.has("AttachedFiles", "customData"):
            lost.append(("customData", "AttachedFiles", "length(customData) > 0"))
        if self.targets is not None and "labels" not in self.targets:
            lost.append(("Labels", "Labels", "1"))
        for name, table, condition in lost:
            if self.source.has(table):
                (count,) = self.conn.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()
                if count:
                    yield name, count

    def highest(self, table: str) -> int:
        """The highest number that a table of the source has given, or holds."""
        key = "id" if table == "Queues" else "internalId" if table == RESOURCES else "seq"
        there = (
            self.conn.execute(f"SELECT max({key}) FROM {table}").fetchone()[0]
            if self.source.has(table)
            else 0
        )
        return max(self.source.highest.get(table, 0), there or 0, 0)

    def properties(self, outcome: Outcome) -> tuple[dict[int, str], dict[int, str]]:
        """The properties that are kept: those of the database, and those of the one server (SQLITE.md 3)."""
        shared: dict[int, str] = {}
        own: dict[int, str] = {}
        for number, value in self.conn.execute("SELECT property, value FROM GlobalProperties ORDER BY 1"):
            if number in (1, 2, 4, 6, 7) or 10 <= number <= 19:
                continue
            done: list[str] = []
            text = "" if value is None else storable_text(value, "value", done, strict=False)
            if number in (3, 5, 20, 21) or 1024 <= number <= _LAST_INT4:
                (shared if number == 3 else own)[number] = text
                outcome.repaired += [
                    Finding("GlobalProperties", None, f"property {number}: {what}") for what in done
                ]
            else:
                outcome.skipped.append(
                    Finding(
                        "GlobalProperties", None, f"property {number} skipped: no release of Orthanc knows it"
                    )
                )
        return shared, own


def _block(line: str, rows: str, key: str) -> str:
    """The query of so many lines as one text; an odd one is a quote, which no other block holds."""
    return (
        f"SELECT count(*), group_concat(coalesce({line}, '{QUOTE}'), '\n') FROM {rows}"
        f" WHERE {key} > ? AND {key} <= ?"
    )


def _line(values: Iterable[object]) -> bytes:
    return (DELIMITER.join(map(field_text, values)) + "\n").encode()


def checksum(block: bytes) -> int:
    """The sum of the CRC-32 of all lines, so that their order does not count."""
    return sum(map(crc32, block.splitlines(keepends=True)))


def _counted(block: bytes, rows: int, outcome: Outcome) -> bytes:
    outcome.rows += rows
    outcome.checksum += checksum(block)
    return block
