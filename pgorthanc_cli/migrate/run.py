"""Read a whole index with several processes, without writing to any database.

`check` is a run of its own; a conversion (`conversion.py`) uses the same steps.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pgorthanc_cli import workers
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.migrate import worker
from pgorthanc_cli.migrate.model import (  # fmt: skip
    ConversionSettings,
    Converted,
    FileCheck,
    Finding,
    Outcome,
    SaveFindings,
)
from pgorthanc_cli.migrate.source import Piece, Reader, Source, TargetTables
from pgorthanc_cli.migrate.sources import sqlite
from pgorthanc_cli.migrate.worker import Context, Worker
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog

MAX_LISTED = 1_000
"""Findings of each kind in a result; the others are only in the report."""

_MAX_SERVER_IDENTIFIER = 64  # of serverproperties.server
# So that no worker waits for the parent, and no queue holds millions of pieces.
_QUEUED_PER_WORKER = 3

OpenSource = Callable[[Path], AbstractContextManager[Source]]
T = TypeVar("T")


def check(
    path: Path,
    settings: ConversionSettings,
    *,
    report: Report = silent,
    stop: threading.Event | None = None,
    save: SaveFindings | None = None,
    open_source: OpenSource = sqlite.open_index,
) -> Converted:
    """Read everything as `convert` would, and return what it would do. Needs no database.

    Args:
        path: The index.
        settings: As for `convert`.
        report: Is called with the progress; whatever it raises ends the run.
        stop: Ends the run once it is set.
        save: Is called with the result and all findings.
        open_source: Opens `path`.

    Raises:
        workers.Stopped: `stop` was set.
        InUseError: An Orthanc uses the index.
        PgOrthancError: The index cannot be converted.
    """
    with open_run(path, settings, report=report, stop=stop, open_source=open_source) as run:
        run.check_source(thorough=True)
        run.read_all()
        run.compare_files()
        converted = replace(run.result(), dry_run=True)
        if save:
            save(converted, run.findings.all())
    return converted


@contextmanager
def open_run(
    path: Path,
    settings: ConversionSettings,
    *,
    report: Report,
    stop: threading.Event | None,
    open_source: OpenSource,
) -> Iterator[Run]:
    """Check the settings, open the index, and start the worker processes for the length of a block."""
    _require_valid(settings)
    started = time.monotonic()
    # Started before any connection is opened, which a worker must not share: not even that to
    # the source, as SQLite forgets which process holds its locks.
    with workers.pool(settings.jobs, worker.call, stop, fork=True) as pool, ExitStack() as stack:
        source = stack.enter_context(open_source(path))
        # No worker reads the source any longer when it is closed.
        stack.callback(pool.close)
        yield Run(source, settings, pool, stack, report, started)


class Run:
    """One run: its source, its worker processes, and the totals of their work.

    Attributes:
        context: Sent to the workers with each piece of work.
        stack: Closes at the end what is opened during the run.
        rows: Rows converted, by table of PostgreSQL.
        checksums: Their checksums.
        rows_read: Rows converted or skipped, by table of the source.
    """

    def __init__(
        self,
        source: Source,
        settings: ConversionSettings,
        pool: workers.Pool[Any],
        stack: ExitStack,
        report: Report,
        started: float,
    ) -> None:
        self.settings = settings
        self.stack = stack
        self.report = report
        self.context = Context(source, target_tables(settings.revision or catalog.newest()))
        self.rows: Counter[str] = Counter()
        self.checksums: Counter[str] = Counter()
        self.rows_read: Counter[str] = Counter()
        self.findings = Findings(source.scratch)
        self._pool = pool
        self._started = started
        self._files: FileCheck | None = None

    @property
    def source(self) -> Source:
        """The index; another object once its resources are known."""
        return self.context.source

    def check_source(self, *, thorough: bool) -> None:
        """Check the structure of the tables and find the resources that can be converted.

        Raises:
            PgOrthancError: The index is damaged.
        """
        source = self.source
        self.report(Progress("check", "the file"))
        # At the same time as the checks: both read the whole file once.
        survey = self.submit(Worker.survey)
        tables = source.tables()
        jobs = [partial(Worker.check_table, table=table, thorough=thorough) for table in tables]
        for table, problems in zip(tables, self._results(jobs), strict=True):
            if problems:
                raise source.damaged(f"table {table}: {problems[0]}")
            self.report(Progress("check", f"table {table}"))
        surveyed, outcome = self._pool.result(survey)
        self.context = replace(self.context, source=surveyed)
        for table, number in source.unknown_tables.items():
            what = f"{number} rows skipped: no release of Orthanc has this table"
            outcome.skipped.append(Finding(table, None, what, number))
        self.findings.add(outcome)

    def read_all(self) -> None:
        """Read everything as it would be converted."""
        reader = self.open_reader()
        pieces = reader.pieces()
        jobs = [partial(Worker.read, piece=piece) for piece in pieces]
        for piece, outcome in zip(pieces, self.each(jobs, "check", "rows"), strict=True):
            self.count(reader, piece, outcome)
        self.require_all_rows(reader)
        # For what it repairs and skips.
        self.properties(reader)

    def require_all_rows(self, reader: Reader) -> None:
        """Raise PgOrthancError unless every row was converted or skipped."""
        for table, rows in reader.row_counts().items():
            if self.rows_read[table] != rows:
                problem = f"table {table} holds {rows:,} rows, {self.rows_read[table]:,} were read"
                raise self.source.damaged(problem)

    def compare_files(self) -> None:
        """Compare the attachments with their files, if the settings ask for it."""
        folder, hashes = self.settings.storage_dir, self.settings.verify_hashes
        if folder and (self.settings.verify_files or hashes):
            jobs = [
                partial(
                    Worker.compare_files,
                    piece=piece,
                    folder=folder,
                    storages=self.settings.storages,
                    hashes=hashes,
                )
                for piece in self.open_reader().attachment_pieces()
            ]
            self._files = self.add_up_files(jobs, "compared")

    def add_up_files(self, jobs: Sequence[Callable[[Worker], FileCheck]], what: str) -> FileCheck:
        """Have jobs done on pieces of the attachments, and return the sum of their results."""
        total = FileCheck()
        for part in self.each(jobs, "files", what):
            total.add(part)
        return total

    def submit(self, job: Callable[[Worker], T]) -> Future[T]:
        """Have a worker do a job."""
        return self._pool.submit(self.context, job)

    def each(self, jobs: Sequence[Callable[[Worker], T]], phase: str, what: str) -> Iterator[T]:
        """Have jobs done, yield their results in order, and report the progress.

        Raises:
            workers.Stopped: The run was stopped.
            PgOrthancError: A job failed, or its process was killed.
        """
        for number, result in enumerate(self._results(jobs), 1):
            yield result
            self.report(Progress(phase, what, number, len(jobs)))

    def wait(self, futures: Sequence[Future[Any]], phase: str, what: str) -> None:
        """Wait for jobs in order, and report the progress; raises what they raise."""
        for number, future in enumerate(futures, 1):
            self._pool.result(future)
            self.report(Progress(phase, what, number, len(futures)))

    def _results(self, jobs: Iterable[Callable[[Worker], T]]) -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for job in jobs:
            if len(waiting) == self.settings.jobs * _QUEUED_PER_WORKER:
                yield self._pool.result(waiting.popleft())
            waiting.append(self.submit(job))
        while waiting:
            yield self._pool.result(waiting.popleft())

    def open_reader(self) -> Reader:
        """Return a reader of this process, open until the end of the run.

        Closing it any earlier would give up the lock on the file: POSIX drops all locks
        of a process on a file with the first descriptor of it that is closed.
        """
        reader = self.source.reader(self.context.tables)
        self.stack.callback(reader.close)
        return reader

    def properties(self, reader: Reader) -> tuple[dict[int, str], dict[int, str]]:
        """Return the properties of the database and of the server, and note what was repaired."""
        outcome = Outcome()
        properties = reader.properties(outcome)
        self.findings.add(outcome)
        return properties

    def count(self, reader: Reader, piece: Piece, outcome: Outcome) -> None:
        """Add the outcome of a piece to the totals."""
        target = reader.target(piece.table)
        self.rows[target] += outcome.rows
        self.checksums[target] += outcome.checksum
        self.rows_read[piece.table] += outcome.rows + len(outcome.skipped)
        self.findings.add(outcome)

    def result(self) -> Converted:
        """Return the totals up to now."""
        elapsed_s = time.monotonic() - self._started
        return Converted(
            source=str(self.source.path),
            resources=self.open_reader().resource_counts(),
            rows=dict(self.rows),
            repaired=tuple(self.findings.listed["repaired"]),
            repaired_rows=self.findings.counts["repaired"],
            skipped=tuple(self.findings.listed["skipped"]),
            skipped_rows=self.findings.counts["skipped"],
            files=self._files,
            elapsed_s=elapsed_s,
            rows_per_s=sum(self.rows.values()) / max(elapsed_s, 0.001),
        )


class Findings:
    """What was repaired and what was skipped. Most of it is in a file: there may be millions."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: dict[str, list[Finding]] = {"repaired": [], "skipped": []}
        self._file = folder / "findings.jsonl"
        self._file.write_bytes(b"")

    def add(self, outcome: Outcome) -> None:
        """Add the findings of one piece of work."""
        with self._file.open("a", encoding="utf-8") as stream:
            for kind, findings in (("repaired", outcome.repaired), ("skipped", outcome.skipped)):
                self.counts[kind] += sum(finding.rows for finding in findings)
                free = MAX_LISTED - len(self.listed[kind])
                self.listed[kind] += findings[:free]
                stream.writelines(json.dumps({"kind": kind, **asdict(f)}) + "\n" for f in findings)

    def all(self) -> Iterator[dict[str, str | None]]:
        """Yield all findings: kind, table, public_id, what."""
        with self._file.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def target_tables(number: int) -> TargetTables:
    """Return the tables of a revision and their columns."""
    tables: dict[str, frozenset[str]] = {}
    for name in catalog.expected(number, with_storage=False):
        kind, _, full_name = name.partition(" ")
        if kind == "column":
            table, _, column = full_name.partition(".")
            tables[table] = tables.get(table, frozenset()) | {column}
    return tables


def _require_valid(settings: ConversionSettings) -> None:
    if settings.revision is not None:
        catalog.require_revision(settings.revision)
    identifier = settings.server_identifier
    if identifier is not None and not 0 < len(identifier) <= _MAX_SERVER_IDENTIFIER:
        raise UsageError(
            f"the server identifier has {len(identifier)} characters, wanted 1 to {_MAX_SERVER_IDENTIFIER}"
        )
    needs_files = settings.verify_files or settings.verify_hashes or settings.large_objects
    if needs_files and settings.storage_dir is None:
        raise UsageError(
            "where are the attachments?",
            "give --storage-dir FOLDER, or Orthanc's configuration with --config",
        )
