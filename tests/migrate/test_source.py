"""The seam for another source: all that it must have is in `migrate.source`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli import db, migrate
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.migrate.model import LEVELS, Outcome
from pgorthanc_cli.migrate.source import (  # fmt: skip
    DELIMITER,
    NULL,
    Attachment,
    Piece,
    Reader,
    Source,
    TargetTables,
    checksum,
)
from pgorthanc_cli.schema import catalog
from tests.support import migrating
from tests.support.schemas import rows

RESOURCES: list[dict[str, object]] = [
    {
        "internalid": number,
        "resourcetype": number - 1,
        "publicid": f"resource-{number}",
        "parentid": number - 1 or None,
        "childcount": int(number < 4),
    }
    for number in (1, 2, 3, 4)
]
METADATA: list[dict[str, object]] = [
    {"id": 1, "type": 18, "value": "true", "revision": 0},  # the patient is protected
    {"id": 1, "type": 19, "value": "1", "revision": 0},
]
CONTENT = {"resources": RESOURCES, "metadata": METADATA}


@dataclass(frozen=True)
class MemorySource:
    path: Path
    scratch: Path
    fingerprint: str = "of memory"
    unknown_tables: dict[str, int] = field(default_factory=dict)

    def tables(self) -> list[str]:
        return list(CONTENT)

    def check_table(self, table: str, *, thorough: bool) -> list[str]:
        return []

    def survey(self) -> tuple[Source, Outcome]:
        return self, Outcome()

    def reader(self, tables: TargetTables) -> Reader:
        return MemoryReader(tables)

    def errors(self) -> AbstractContextManager[None]:
        return nullcontext()

    def damaged(self, problem: str) -> PgOrthancError:
        return PgOrthancError(problem)


class MemoryReader:
    def __init__(self, tables: TargetTables) -> None:
        self._tables = tables

    def pieces(self) -> list[Piece]:
        return [Piece(table, 0, len(content)) for table, content in CONTENT.items()]

    def attachment_pieces(self) -> list[Piece]:
        return []

    def target(self, table: str) -> str:
        return table

    def columns(self, target: str) -> tuple[str, ...]:
        return tuple(sorted(self._tables[target]))

    def rows(self, piece: Piece, outcome: Outcome) -> Iterator[bytes]:
        for row in CONTENT[piece.table]:
            values = [row[column] for column in self.columns(piece.table)]
            texts = (NULL if value is None else str(value) for value in values)
            line = (DELIMITER.join(texts) + "\n").encode()
            outcome.rows += 1
            outcome.checksum += checksum(line)
            yield line

    def attachments(self, piece: Piece) -> Iterator[Attachment]:
        yield from ()

    def row_counts(self) -> dict[str, int]:
        return {table: len(content) for table, content in CONTENT.items()}

    def resource_counts(self) -> dict[str, int]:
        return dict.fromkeys(LEVELS, 1)

    def unsupported(self) -> dict[str, int]:
        return {}

    def highest_ids(self) -> dict[str, int]:
        tables = ("resources", "changes", "exportedresources", "patientrecyclingorder", "queues")
        return {table: 4 if table == "resources" else 0 for table in tables}

    def properties(self, outcome: Outcome) -> tuple[dict[int, str], dict[int, str]]:
        return {}, {21: "of the server"}

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_another_source_becomes_an_index(empty: db.Target, tmp_path: Path) -> None:
    @contextmanager
    def open_source(path: Path) -> Iterator[Source]:
        yield MemorySource(path, tmp_path)

    settings = migrate.ConversionSettings(jobs=1)
    converted = migrate.convert(empty, tmp_path / "memory", settings, open_source=open_source)
    assert converted.verified
    assert converted.resources == dict.fromkeys(LEVELS, 1)
    assert (converted.rows["resources"], converted.rows["metadata"]) == (4, 2)
    migrating.require_index(empty, catalog.newest())
    assert rows(empty, "SELECT nextval('resources_internalid_seq')") == [(5,)]
    assert rows(empty, "SELECT value FROM serverproperties WHERE property = 21") == [("of the server",)]
