"""Reading an SQLite index as a whole, by several processes, without writing anything."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from pgorthanc_cli import workers
from pgorthanc_cli.migrate import files, findings, pool, worker
from pgorthanc_cli.migrate import source as sources
from pgorthanc_cli.migrate.model import LEVELS, Converted, Files, Finding, Outcome, Settings
from pgorthanc_cli.migrate.reader import Reader
from pgorthanc_cli.migrate.source import Source
from pgorthanc_cli.migrate.worker import Work
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog


class Reading:
    """One run; what it found so far.

    Attributes:
        rows: Rows by table of PostgreSQL.
        sums: Their checksums.
        seen: Rows by table of SQLite that were converted or skipped.
        found: What was repaired and what was skipped.
    """

    def __init__(
        self, source: Source, settings: Settings, stack: ExitStack, stop: threading.Event | None = None
    ) -> None:
        """`stack` closes at the end what is opened on the way; `stop` says that the run is to end."""
        self.source = source
        self.settings = settings
        self.stack = stack
        self.pool = stack.enter_context(workers.pool(settings.jobs, worker.call, stop))
        self.work = Work(source, None, settings.revision or catalog.newest())
        self.rows: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.found = findings.Findings(source.scratch)
        self.files: Files | None = None

    def survey(self, *, thorough: bool) -> Iterator[Progress]:
        """Make sure of the file, and of the tree of its resources, before anything else is done.

        Raises:
            PgOrthancError: The file is damaged.
        """
        yield Progress("check", "the file")
        survey = self.pool.submit(self.work, "survey")
        for table, said in self._check_pages(thorough=thorough):
            if said:
                raise sources.damaged(self.source.path, f"table {table}: {said[0]}")
            yield Progress("check", f"table {table}")
        tree_file, outcome = self.pool.result(survey)
        self.work = replace(self.work, tree=tree_file)
        for table, number in self.source.unknown.items():
            what = f"{number} rows skipped: no release of Orthanc has this table"
            outcome.skipped.append(Finding(table, None, what))
        self.found.add(outcome)

    def _check_pages(self, *, thorough: bool) -> Iterator[tuple[str, list[str]]]:
        work = ((self.work, "check_pages", table) for table in self.source.columns)
        checked = self.each("check", "tables", work, len(self.source.columns), thorough=thorough)
        for table, (_, said) in zip(self.source.columns, checked, strict=True):
            yield table, said

    def read(self) -> Iterator[Progress]:
        """Read everything as it would be converted."""
        reader = self.reader()
        chunks = reader.chunks()
        work = ((self.work, "read", *chunk) for chunk in chunks)
        for (name, *_), (progress, outcome) in zip(
            chunks, self.each("check", "rows", work, len(chunks)), strict=True
        ):
            self.take(reader, name, outcome)
            yield progress
        self.require_all(reader)
        self.properties(reader)

    def require_all(self, reader: Reader) -> None:
        """Make sure that every row was converted or skipped, by a count of its own.

        Raises:
            PgOrthancError: Some were not.
        """
        for name, rows in reader.counts():
            if self.seen[name] != rows:
                what = f"table {name} holds {rows:,} rows, {self.seen[name]:,} were read"
                raise sources.damaged(self.source.path, what)

    def look_at_files(self) -> Iterator[Progress]:
        """Compare the attachments with their files, if that is wanted."""
        if self.settings.verify_files or self.settings.verify_hashes:
            seen = yield from self.attachments("compared", "files", hashes=self.settings.verify_hashes)
            self.files = Files(seen.checked, seen.hashed, seen.missing, seen.differing, tuple(seen.examples))

    def result(self, elapsed_s: float, **more: Any) -> Converted:
        """What has become of it, also written to the report; `more` are fields that a reading does not know."""
        reader = self.reader()
        query = "SELECT count(*) FROM tree WHERE resourceType = ?"
        converted = Converted(
            source=str(self.source.path),
            resources={
                name: reader.conn.execute(query, (level,)).fetchone()[0]
                for level, name in enumerate(LEVELS, 1)
            },
            rows=dict(self.rows),
            repaired=tuple(self.found.held["repaired"]),
            repaired_rows=self.found.counts["repaired"],
            skipped=tuple(self.found.held["skipped"]),
            skipped_rows=self.found.counts["skipped"],
            files=self.files,
            elapsed_s=elapsed_s,
            rows_per_s=sum(self.rows.values()) / max(elapsed_s, 0.001),
            **more,
        )
        if self.settings.report:
            facts = {k: v for k, v in asdict(converted).items() if k not in ("repaired", "skipped")}
            findings.write_report(self.settings.report, facts, self.found)
        return converted

    def attachments(self, what: str, method: str, **options: Any) -> Generator[Progress, None, files.Seen]:
        """Have something done with all attachments; what was seen."""
        seen = files.Seen()
        chunks = self.reader().chunks(files=True)
        work = ((self.work, method, self.settings.storage_dir, *chunk[1:]) for chunk in chunks)
        for progress, part in self.each("files", what, work, len(chunks), **options):
            seen.add(part)
            yield progress
        return seen

    def each(
        self, phase: str, what: str, work: Iterable[tuple[Any, ...]], total: int, **options: Any
    ) -> Iterator[tuple[Progress, Any]]:
        """See `pool.each`."""
        return pool.each(self.pool, phase, what, work, total, self.settings.jobs, **options)

    def reader(self) -> Reader:
        """A reader of this process. It stays open to the end: closing it gives up the lock on the file."""
        reader = Reader(self.source, self.work.tree, self.work.revision, self.work.tables)
        self.stack.callback(reader.conn.close)
        return reader

    def properties(self, reader: Reader) -> tuple[dict[int, str], dict[int, str]]:
        """See `Reader.properties`."""
        outcome = Outcome()
        properties = reader.properties(outcome)
        self.found.add(outcome)
        return properties

    def take(self, reader: Reader, name: str, outcome: Outcome) -> None:
        """Take in what became of a piece of a table."""
        table = reader.columns(name)[0]
        self.rows[table] += outcome.rows
        self.seen[name] += outcome.rows + len(outcome.skipped)
        self.sums[table] += outcome.checksum
        self.found.add(outcome)
