"""Read rows of SQLite as lines for COPY: made by SQLite itself, block by block; unusual blocks row by row in Python.

A block is sent as SQLite has made it if all its lines exist, it is valid UTF-8, and
nothing in it means anything to COPY. This is checked for a block as a whole, which costs
next to nothing.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.migrate.model import LEVELS, Finding, Outcome
from pgorthanc_cli.migrate.source import (  # fmt: skip
    DELIMITER,
    NULL,
    QUOTE,
    Attachment,
    Piece,
    TargetTables,
    checksum,
)
from pgorthanc_cli.migrate.sources.sqlite import tree
from pgorthanc_cli.migrate.sources.sqlite.tables import (  # fmt: skip
    BY_SOURCE,
    TABLES,
    Column,
    Resource,
    Table,
    UnconvertibleRow,
    field_text,
    row_label,
    storable_text,
)

if TYPE_CHECKING:
    from pgorthanc_cli.migrate.sources.sqlite.index import SQLiteIndex

_BLOCK_ROWS, _BLOCKS = 5_000, 200  # rows per block of the recycling order; blocks per piece of a table
_PIECE_ROWS, _PIECE_FILES = 200_000, 5_000
# 10 times more ids than rows: many rows were deleted, or the ids are damaged.
_SPARSE = 10
# COPY refuses a carriage return that is not quoted, and PostgreSQL a NUL.
_SPECIAL = tuple(character.encode() for character in (QUOTE, "\r", "\0"))
# The plugin reads the number in the recycling order as a 32-bit integer, too.
_MAX_INT4 = 2**31 - 1

# The two tables that need more than a conversion of their columns.
RESOURCES, RECYCLING = "Resources", "PatientRecyclingOrder"
# Metadata of a patient in newer revisions: protected from recycling, and the place in the
# recycling order.
_PROTECTED, _RECYCLING_ORDER = 18, 19

# The table of the source, and its column, whose values PostgreSQL takes from a sequence.
_SEQUENCES = {
    "resources": (RESOURCES, "internalId"),
    "changes": ("Changes", "seq"),
    "exportedresources": ("ExportedResources", "seq"),
    "patientrecyclingorder": (RECYCLING, "seq"),
    "queues": ("Queues", "id"),
}


class SQLiteReader:
    """Reads one index for one set of target tables; see `migrate.source.Reader`."""

    def __init__(self, index: SQLiteIndex, conn: sqlite3.Connection, tables: TargetTables) -> None:
        self._index = index
        self._conn = conn
        self._targets = tables
        tree.attach(conn, index.tree)

    def pieces(self) -> list[Piece]:
        """Return all rows to convert, as pieces of about the same size."""
        pieces = [piece for table in self._tables() for piece in self._split(table.source, table.source)]
        pieces += self._split(RESOURCES, "tree", "internalId")
        return [*pieces, Piece(RECYCLING, 0, 0)]

    def attachment_pieces(self) -> list[Piece]:
        """Return all attachments, as smaller pieces."""
        return list(self._split("AttachedFiles", "AttachedFiles", rows_per_piece=_PIECE_FILES))

    def _split(
        self, name: str, table: str, key: str = "rowid", rows_per_piece: int = _PIECE_ROWS
    ) -> Iterator[Piece]:
        bounds = f"SELECT (SELECT min({key}) FROM {table}), (SELECT max({key}) FROM {table})"
        first, last = self._conn.execute(bounds).fetchone()
        rows = self._value(f"SELECT count(*) FROM {table}")
        if not rows:
            return
        if last - first < _SPARSE * (rows + rows_per_piece):
            step = rows_per_piece * (last - first + 1) // rows
            for start in range(first - 1, last, step):
                yield Piece(name, start, min(start + step, last))
            return
        numbered = f"SELECT {key} AS id, row_number() OVER (ORDER BY {key}) - 1 AS number FROM {table}"
        query = f"SELECT max(id) FROM ({numbered}) GROUP BY number / ? ORDER BY 1"
        for (end,) in self._conn.execute(query, (rows_per_piece,)).fetchall():
            yield Piece(name, first - 1, end)
            first = end + 1

    def _tables(self) -> list[Table]:
        """Return the tables that exist on both sides."""
        return [t for t in TABLES if self._index.has(t.source) and t.target in self._targets]

    def _columns(self, table: Table) -> list[Column]:
        return [column for column in table.columns if column.target in self._targets[table.target]]

    @property
    def _has_recycling_table(self) -> bool:
        return "patientrecyclingorder" in self._targets

    def target(self, table: str) -> str:
        """Return the table of PostgreSQL that a table of the source goes to."""
        if table == RESOURCES:
            return "resources"
        if table == RECYCLING:
            return "patientrecyclingorder" if self._has_recycling_table else "metadata"
        return BY_SOURCE[table].target

    def columns(self, target: str) -> tuple[str, ...]:
        """Return the columns of a table of PostgreSQL in the order of the lines."""
        if target == "resources":
            child_count = ("childcount",) if "childcount" in self._targets["resources"] else ()
            return ("internalid", "resourcetype", "publicid", "parentid", *child_count)
        if target == "patientrecyclingorder":
            return ("seq", "patientid")
        (table,) = (table for table in TABLES if table.target == target)
        return tuple(column.target for column in self._columns(table))

    def rows(self, piece: Piece, outcome: Outcome) -> Iterator[bytes]:
        """Yield blocks of lines for COPY, and count rows and findings in `outcome`."""
        if piece.table == RECYCLING:
            order = self._recycling_order(outcome)
            while rows := list(itertools.islice(order, _BLOCK_ROWS)):
                yield _counted(b"".join(map(_line, rows)), len(rows), outcome)
            return
        query = self._resource_query() if piece.table == RESOURCES else self._query(BY_SOURCE[piece.table])
        is_clean = self._clean_check(piece.table)
        step = -(-(piece.last - piece.after) // _BLOCKS)
        for start in range(piece.after, piece.last, step):
            end = min(start + step, piece.last)
            (number, block), *_ = self._conn.execute(query, (start, end))
            if number and is_clean(block, number):
                yield _counted(block + b"\n", number, outcome)
            elif number:
                lines = list(self._converted_one_by_one(Piece(piece.table, start, end), outcome))
                yield _counted(b"".join(lines), len(lines), outcome)

    def _clean_check(self, name: str) -> Callable[[bytes, int], bool]:
        """Return a function that finds out whether a block of so many lines can be sent as it is."""
        delimiters = len(self.columns(self.target(name))) - 1
        nullable = name == RESOURCES or any(column.nullable for column in BY_SOURCE[name].columns)
        special = _SPECIAL if nullable else (*_SPECIAL, NULL.encode())

        def is_clean(block: bytes, rows: int) -> bool:
            try:
                block.decode()
            except UnicodeDecodeError:
                return False
            return (
                block.count(b"\n") == rows - 1
                and block.count(DELIMITER.encode()) == rows * delimiters
                and not any(character in block for character in special)
            )

        return is_clean

    def _query(self, table: Table) -> str:
        """Return the query for a block of a table: each line is one expression, NULL where a row is unusual."""
        columns = self._columns(table)
        numbers = list(itertools.takewhile(lambda column: column.number, columns))
        head = f"printf('{f'%d{DELIMITER}' * len(numbers)}', {', '.join(c.expression for c in numbers)})"
        rest = f" || '{DELIMITER}' || ".join(column.expression for column in columns[len(numbers) :])
        line = f"{head} || {rest}" if numbers else rest
        clean = " AND ".join((table.condition, *(column.condition for column in columns)))
        expression = f"CASE WHEN {clean} THEN {line} END"
        # An older release of Orthanc does not have all of them.
        for column in columns:
            if not self._index.has(table.source, column.source):
                expression = re.sub(rf"\bt\.{column.source}\b", "NULL", expression)
        rows = f"{table.source} t"
        # An outer join takes a quarter less time than a subquery for each row.
        if table.resource:
            rows += f" LEFT JOIN tree r ON r.internalId = t.{table.resource}"
        return _block_query(expression, rows, "t.rowid")

    def _resource_query(self) -> str:
        fields = ["t.internalId", "(t.resourceType - 1)", "t.publicId", f"coalesce(t.parentId, '{NULL}')"]
        if "childcount" in self._targets["resources"]:
            children = "SELECT count(*) FROM tree child WHERE child.parentId = t.internalId"
            fields.append(f"CASE t.resourceType WHEN 4 THEN 0 ELSE ({children}) END")
        return _block_query(f" || '{DELIMITER}' || ".join(fields), "tree t", "t.internalId")

    def _converted_one_by_one(self, piece: Piece, outcome: Outcome) -> Iterator[bytes]:
        """Yield the lines of a block in which something is unusual."""
        table = BY_SOURCE[piece.table]
        columns = self._columns(table)
        for row in self._raw_rows(table, piece):
            repairs: list[str] = []
            label = row_label(table, row)
            try:
                resource = self._resource(table, row, repairs)
                table.check(row)
                values = [column.convert(row[column.source], repairs, resource) for column in columns]
            except UnconvertibleRow as why:
                owner = tree.public_id_text(row["_owner"])
                outcome.skipped.append(Finding(table.source, owner, f"{label} skipped: {why}"))
                continue
            if repairs:
                public_id = resource.public_id if resource else tree.public_id_text(row.get("publicId"))
                outcome.repaired.append(Finding(table.source, public_id, f"{label}: {'; '.join(repairs)}"))
            yield _line(values)

    def _raw_rows(self, table: Table, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield rows by name of column; names with an underscore describe the resource of the row."""
        names = [column.source for column in self._columns(table)]
        values = [f"t.{name}" if self._index.has(table.source, name) else "NULL" for name in names]
        resource, joins = ["NULL"] * 6, ""
        if table.resource:
            resource = [
                "r.internalId", "r.resourceType", "r.publicId", "moved.loser", table.stays,
                f"(SELECT publicId FROM Resources WHERE internalId = t.{table.resource})",
            ]  # fmt: skip
            joins = f"""LEFT JOIN moved ON moved.loser = t.{table.resource}
                LEFT JOIN tree r ON r.internalId = coalesce(moved.survivor, t.{table.resource})"""
        cursor = self._conn.execute(
            f"SELECT {', '.join(values + resource)} FROM {table.source} t {joins}"
            " WHERE t.rowid > ? AND t.rowid <= ? ORDER BY t.rowid",
            (piece.after, piece.last),
        )
        keys = [*names, "_id", "_level", "_public_id", "_loser", "_stays", "_owner"]
        for row in cursor:
            yield dict(zip(keys, row, strict=True))

    def _resource(self, table: Table, row: dict[str, Any], repairs: list[str]) -> Resource | None:
        """Return the resource that a row belongs to, if any.

        Raises:
            UnconvertibleRow: Its resource was merged into another one, which already has
                such a row.
        """
        if row["_id"] is None:
            return None
        if row["_loser"] is not None:
            if row["_stays"] or self._is_taken(table, row):
                raise UnconvertibleRow("the resource that its own was merged with has one already")
            repairs.append("moved to the resource of the same public id")
        return Resource(row["_id"], row["_level"], tree.public_id_text(row["_public_id"]))

    def _is_taken(self, table: Table, row: dict[str, Any]) -> bool:
        """Return whether a resource, or another one that was merged into it before, has a row of the same key."""
        if not table.key:
            return False
        # As text: a text is read as bytes, and a number is compared as such whatever it
        # is cast to.
        same_key = " AND ".join(f"other.{name} IS CAST(? AS TEXT)" for name in table.key)
        rows = self._conn.execute(
            f"""SELECT 1 FROM {table.source} other WHERE {same_key} AND other.{table.resource} IN (
                    SELECT ? UNION SELECT loser FROM moved WHERE survivor = ? AND loser < ?)""",
            (*(row[name] for name in table.key), row["_id"], row["_id"], row["_loser"]),
        )
        return rows.fetchone() is not None

    def _recycling_order(self, outcome: Outcome) -> Iterator[tuple[object, ...]]:
        """Yield the order in which patients are recycled, as rows of the target table."""
        for seq, is_patient, public_id in self._conn.execute(
            db.statement(__package__, "recycling_skipped.sql")
        ):
            why = "the patient has a later one" if is_patient else "it is of no patient"
            public_id = tree.public_id_text(public_id)
            outcome.skipped.append(Finding(RECYCLING, public_id, f"place {seq} skipped: {why}"))
        for number, patient, protected in self._recycling_numbers():
            if not self._has_recycling_table:
                yield patient, _RECYCLING_ORDER, number, 0
                if protected:
                    yield patient, _PROTECTED, "true", 0
            elif not protected:
                yield number, patient

    def _recycling_numbers(self) -> Iterator[tuple[int, int, bool]]:
        """Yield number, patient and whether it is protected.

        Protected patients come last: SQLite knows no order of them.
        """
        patients = self._value("SELECT count(*) FROM tree WHERE resourceType = 1")
        highest = self.highest_ids()["patientrecyclingorder"]
        renumber = not self._has_recycling_table and highest + patients > _MAX_INT4
        numbers = itertools.count(1 if renumber else highest + 1)
        for patient, seq in self._conn.execute(db.statement(__package__, "recycling_order.sql")):
            yield next(numbers) if seq is None or renumber else seq, patient, seq is None

    def attachments(self, piece: Piece) -> Iterator[Attachment]:
        """Yield the attachments of a piece that belong to a resource."""
        has_custom_data = self._index.has("AttachedFiles", "customData")
        custom = "CAST(coalesce(customData, '') AS BLOB)" if has_custom_data else "CAST('' AS BLOB)"
        query = f"""
            SELECT uuid, fileType, compressedSize, compressedMD5, {custom} FROM AttachedFiles t
                WHERE rowid > ? AND rowid <= ? AND typeof(uuid) = 'text' AND typeof(compressedSize) = 'integer'
                    AND EXISTS (SELECT 1 FROM tree WHERE tree.internalId = t.id) ORDER BY rowid"""
        for uuid, file_type, size, md5, custom_data in self._conn.execute(query, (piece.after, piece.last)):
            name = uuid.decode("utf-8", "replace")
            yield Attachment(name, file_type, size, (md5 or b"").decode("latin-1"), custom_data)

    def row_counts(self) -> dict[str, int]:
        """Return the number of rows to convert by table of the source."""
        counts = {RESOURCES: self._value("SELECT count(*) FROM tree")}
        for table in self._tables():
            counts[table.source] = self._value(f"SELECT count(*) FROM {table.source}")
        return counts

    def resource_counts(self) -> dict[str, int]:
        """Return the number of patients, studies, series and instances to convert."""
        counts = "SELECT resourceType, count(*) FROM tree GROUP BY resourceType"
        by_level = dict(self._conn.execute(counts).fetchall())
        return {name: by_level.get(level, 0) for level, name in enumerate(LEVELS, 1)}

    def unsupported(self) -> dict[str, int]:
        """Return the tables and columns that the target does not have, with the rows that would be lost."""
        lost = [(t.source, t.source, "1") for t in TABLES if t.target not in self._targets]
        if "customdata" not in self._targets["attachedfiles"] and self._index.has(
            "AttachedFiles", "customData"
        ):
            lost.append(("customData", "AttachedFiles", "length(customData) > 0"))
        counts = {
            name: self._value(f"SELECT count(*) FROM {table} WHERE {condition}")
            for name, table, condition in lost
            if self._index.has(table)
        }
        return {name: count for name, count in counts.items() if count}

    def highest_ids(self) -> dict[str, int]:
        """Return the highest id ever given, by table of PostgreSQL."""
        highest = {}
        for target, (table, key) in _SEQUENCES.items():
            # A row can have a higher id than sqlite_sequence says, if that was damaged.
            existing = self._value(f"SELECT max({key}) FROM {table}") if self._index.has(table) else 0
            highest[target] = max(self._index.sequences.get(table, 0), existing or 0, 0)
        return highest

    def properties(self, outcome: Outcome) -> tuple[dict[int, str], dict[int, str]]:
        """Return the properties of the database, and those of its one server (SQLITE.md 3)."""
        shared: dict[int, str] = {}
        own: dict[int, str] = {}
        for number, value in self._conn.execute("SELECT property, value FROM GlobalProperties ORDER BY 1"):
            if number in (1, 2, 4, 6, 7) or 10 <= number <= 19:
                # They describe the schema of SQLite, or belong to the PostgreSQL plugin.
                continue
            if number in (3, 5, 20, 21) or 1024 <= number <= _MAX_INT4:
                repairs: list[str] = []
                text = "" if value is None else storable_text(value, "value", repairs, strict=False)
                (shared if number == 3 else own)[number] = text
                for repair in repairs:
                    finding = Finding("GlobalProperties", None, f"property {number}: {repair}")
                    outcome.repaired.append(finding)
            else:
                what = f"property {number} skipped: no release of Orthanc knows it"
                outcome.skipped.append(Finding("GlobalProperties", None, what))
        return shared, own

    def _value(self, query: str) -> Any:
        return self._conn.execute(query).fetchone()[0]

    def interrupt(self) -> None:
        """End a query of another thread."""
        self._conn.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()


def _block_query(line: str, rows: str, key: str) -> str:
    """Return the query for the number of lines and all lines of a block as one text.

    A line that is NULL becomes a quote, which no clean block contains.
    """
    return (
        f"SELECT count(*), group_concat(coalesce({line}, '{QUOTE}'), '\n') FROM {rows}"
        f" WHERE {key} > ? AND {key} <= ?"
    )


def _line(values: Iterable[object]) -> bytes:
    return (DELIMITER.join(map(field_text, values)) + "\n").encode()


def _counted(block: bytes, rows: int, outcome: Outcome) -> bytes:
    outcome.rows += rows
    outcome.checksum += checksum(block)
    return block
