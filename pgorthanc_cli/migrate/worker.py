"""The work of a worker process: convert a piece, run a statement, read a table back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psycopg2.errors

from pgorthanc_cli import db, storage, workers
from pgorthanc_cli.db import encoding
from pgorthanc_cli.migrate import attachments, journal
from pgorthanc_cli.migrate.model import FileCheck, Outcome
from pgorthanc_cli.migrate.source import (  # fmt: skip
    COPY_OPTIONS,
    Attachment,
    Piece,
    Reader,
    Source,
    TargetTables,
    checksum,
)
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.verify import data

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from typing_extensions import Buffer

_READ_BYTES, _BUFFER_BYTES = 1 << 18, 1 << 20
_NO_TARGET = db.Target("")
_SESSION_SETTINGS = """
    SET bytea_output = hex;  -- as the source writes it, so that checksums agree
    SET synchronous_commit = off;  -- the parent's last transaction is committed and flushes all before it
    SET maintenance_work_mem = '256MB';
    SET work_mem = '64MB'
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What a worker needs to know.

    Attributes:
        source: The index.
        tables: The tables and columns that the target can hold.
        revision: Revision of the target.
        target: The database; unused by a check.
    """

    source: Source
    tables: TargetTables
    revision: int = 0
    target: db.Target = _NO_TARGET


class Worker:
    """Does pieces of work; opens its connections when it needs them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._reader: Reader | None = None
        self._conn: Connection | None = None
        self._encoding: str | None = None

    @property
    def reader(self) -> Reader:
        """The connection to the source."""
        if self._reader is None:
            self._reader = self.context.source.reader(self.context.tables)
            workers.at_halt(self._reader.interrupt)
        return self._reader

    @property
    def conn(self) -> Connection:
        """The connection to PostgreSQL."""
        if self._conn is None:
            self._conn = db.connect(self.context.target)
            workers.at_halt(self._conn.cancel)
            with self._conn, self._conn.cursor() as cur:
                cur.execute(_SESSION_SETTINGS)
        return self._conn

    @property
    def _copy_options(self) -> str:
        """UTF-8, labelled as the server labels the bytes that Orthanc itself sends."""
        if self._encoding is None:
            self._encoding = encoding.of_orthanc(self.conn)
        return f"{COPY_OPTIONS}, ENCODING '{self._encoding}'"

    def survey(self) -> tuple[Source, Outcome]:
        """Find the resources that can be converted, see `Source.survey`."""
        with self.context.source.errors():
            return self.context.source.survey()

    def check_table(self, table: str, *, thorough: bool) -> list[str]:
        """Return the problems with the structure of a table, see `Source.check_table`."""
        with self.context.source.errors():
            return self.context.source.check_table(table, thorough=thorough)

    def read(self, piece: Piece) -> Outcome:
        """Read a piece and return what would become of its rows.

        Raises:
            PgOrthancError: The source is damaged.
        """
        outcome = Outcome()
        with self.context.source.errors():
            for _ in self.reader.rows(piece, outcome):
                pass
        return outcome

    def load(self, piece: Piece) -> Outcome:
        """Copy a piece into its table and record that in the journal, in one transaction.

        Raises:
            PgOrthancError: The source is damaged, or PostgreSQL refuses the rows.
        """
        outcome = Outcome()
        table = self.reader.target(piece.table)
        columns = ", ".join(self.reader.columns(table))
        copy = f"COPY {table} ({columns}) FROM STDIN WITH ({self._copy_options})"
        with db.translate_errors(self.conn):
            try:
                with self.conn, self.conn.cursor() as cur:
                    with self.context.source.errors():
                        lines = _CopyInput(self.reader.rows(piece, outcome))
                        cur.copy_expert(copy, lines, _READ_BYTES)
                    journal.record(cur, str(piece), outcome)
            except psycopg2.errors.UniqueViolation:
                # A worker of a killed run was still alive and has committed this piece in
                # the meantime.
                with self.conn, self.conn.cursor() as cur:
                    return journal.outcome(cur, str(piece))
        return outcome

    def execute(self, statement: str) -> None:
        """Run one statement.

        Raises:
            PgOrthancError: PostgreSQL refuses it, or the source has rows with the same
                key.
        """
        try:
            with db.translate_errors(self.conn), self.conn, self.conn.cursor() as cur:
                try:
                    cur.execute(statement)
                except psycopg2.errors.UniqueViolation as error:
                    problem = f"rows of table {error.diag.table_name} have the same key"
                    raise self.context.source.damaged(problem) from None
        finally:
            # After an error the connection serves the next piece of work.
            self.conn.rollback()

    def read_back(self, table: str) -> tuple[int, int]:
        """Return the rows and the checksum of a table of PostgreSQL."""
        total = _Checksum()
        columns = ", ".join(self.reader.columns(table))
        copy = f"COPY {table} ({columns}) TO STDOUT WITH ({self._copy_options})"
        with db.translate_errors(self.conn), self.conn, self.conn.cursor() as cur:
            with io.BufferedWriter(total, _BUFFER_BYTES) as buffer:
                cur.copy_expert(copy, buffer)
            return cur.rowcount, total.checksum

    def violations(self) -> list[str]:
        """Return the violated invariants of the new index (SCHEMA.md 5)."""
        with db.translate_errors(self.conn), self.conn:
            objects = catalog.snapshot(self.conn, self.context.target.schema)
            findings = data.findings(self.conn, objects, self.context.revision, deep=True)
        return [str(finding) for finding in findings if finding.matters]

    def compare_files(
        self, piece: Piece, folder: Path, storages: Mapping[str, Path] | None, *, hashes: bool
    ) -> FileCheck:
        """Compare attachments with their files in the storage folder, or in those of a storage plugin."""
        area = storage.FilesystemArea(folder)
        pieces = self._attachments(piece)
        return attachments.compare(area, pieces, storages=storages, hashes=hashes)

    def copy_files(self, piece: Piece, folder: Path) -> FileCheck:
        """Copy the files of attachments into large objects."""
        area = storage.FilesystemArea(folder)
        with db.translate_errors(self.conn):
            return attachments.copy(self.conn, area, self._attachments(piece))

    def _attachments(self, piece: Piece) -> Iterator[Attachment]:
        with self.context.source.errors():
            yield from self.reader.attachments(piece)


class _CopyInput:
    """Blocks of lines as the file that COPY reads from; psycopg2 accepts blocks of any size."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    def read(self, size: int = -1) -> bytes:
        """Return the next block that is not empty: an empty one would be the end of the file."""
        return next(filter(None, self._blocks), b"")

    readline = read


class _Checksum(io.RawIOBase):
    """Sums up the lines that COPY writes; an io.BufferedWriter gathers them into larger blocks."""

    def __init__(self) -> None:
        self.checksum = 0
        self._incomplete_line = b""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, block: Buffer) -> int:
        """Add the lines of a block; the last one may continue in the next block."""
        content = bytes(block)
        # A block may end anywhere; the rest of its last line comes with the next block.
        lines, end, self._incomplete_line = (self._incomplete_line + content).rpartition(b"\n")
        self.checksum += checksum(lines + end)
        return len(content)


# --- in a process of its own ---------------------------------------------------------------------

_worker: Worker | None = None


def call(context: Context, job: Callable[[Worker], T]) -> T:
    """Have the worker of this process do a job; a new one if the context has changed."""
    # Connections are kept from one job to the next; the target is known only to later jobs.
    global _worker
    if _worker is None or _worker.context != context:
        _worker = Worker(context)
    return job(_worker)
