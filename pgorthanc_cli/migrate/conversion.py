"""Convert an index into an empty index of PostgreSQL."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

from pgorthanc_cli import db, locks
from pgorthanc_cli.config import conninfo
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from pgorthanc_cli.migrate import journal, target
from pgorthanc_cli.migrate.journal import LoadPlan
from pgorthanc_cli.migrate.model import (  # fmt: skip
    Compared,
    ConversionSettings,
    Converted,
    Finding,
    Outcome,
    SaveFindings,
)
from pgorthanc_cli.migrate.run import OpenSource, Run, open_run, target_tables
from pgorthanc_cli.migrate.source import Reader, TargetTables
from pgorthanc_cli.migrate.sources import sqlite
from pgorthanc_cli.migrate.worker import Worker
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog

# Orthanc wrote the rows under these options (SQLITE.md 5).
_UNCHANGED_OPTIONS = (
    "StorageDirectory", "StorageCompression", "StoreMD5ForAttachments", "ExtraMainDicomTags", "UserMetadata",
    "UserContentType", "DefaultEncoding",
)  # fmt: skip


def convert(
    where: db.Target,
    path: Path,
    settings: ConversionSettings,
    *,
    report: Report = silent,
    stop: threading.Event | None = None,
    save: SaveFindings | None = None,
    open_source: OpenSource = sqlite.open_index,
) -> Converted:
    """Convert an index into an empty index of PostgreSQL.

    If it is interrupted, the next run with the same file continues; until it is complete
    the target is not an index.

    Args:
        where: The database. An index is created in its schema if there is none.
        path: The file `index`.
        settings: How to convert.
        report: Is called with the progress; whatever it raises ends the run.
        stop: Ends the run once it is set: workers give up what they are doing, and what
            was copied is committed.
        save: Is called with the result and all findings.
        open_source: Opens `path`.

    Raises:
        workers.Stopped: `stop` was set.
        InUseError: An Orthanc uses the file or the database; or the target is not empty.
        RevisionError: The target is not an index that can be filled.
        UsageError: `settings` contradict each other.
        ConnectError: The database cannot be reached, or the connection was lost.
        PgOrthancError: The file cannot be converted, or only with repairs and
            `settings.strict` is set.
    """
    with open_run(path, settings, report=report, stop=stop, open_source=open_source) as run:
        run.check_source(thorough=False)
        converted = _Conversion(run, where).convert()
        if save:
            save(converted, run.findings.all())
    return converted


class _Conversion:
    """A run that fills an index."""

    def __init__(self, run: Run, where: db.Target) -> None:
        self._run = run
        self._target = where
        self._settings = run.settings
        self._conn = run.stack.enter_context(db.session(where))

    def convert(self) -> Converted:
        run, conn, settings = self._run, self._conn, self._settings
        run.stack.enter_context(db.advisory_lock(conn, db.LOCK_TRANSITION))
        plan, resumed = self._prepare()
        run.context = replace(
            run.context,
            tables=_only(plan.tables, target_tables(plan.revision)),
            revision=plan.revision,
            target=self._target,
        )
        reader = run.open_reader()
        self._load(reader)
        self._create_indexes(plan)
        target.set_counters(conn, plan, reader.highest_ids())
        compared = self._prove(plan)
        large_objects = self._copy_files() if settings.large_objects else 0
        run.report(Progress("prove", "the new index"))
        target.finalize(conn, self._target.schema, plan, run.properties(reader))
        configuration = self._configuration(plan)
        steps = self._remaining_steps(plan, configuration)
        run.compare_files()
        return replace(
            run.result(),
            schema=self._target.schema,
            revision=plan.revision,
            server_identifier=plan.server_identifier,
            compared=compared,
            verified=settings.verify,
            large_objects=large_objects,
            resumed=resumed,
            steps=steps,
            endpoint=db.endpoint(conn),
            configuration=configuration,
            plugins=catalog.plugins(plan.revision),
        )

    def _prepare(self) -> tuple[LoadPlan, bool]:
        """Prepare an index for loading, or take the plan of an unfinished conversion.

        Returns:
            The plan, and whether an unfinished conversion is continued.
        """
        run, conn, schema, settings = self._run, self._conn, self._target.schema, self._settings
        objects = catalog.snapshot(conn, schema)
        unfinished = target.is_unfinished(objects)
        if unfinished:
            number = journal.plan(conn).revision
            actual: int | None = number
        else:
            layout = catalog.layout(objects, schema)
            actual = layout.revision if layout else None
            number = settings.revision or actual or catalog.newest()
        # Reading the catalog has begun a transaction, which must not stay open for hours.
        conn.rollback()
        tables = target_tables(number)
        # An existing index may have fewer tables: the plugin 4.0 creates no labels.
        if actual == number:
            tables = _only(target.loadable_tables(objects), tables)
        run.context = replace(run.context, tables=tables, revision=number)
        self._require_room(number)
        if settings.strict:
            self._require_clean()
        # An Orthanc that holds no lock, such as one of an old release; the lock itself is
        # taken below.
        locks.require_no_orthanc(conn, schema)
        conn.rollback()
        if not unfinished:
            target.ensure_empty_index(conn, schema, settings)
        # Held until the end. Orthanc takes it when it starts, so none can start on the target.
        run.stack.enter_context(db.advisory_lock(conn, db.LOCK_INDEX, wait_s=0))
        fingerprint, path = run.source.fingerprint, str(run.source.path)
        if unfinished:
            plan = target.resume(conn, fingerprint, path, settings)
            return plan, not settings.restart
        return target.prepare_for_loading(conn, schema, fingerprint, path, number, settings), False

    def _require_room(self, number: int) -> None:
        """Refuse rows of tables and columns that came after the revision, unless it was asked for by its number."""
        lost = self._run.open_reader().unsupported()
        if lost and (self._settings.revision is None or self._settings.strict):
            rows = "; ".join(f"{count} rows of {table}" for table, count in lost.items())
            raise RevisionError(
                f"an index at revision {number} cannot hold {rows}",
                f"convert to revision {catalog.newest()}; or leave them out with --revision {number}",
            )
        for table, count in lost.items():
            what = f"{count} rows skipped: revision {number} cannot hold them"
            self._run.findings.add(Outcome(skipped=[Finding(table, None, what, count)]))

    def _require_clean(self) -> None:
        """Read everything before anything is written, and refuse if a row is repaired or skipped."""
        run = self._run
        run.read_all()
        if run.findings.counts.total():
            first = [*run.findings.listed["skipped"], *run.findings.listed["repaired"]][0]
            raise PgOrthancError(
                f"{run.findings.counts.total()} rows cannot be stored as they are, such as {first}",
                "see all with --dry-run --html FILE.html; without --strict they are repaired or skipped",
            )
        for totals in (run.rows, run.checksums, run.rows_read):
            totals.clear()

    def _load(self, reader: Reader) -> None:
        """Copy the pieces that no earlier run has copied."""
        run = self._run
        pieces = {str(piece): piece for piece in reader.pieces()}
        for name, outcome in journal.done(self._conn):
            if name in pieces:
                run.count(reader, pieces.pop(name), outcome)
        # No transaction stays open, with its locks, while the workers copy.
        self._conn.rollback()
        jobs = [partial(Worker.load, piece=piece) for piece in pieces.values()]
        for piece, outcome in zip(pieces.values(), run.each(jobs, "copy", "rows"), strict=True):
            run.count(reader, piece, outcome)
        run.require_all_rows(reader)

    def _create_indexes(self, plan: LoadPlan) -> None:
        """Create indexes, keys and foreign keys, except those that an earlier run has created."""
        objects = catalog.snapshot(self._conn, self._target.schema)
        self._conn.rollback()
        statements = target.missing_indexes(plan, objects)
        jobs = [partial(Worker.execute, statement=statement) for statement in statements]
        for _ in self._run.each(jobs, "build", "indexes"):
            pass
        # Only the catalogs change: the indexes exist, and the workers validate foreign keys later.
        target.add_keys(self._conn, plan, objects)

    def _prove(self, plan: LoadPlan) -> tuple[Compared, ...]:
        """Validate foreign keys, check invariants, read all tables back, and collect statistics."""
        run, verify = self._run, self._settings.verify
        statements = [f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}" for table, name, _ in plan.references]
        statements += [f"ANALYZE {table}" for table in plan.tables]
        # All of it at the same time, and what takes longest first.
        violations = [run.submit(Worker.violations)] if verify else []
        tables = sorted(plan.tables, key=lambda table: -run.rows[table]) if verify else []
        stored = [run.submit(partial(Worker.read_back, table=table)) for table in tables]
        executed = [run.submit(partial(Worker.execute, statement=s)) for s in statements]
        run.wait([*violations, *stored, *executed], "prove", "rows and references")
        compared = tuple(
            Compared(table, run.rows[table], rows, run.checksums[table], checksum)
            for table, (rows, checksum) in zip(tables, (f.result() for f in stored), strict=True)
        )
        _require_equal(compared)
        target.require_sound([problem for future in violations for problem in future.result()])
        return compared

    def _copy_files(self) -> int:
        """Copy the attachments into large objects, and return their number."""
        folder = self._settings.storage_dir
        assert folder is not None  # noqa: S101 - open_run requires it
        pieces = self._run.open_reader().attachment_pieces()
        jobs = [partial(Worker.copy_files, piece=piece, folder=folder) for piece in pieces]
        copied = self._run.add_up_files(jobs, "copied into PostgreSQL")
        if copied.missing or copied.differing:
            raise PgOrthancError(
                f"{copied.missing} files of the storage folder are missing, {copied.differing} are not what the "
                f"index says, such as {copied.examples[0]}",
                "restore them and run it again: it goes on; or leave the files in their folder: without --storage",
            )
        return copied.checked

    def _remaining_steps(self, plan: LoadPlan, configuration: str) -> tuple[str, ...]:
        """Return what the administrator has to do, in order."""
        libraries = ", and libOrthancPostgreSQLStorage.so" if self._settings.large_objects else ""
        kept = "StorageDirectory stays until Orthanc works; " if self._settings.large_objects else ""
        return (
            f"add to Orthanc's configuration, with the password (plugin {catalog.plugins(plan.revision)}): "
            f"{configuration}",
            f'add the library libOrthancPostgreSQLIndex.so to "Plugins"{libraries}',
            f"{kept}leave as they are: {', '.join(_UNCHANGED_OPTIONS)}",
            f"move {self._run.source.path} to another folder, so that Orthanc cannot be started on it again; "
            "keep it as a backup of this moment",
            "start Orthanc, compare /statistics with the figures above, look at a study",
            "run: pgorthanc verify schema --deep",
        )

    def _configuration(self, plan: LoadPlan) -> str:
        """Return the lines of Orthanc's configuration that lead to the server of this connection."""
        parameters = conninfo.complete(conninfo.in_use(self._conn), self._target)
        options = conninfo.plugin_options(parameters, encrypted=bool(self._conn.info.ssl_in_use))
        section = {
            "EnableIndex": True,
            "EnableStorage": self._settings.large_objects,
            **options,
            **({"Schema": self._target.schema} if self._target.schema != "public" else {}),
        }
        lines = {"PostgreSQL": section, "DatabaseServerIdentifier": plan.server_identifier}
        return json.dumps(lines, indent=2)


def _only(names: list[str], tables: TargetTables) -> TargetTables:
    return {name: columns for name, columns in tables.items() if name in names}


def _require_equal(compared: tuple[Compared, ...]) -> None:
    differing = [c for c in compared if not c.equal]
    if differing:
        counts = "; ".join(f"{c.table}: {c.converted:,} converted, {c.stored:,} stored" for c in differing)
        raise PgOrthancError(
            f"the rows in PostgreSQL differ from those of SQLite, so this is not an index yet: {counts}",
            "make sure that no other session uses the database, then run it again with --start-over",
        )
