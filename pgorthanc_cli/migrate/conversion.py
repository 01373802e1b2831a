"""A conversion from the empty index to the new one."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db, locks
from pgorthanc_cli.config import conninfo
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from pgorthanc_cli.migrate import checklist, journal, target, worker
from pgorthanc_cli.migrate.model import Compared, Converted, Finding, Outcome, Settings
from pgorthanc_cli.migrate.reader import RECYCLING, RESOURCES, Reader
from pgorthanc_cli.migrate.reading import Reading
from pgorthanc_cli.migrate.source import Source
from pgorthanc_cli.migrate.tables import TABLES
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SOURCES = {
    **{table.target: table.source for table in TABLES},
    "resources": RESOURCES,
    "patientrecyclingorder": RECYCLING,
}
_NUMBERED = (RESOURCES, RECYCLING, "Changes", "ExportedResources", "Queues")


class Conversion(Reading):
    """One run; `facts` are those fields of the result that only a conversion knows."""

    def __init__(
        self,
        source: Source,
        settings: Settings,
        stack: ExitStack,
        where: db.Target,
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(source, settings, stack, stop)
        self.where = where
        self.facts: dict[str, Any] = {}

    def run(self) -> Iterator[Progress]:
        """Everything, or what is left of it."""
        conn = self.stack.enter_context(db.session(self.where))
        self.stack.enter_context(db.advisory_lock(conn, db.LOCK_TRANSITION))
        plan = yield from self._prepare(conn)
        self.work = replace(self.work, revision=plan.revision, tables=tuple(plan.tables), target=self.where)
        reader = self.reader()
        yield from self._load(conn, reader)
        yield from self._index(conn, plan)
        target.count(conn, plan, {name: reader.highest(name) for name in _NUMBERED})
        compared = yield from self._prove(reader, plan)
        stored = (yield from self._store()) if self.settings.large_objects else 0
        yield Progress("prove", "the new index")
        target.stamp(conn, self.where.schema, plan, self.properties(reader))
        plugins = catalog.plugins(plan.revision)
        parameters = conninfo.complete(conninfo.in_use(conn), self.where)
        options = conninfo.orthancs(parameters, encrypted=bool(conn.info.ssl_in_use))
        self.facts |= {
            "schema": self.where.schema,
            "revision": plan.revision,
            "server_identifier": plan.server_identifier,
            "compared": compared,
            "verified": self.settings.verify,
            "large_objects": stored,
            "steps": checklist.remaining(
                options, self.where, self.source.path, plan.server_identifier, plugins, self.settings
            ),
        }
        yield from self.look_at_files()

    def result(self, elapsed_s: float, **more: Any) -> Converted:
        """See `Reading.result`."""
        return super().result(elapsed_s, **self.facts, **more)

    def _prepare(self, conn: Connection) -> Generator[Progress, None, target.Plan]:
        """Have an index that is ready to be filled, or go on with one that has been begun."""
        schema = self.where.schema
        found = catalog.snapshot(conn, schema)
        begun = target.unfinished(found)
        number = journal.run(conn)["revision"] if begun else self._wanted(found)
        conn.rollback()
        self.work = replace(self.work, revision=number)
        self._refuse_what_has_no_place(number)
        if self.settings.strict:
            yield from self._read_first()
        locks.require_no_orthanc(conn, schema)  # one without a lock; the lock is tried below
        conn.rollback()
        if not begun:
            target.establish(conn, schema, self.settings)
        self.stack.enter_context(db.advisory_lock(conn, db.LOCK_INDEX, wait_s=0))
        self.facts["resumed"] = begun and not self.settings.restart
        name, fingerprint = str(self.source.path), self.source.fingerprint
        if begun:
            return target.resume(conn, fingerprint, name, self.settings)
        return target.take_apart(conn, schema, fingerprint, name, number, self.settings)

    def _wanted(self, found: catalog.Catalog) -> int:
        here = catalog.layout(found, self.where.schema)
        return self.settings.revision or (here.revision if here else catalog.newest())

    def _refuse_what_has_no_place(self, number: int) -> None:
        """Tables and columns that came after the revision; left out only if it was asked for by its number."""
        lost = list(self.reader().without_place(number))
        if lost and (self.settings.revision is None or self.settings.strict):
            raise RevisionError(
                f"an index at revision {number} cannot hold {'; '.join(f'{n} rows of {t}' for t, n in lost)}",
                f"convert to revision {catalog.newest()}; or leave them out with --to-revision {number}",
            )
        for table, count in lost:
            what = f"{count} rows skipped: revision {number} cannot hold them"
            self.found.add(Outcome(skipped=[Finding(table, None, what)]))

    def _read_first(self) -> Iterator[Progress]:
        """With --strict everything is read before anything is written."""
        yield from self.read()
        if self.found.counts:
            first = [*self.found.held["skipped"], *self.found.held["repaired"]][0]
            raise PgOrthancError(
                f"{self.found.counts.total()} rows cannot be stored as they are, such as {first}",
                "see all with --check --report FILE.html; without --strict they are repaired or skipped",
            )
        for counter in (self.rows, self.sums, self.seen):
            counter.clear()

    def _load(self, conn: Connection, reader: Reader) -> Iterator[Progress]:
        """Copy the pieces that are not done yet."""
        chunks = {worker.piece(*chunk): chunk for chunk in reader.chunks()}
        for name, outcome in journal.done(conn):
            if name in chunks:
                self.take(reader, chunks.pop(name)[0], outcome)
        conn.rollback()
        work = ((self.work, "convert", *chunk) for chunk in chunks.values())
        for (name, *_), (progress, outcome) in zip(
            chunks.values(), self.each("copy", "rows", work, len(chunks)), strict=True
        ):
            self.take(reader, name, outcome)
            yield progress
        self.require_all(reader)

    def _index(self, conn: Connection, plan: target.Plan) -> Iterator[Progress]:
        """Indexes, keys and foreign keys, but for those that an earlier run has built."""
        known = catalog.snapshot(conn, self.where.schema)
        conn.rollback()
        missing = target.missing_indexes(plan, known)
        work = ((self.work, "execute", statement) for statement in missing)
        for progress, _ in self.each("build", "indexes", work, len(missing)):
            yield progress
        target.add_keys(conn, plan, known)

    def _prove(self, reader: Reader, plan: target.Plan) -> Generator[Progress, None, tuple[Compared, ...]]:
        """Check foreign keys and invariants, read every table back, collect statistics: all at once."""
        tables = sorted(plan.tables, key=lambda table: -self.rows[table]) if self.settings.verify else []
        work: list[tuple[Any, ...]] = [(self.work, "invariants")] if self.settings.verify else []
        work += [(self.work, "read_back", table, reader.columns(_SOURCES[table])[1]) for table in tables]
        statements = [f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}" for table, name, _ in plan.references]
        statements += [f"ANALYZE {table}" for table in plan.tables]
        work += [(self.work, "execute", statement) for statement in statements]
        results = []
        for progress, found in self.each("prove", "rows and references", work, len(work)):
            results.append(found)
            yield progress
        if not self.settings.verify:
            return ()
        compared = tuple(
            Compared(table, self.rows[table], stored, self.sums[table], checksum)
            for table, (stored, checksum) in zip(tables, results[1:], strict=False)
        )
        _require_equal(compared)
        target.require_sound(results[0])
        return compared

    def _store(self) -> Generator[Progress, None, int]:
        """Copy the attachments into PostgreSQL; how many are there."""
        seen = yield from self.attachments("copied into PostgreSQL", "store")
        if seen.missing or seen.differing:
            raise PgOrthancError(
                f"{seen.missing} files of the storage folder are missing, {seen.differing} are not what the "
                f"index says, such as {seen.examples[0]}",
                "restore them and run it again: it goes on; or leave the files in their folder: without --storage",
            )
        return seen.stored


def _require_equal(compared: tuple[Compared, ...]) -> None:
    wrong = [c for c in compared if not c.equal]
    if wrong:
        told = "; ".join(f"{c.table}: {c.converted:,} converted, {c.stored:,} stored" for c in wrong)
        raise PgOrthancError(
            f"PostgreSQL holds other rows than were read from SQLite, so this is no index yet: {told}",
            "make sure that nobody else works on the database, then run it again with --restart",
        )
