"""What one process does: copy a piece of the source, run a statement, read a table back.

A worker is a spawned process with a connection of its own to either side.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2.errors

from pgorthanc_cli import db, storage, workers
from pgorthanc_cli.db import encoding
from pgorthanc_cli.migrate import files as attachments
from pgorthanc_cli.migrate import journal, tree
from pgorthanc_cli.migrate import source as sources
from pgorthanc_cli.migrate.model import Outcome
from pgorthanc_cli.migrate.reader import Reader, checksum
from pgorthanc_cli.migrate.source import Source
from pgorthanc_cli.migrate.tables import COPY_OPTIONS
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.verify import data

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from typing_extensions import Buffer

_PIECE_BYTES, _BUFFER_BYTES = 1 << 18, 1 << 20
_NOWHERE = db.Target("")
_SETTINGS = (
    "SET bytea_output = hex",
    "SET synchronous_commit = off",  # the last transaction of all is committed by the parent, and flushes this, too
    "SET maintenance_work_mem = '256MB'",
    "SET work_mem = '64MB'",
)


@dataclass(frozen=True)
class Work:
    """What a worker needs to know.

    Attributes:
        source: The index.
        tree: The scratch file of the resources that are kept, None if all are.
        revision: The revision of the target.
        tables: The tables of PostgreSQL; None: all of the revision.
        target: The database; nowhere for a mere check.
    """

    source: Source
    tree: Path | None
    revision: int
    tables: tuple[str, ...] | None = None
    target: db.Target = _NOWHERE


class Worker:
    """Does the pieces of work; its connections are opened when they are needed."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._reader: Reader | None = None
        self._conn: Connection | None = None
        self._encoding: str | None = None

    @property
    def reader(self) -> Reader:
        """The way to SQLite."""
        if self._reader is None:
            self._reader = Reader(self.work.source, self.work.tree, self.work.revision, self.work.tables)
            workers.at_halt(self._reader.conn.interrupt)
        return self._reader

    @property
    def conn(self) -> Connection:
        """The way to PostgreSQL."""
        if self._conn is None:
            self._conn = db.connect(self.work.target)
            workers.at_halt(self._conn.cancel)
            with self._conn, self._conn.cursor() as cur:
                for statement in _SETTINGS:
                    cur.execute(statement)
        return self._conn

    @property
    def _options(self) -> str:
        """How a text is copied: as UTF-8, which the server takes for what it takes Orthanc's bytes for."""
        if self._encoding is None:
            self._encoding = encoding.of_orthanc(self.conn)
        return f"{COPY_OPTIONS}, ENCODING '{self._encoding}'"

    def read(self, name: str, after: int, last: int) -> Outcome:
        """What would become of a piece of a table.

        Raises:
            PgOrthancError: The source is damaged.
        """
        outcome = Outcome()
        with sources.readable(self.work.source.path):
            for _ in self.reader.blocks(name, after, last, outcome):
                pass
        return outcome

    def convert(self, name: str, after: int, last: int) -> Outcome:
        """Copy a piece of a table and note that in the journal, in one transaction.

        Raises:
            PgOrthancError: The source is damaged, or PostgreSQL refuses.
        """
        outcome = Outcome()
        table, columns = self.reader.columns(name)
        copy = f"COPY {table} ({', '.join(columns)}) FROM STDIN WITH ({self._options})"
        with db.translate_errors(self.conn):
            try:
                with self.conn, self.conn.cursor() as cur:
                    with sources.readable(self.work.source.path):
                        lines = _Lines(self.reader.blocks(name, after, last, outcome))
                        cur.copy_expert(copy, lines, _PIECE_BYTES)
                    journal.record(cur, piece(name, after, last), outcome)
            except psycopg2.errors.UniqueViolation:
                with self.conn, self.conn.cursor() as cur:
                    return journal.outcome(cur, piece(name, after, last))
        return outcome

    def execute(self, statement: str) -> None:
        """Run one statement.

        Raises:
            PgOrthancError: PostgreSQL refuses; says what is wrong with the source if that is the reason.
        """
        try:
            with db.translate_errors(self.conn), self.conn, self.conn.cursor() as cur:
                try:
                    cur.execute(statement)
                except psycopg2.errors.UniqueViolation as error:
                    raise sources.damaged(
                        self.work.source.path, f"rows of table {error.diag.table_name} have the same key"
                    ) from None
        finally:
            self.conn.rollback()

    def read_back(self, table: str, columns: Sequence[str]) -> tuple[int, int]:
        """Rows and checksum of a table of PostgreSQL."""
        total = _Sum()
        copy = f"COPY {table} ({', '.join(columns)}) TO STDOUT WITH ({self._options})"
        with db.translate_errors(self.conn), self.conn, self.conn.cursor() as cur:
            with io.BufferedWriter(total, _BUFFER_BYTES) as buffer:
                cur.copy_expert(copy, buffer)
            return cur.rowcount, total.checksum

    def invariants(self) -> list[str]:
        """What does not hold for the rows of the new index (SCHEMA.md 5)."""
        with db.translate_errors(self.conn), self.conn:
            found = catalog.snapshot(self.conn, self.work.target.schema)
            checks = data.findings(self.conn, found, self.work.revision, deep=True)
        return [str(one) for one in checks if one.matters]

    def survey(self) -> tuple[Path | None, Outcome]:
        """See `tree.survey`."""
        file, repaired, skipped = tree.survey(self.work.source)
        return file, Outcome(repaired=repaired, skipped=skipped)

    def files(self, folder: Path, after: int, last: int, *, hashes: bool) -> attachments.Seen:
        """See `files.look`."""
        return attachments.look(storage.FilesystemArea(folder), self._attachments(after, last), hashes=hashes)

    def store(self, folder: Path, after: int, last: int) -> attachments.Seen:
        """See `files.store`."""
        with db.translate_errors(self.conn):
            return attachments.store(
                self.conn, storage.FilesystemArea(folder), self._attachments(after, last)
            )

    def _attachments(self, after: int, last: int) -> Iterator[attachments.Attachment]:
        custom = self.work.source.has("AttachedFiles", "customData")
        with sources.readable(self.work.source.path):
            yield from attachments.attachments(self.reader.conn, after, last, custom=custom)

    def check_pages(self, table: str, *, thorough: bool) -> list[str]:
        """See `source.check_pages`."""
        with sources.readable(self.work.source.path):
            return sources.check_pages(self.work.source.file, table, thorough=thorough)


def piece(name: str, after: int, last: int) -> str:
    """The name of a piece of work in the journal."""
    return f"{name} {after} {last}"


class _Lines:
    """Blocks as the file that COPY reads from; it takes whatever size it is given."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    def read(self, size: int = -1) -> bytes:
        """The next block that is not empty: an empty one would be the end."""
        return next(filter(None, self._blocks), b"")

    readline = read


class _Sum(io.RawIOBase):
    """Sums up the lines that COPY writes; behind a buffer, which gathers them."""

    def __init__(self) -> None:
        self.checksum = 0
        self._rest = b""

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, piece: Buffer) -> int:
        """Take in some lines; the last one may go on in the next piece."""
        written = bytes(piece)
        whole, end, self._rest = (self._rest + written).rpartition(b"\n")
        self.checksum += checksum(whole + end)
        return len(written)


# --- in a process of its own ---------------------------------------------------------------------------------

_worker: Worker | None = None


def call(work: Work, method: str, *arguments: object, **options: object) -> Any:
    """A method of this process's worker; a new one, if it is for other work than the last."""
    global _worker
    if _worker is None or _worker.work != work:
        _worker = Worker(work)
    return getattr(_worker, method)(*arguments, **options)
