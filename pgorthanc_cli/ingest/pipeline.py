"""The parent of an import: hands out batches, and writes their results in order."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db, dicom, index, locks, storage
from pgorthanc_cli.errors import PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.ingest import journal, runs, worker
from pgorthanc_cli.ingest.commit import Committer, DryRunCommitter
from pgorthanc_cli.ingest.model import Archive, Batch, FileProblem, Result, ignore
from pgorthanc_cli.ingest.walk import Source, members
from pgorthanc_cli.workers import Pool, Stopped, pool

if TYPE_CHECKING:
    from pathlib import Path

    from psycopg2.extensions import connection as Connection

    from pgorthanc_cli.ingest.settings import Settings

ReportBatch = Callable[[Batch], None]
Connected = Callable[[db.Endpoint], None]

# The first batches are smaller, so that all workers are soon at work.
_FIRST_FILES = 125
# Of files on disk: a worker has a few of them in memory, and syncs all of them at once.
BATCH_BYTES = 128 << 20
# Of large objects, which are in memory, on both sides of a pipe.
_OBJECT_BATCH_BYTES = 8 << 20
# A batch that has waited longer for more files goes without them.
BATCH_S = 1.0
_WHILE_RUNNING = "import while it is running, with --concurrent"


def import_sources(
    target: db.Target,
    sources: Iterable[Source],
    settings: Settings,
    *,
    jobs: int = 2,
    stop: threading.Event | None = None,
    report: ReportBatch = ignore,
    connected: Connected = ignore,
) -> None:
    """Import sources in order, as Orthanc would one after the other.

    Args:
        target: The database of the index; any revision from 1 on.
        sources: The files, consumed while working.
        settings: How to import.
        jobs: Worker processes; the result does not depend on it.
        stop: Set it to end after the current batch.
        report: Called with each batch, once it is committed.
        connected: Called with where the index is.

    Raises:
        UsageError: The settings contradict each other.
        InUseError: An Orthanc uses the database, with the index lock or without (unless
            `settings.concurrent`).
        RevisionError: There is no index, or none that can be written to.
        ConnectError: The connection was lost; what was reported is committed.
        PgOrthancError: The storage area cannot be written to.
    """
    stop = stop or threading.Event()
    if settings.overwrite is index.Overwrite.IF_CHANGED and not settings.store_md5:
        raise UsageError(
            '"IfChanged" compares MD5s, and "StoreMD5ForAttachments" is false: Orthanc '
            "does not start with both",
            "replace all instances with --overwrite always, or none with --overwrite never",
        )
    report(Batch(warnings=tuple(dicom.check_profile(settings.profile))))
    with ExitStack() as stack:
        # First of all: a forked process must not inherit the connection.
        team = stack.enter_context(_workers(jobs, stop))
        conn = stack.enter_context(db.session(target, readonly=settings.dry_run))
        connected(db.endpoint(conn))
        exclusive = not (settings.concurrent or settings.dry_run)
        if exclusive:
            # The lock that Orthanc itself takes: it cannot start while the import runs.
            stack.enter_context(db.advisory_lock(conn, db.LOCK_INDEX, wait_s=0, otherwise=_WHILE_RUNNING))
            report(Batch(warnings=_require_no_orthanc(conn, target.schema)))
        writer = index.Writer(conn, settings.overwrite, exclusive=exclusive)
        _check_index(conn, writer, settings)
        if settings.dry_run:
            team.begin(worker.Work(target, settings, None))
            rehearsal = DryRunCommitter(conn, settings.overwrite)
            _Pipeline(team, rehearsal, settings, stop, report).run(sources)
            return
        run_journal = _open_journal(conn, settings, stack)
        use_objects = run_journal is None and settings.store_dicom and not settings.adopt
        committer = Committer(
            conn,
            writer,
            storage.LargeObjectArea(conn) if use_objects else None,
            run_journal,
            stable_changes=settings.stable_changes,
            stop=stop,
            adopt=settings.adopt,
        )
        stack.callback(committer.close)
        report(Batch(warnings=tuple(committer.clean_up_dead_runs())))
        team.begin(worker.Work(target, settings, run_journal))
        _Pipeline(team, committer, settings, stop, report).run(sources)
        # Orthanc never logs them for instances that it has not received itself.
        committer.log_stable()
        # Again: runs that may have been alive at the start may be dead by now.
        report(Batch(warnings=tuple(committer.clean_up_dead_runs())))


def _require_no_orthanc(conn: Connection, schema: str) -> tuple[str, ...]:
    """Refuse to import while an Orthanc without a lock is running; return warnings."""
    with conn:
        return locks.require_no_orthanc(conn, schema, otherwise=f"or {_WHILE_RUNNING}")


def _check_index(conn: Connection, writer: index.Writer, settings: Settings) -> None:
    """Refuse an index that import cannot continue.

    If another plugin keeps the files of the index, Orthanc's configuration does not tell
    where they go.
    """
    if settings.adopt and not writer.capabilities.custom_data:
        raise RevisionError(
            "the index is below revision 5: it has no place for the paths of adopted files",
            "run: pgorthanc upgrade",
        )
    with conn, conn.cursor() as cur:
        index.check_sequences(cur)
        plugin = None if settings.storage_given else index.unsupported_plugin(cur, writer.capabilities)
    if plugin:
        raise PgOrthancError(
            f"files of this index are kept by {plugin} (attachedfiles.customdata), not by "
            "a storage that import writes to: Orthanc might not find what is imported",
            "import through that Orthanc (POST /instances); or say where the files go, "
            "with --storage-dir FOLDER or --storage postgresql, if you know that Orthanc "
            "reads them there",
        )


def _open_journal(conn: Connection, settings: Settings, stack: ExitStack) -> journal.Journal | None:
    """Open the journal of the filesystem area; large objects need none."""
    if settings.storage_dir is None:
        return None
    area = storage.FilesystemArea(settings.storage_dir, sync=settings.sync)
    if settings.adopt:
        _create_for_plugin(area.root)
    area.prepare()
    with conn, conn.cursor() as cur:
        database = index.identity(cur)
    return stack.enter_context(journal.open_journal(area, database, runs.Session(conn)))


def _create_for_plugin(folder: Path) -> None:
    """Create a folder of the advanced-storage plugin that is missing, for the owner of the one above.

    root must not own it: Orthanc could not write to it.
    """
    above = next((parent for parent in folder.parents if parent.is_dir()), None)
    if above is None or folder.is_dir():
        return
    try:
        with storage.FilesystemArea(above).rights:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage.write_error(folder, error) from error


# --- workers ----------------------------------------------------------------------------


class _Team:
    """Processes that prepare batches, or this one if there is a single job."""

    def __init__(self, processes: Pool[Any], *, jobs: int) -> None:
        self.jobs = jobs
        self._pool = processes
        self._submit: Callable[..., Future[Any]] = processes.submit
        self._inline: worker.Worker | None = None

    def begin(self, work: worker.Work) -> None:
        """Tell all workers what the work is."""
        if self.jobs == 1:
            # No pickling and no process: the parent works through the same interface.
            self._inline = worker.Worker(work, self._pool.checkpoint)
            self._pool.call = self._inline.prepare
        else:
            self._submit = partial(self._pool.submit, pickle.dumps(work))

    def submit(self, name: str, sources: Sequence[Source]) -> Future[list[Result]]:
        """Have a batch prepared."""
        return self._submit(name, sources)

    def result(self, future: Future[list[Result]]) -> list[Result]:
        """Return the results of a batch; raises as `Pool.result`."""
        results: list[Result] = self._pool.result(future)
        return results

    def close(self) -> None:
        """Close the connection of an inline worker; those of processes end with them."""
        if self._inline:
            self._inline.close()


@contextmanager
def _workers(jobs: int, stop: threading.Event) -> Iterator[_Team]:
    worker.tune_malloc()
    with pool(jobs, worker.call, stop, inline=True, fork=True) as processes:
        team = _Team(processes, jobs=jobs)
        try:
            yield team
        finally:
            team.close()


# --- batches ----------------------------------------------------------------------------


class _Pipeline:
    """Keeps batches in preparation, and writes them in order."""

    def __init__(
        self,
        team: _Team,
        committer: Committer | DryRunCommitter,
        settings: Settings,
        stop: threading.Event,
        report: ReportBatch,
    ) -> None:
        self.team = team
        self.committer = committer
        self.stop = stop
        self.report = report
        self.batch_files = settings.batch_files
        has_objects = isinstance(committer, Committer) and committer.objects
        self.batch_bytes = _OBJECT_BATCH_BYTES if has_objects else BATCH_BYTES
        self.names = (f"{number:08}" for number in itertools.count(1))

    def run(self, sources: Iterable[Source]) -> None:
        """Import the sources."""
        # Two more than are worked on: no worker is idle while the parent writes.
        self._run(sources, self.team.jobs + 2 if self.team.jobs > 1 else 0)

    def _run(self, sources: Iterable[Source], ahead: int) -> None:
        """Import with up to `ahead` batches prepared or in preparation."""
        waiting: deque[tuple[str, Future[list[Result]]]] = deque()
        try:
            for batch in batched(sources, self.batch_files, self.batch_bytes):
                if batch[0].known:
                    self.report(known_batch(batch))
                else:
                    name = next(self.names)
                    waiting.append((name, self.team.submit(name, batch)))
                    if len(waiting) > ahead:
                        self._write(*waiting.popleft())
                if self.stop.is_set():
                    return
            while waiting and not self.stop.is_set():
                self._write(*waiting.popleft())
        except Stopped:
            return  # the batches in preparation are abandoned
        finally:
            self._abandon(waiting)

    def _write(self, name: str, future: Future[list[Result]]) -> None:
        """Write the results of a batch; archives are imported in their place."""
        rest = self.team.result(future)
        try:
            while rest:
                files = list(itertools.takewhile(lambda r: not isinstance(r, Archive), rest))
                batch = self.committer.write(files)
                rest = rest[len(files) :]
                self.report(batch)
                if self.stop.is_set():
                    return
                first = rest.pop(0) if rest else None
                if isinstance(first, Archive):
                    self._import_archive(first.source)
        finally:
            # However it ended: `rest` was stored by a worker and has no row.
            self.committer.forget(name, rest)

    def _import_archive(self, source: Source) -> None:
        try:
            sources = list(members(source.path))
        except (OSError, zipfile.BadZipFile) as error:
            refusal = FileProblem(source.name, f"damaged ZIP archive: {error}")
            self.report(Batch(refusals=(refusal,)))
            return
        self._run(sources, ahead=1)

    def _abandon(self, waiting: Iterable[tuple[str, Future[list[Result]]]]) -> None:
        """Remove what workers have stored for batches that will not be written."""
        for name, future in waiting:
            if not future.cancel():
                # On an error, the worker has removed it, or the next import does.
                with suppress(Exception):
                    self.committer.forget(name, self.team.result(future))


def batched(
    sources: Iterable[Source], batch_files: int, batch_bytes: int = BATCH_BYTES
) -> Iterator[list[Source]]:
    """Group sources, in order, by what one transaction should take.

    A group consists of known files only, or has none. Groups are smaller at first, and
    when the sources come slowly.
    """
    batch: list[Source] = []
    known: list[Source] = []
    size, limit = 0, min(_FIRST_FILES, batch_files)
    started = time.monotonic()
    for source in sources:
        if source.known:
            known.append(source)
            if len(known) >= batch_files:
                yield known
                known = []
            continue
        if not batch:
            started = time.monotonic()
        batch.append(source)
        size += source.size
        full = len(batch) >= limit or size >= batch_bytes
        if full or time.monotonic() - started > BATCH_S:
            if known:
                yield known
                known = []
            yield batch
            batch, size, limit = [], 0, min(2 * limit, batch_files)
    if known:
        yield known
    if batch:
        yield batch


def known_batch(sources: Sequence[Source]) -> Batch:
    """Return the batch of files that are known without being read."""
    return Batch(known=len(sources), bytes=sum(source.size for source in sources))
