"""The parent of an import: batches out to the workers, results back in order, a transaction for each."""

from __future__ import annotations

import itertools
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from pgorthanc_cli import db, dicom, index, locks, storage
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.ingest import journal, runs, walk, worker
from pgorthanc_cli.ingest.commit import Committer, Rehearsal
from pgorthanc_cli.ingest.pool import Team, workers
from pgorthanc_cli.ingest.report import Batch, Settings
from pgorthanc_cli.ingest.walk import Source
from pgorthanc_cli.ingest.worker import Opened, Refusal, Result
from pgorthanc_cli.workers import Stopped

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

BATCH_FILES = 1000
_FIRST_FILES = 125  # the first batches are smaller, so that all that works is at work soon
BATCH_BYTES = 16 << 20
_OBJECT_BATCH_BYTES = 8 << 20  # large objects: there are copies of them on both sides of a pipe
BATCH_S = 1.0  # what has waited longer for the rest of its batch goes without it


def run(
    target: db.Target,
    paths: Iterable[str],
    settings: Settings,
    *,
    jobs: int = 2,
    stop: threading.Event | None = None,
) -> Iterator[Batch]:
    """Import files, folders and archives; as `run_sources` with what `walk` finds under `paths`."""
    yield from run_sources(target, walk.walk(paths, settings.storage_dir), settings, jobs=jobs, stop=stop)


def run_sources(
    target: db.Target,
    sources: Iterable[Source | Batch],
    settings: Settings,
    *,
    jobs: int = 2,
    stop: threading.Event | None = None,
) -> Iterator[Batch]:
    """Import sources; yields what has become of them, batch by batch.

    Args:
        target: The database of the index; any revision from 1 on.
        sources: What to import, in order; consumed while working. A `Batch` among them says what has become of
            files that need no work, and is passed on.
        settings: How to import.
        jobs: Worker processes; the result does not depend on it.
        stop: Set it to end after the batch at hand; what was yielded is committed.

    Raises:
        UsageError: `settings` ask for what cannot be.
        InUseError: An Orthanc uses the database, with the index lock or without (unless `settings.concurrent`).
        RevisionError: There is no index, or none that can be written to.
        ConnectError: The database went away; what was yielded is committed.
        PgOrthancError: The storage area cannot be written to.
    """
    stop = stop or threading.Event()
    if settings.overwrite is index.Overwrite.IF_CHANGED and not settings.store_md5:
        raise UsageError(
            '"IfChanged" compares MD5s, and "StoreMD5ForAttachments" is false: Orthanc does not start with both',
            "replace all instances with --overwrite always, or none with --overwrite never",
        )
    yield Batch(warnings=tuple(dicom.check_profile(settings.profile)))
    ahead = jobs + 2 if jobs > 1 else 0
    with ExitStack() as stack:
        # First: a forked process must not have a copy of what is opened afterwards.
        team = stack.enter_context(workers(jobs, stop))
        conn = stack.enter_context(db.session(target, readonly=settings.dry_run))
        if not (settings.concurrent or settings.dry_run):
            stack.enter_context(db.advisory_lock(conn, db.LOCK_INDEX, wait_s=0))
            yield Batch(warnings=_alone(conn, target.schema))
        writer = index.Writer(conn, settings.overwrite)
        with conn, conn.cursor() as cur:
            index.check_sequences(cur)
            if not settings.storage_given:
                _refuse_foreign(cur, writer.capabilities)
        if settings.dry_run:
            team.begin(_work(target, settings, None))
            pipeline = _Pipeline(team, Rehearsal(conn, settings.overwrite), stop)
            yield from pipeline.run(sources, ahead=ahead)
            return
        journals = _journals(conn, settings, stack)
        objects = None if journals or not settings.store_dicom else storage.LargeObjectArea(conn)
        committer = Committer(
            conn, writer, objects, journals, stable_changes=settings.stable_changes, stop=stop
        )
        yield Batch(warnings=tuple(committer.settle_dead_runs()))
        team.begin(_work(target, settings, journals))
        most_bytes = _OBJECT_BATCH_BYTES if objects else BATCH_BYTES
        pipeline = _Pipeline(team, committer, stop, most_bytes)
        yield from pipeline.run(sources, ahead=ahead)
        committer.log_stable()
        yield Batch(
            warnings=tuple(committer.settle_dead_runs())
        )  # those that may have been alive at the start


def _alone(conn: Connection, schema: str) -> tuple[str, ...]:
    """Refuse to work beside an Orthanc that holds no lock; returns warnings about what cannot be seen."""
    with conn:
        return locks.require_no_orthanc(
            conn, schema, otherwise="or import while it is running, with --concurrent"
        )


def _refuse_foreign(cur: Cursor, layout: index.Capabilities) -> None:
    """Refuse to conclude from the configuration where the files go, if another plugin keeps those of the index."""
    if plugin := index.unsupported_plugin(cur, layout):
        raise PgOrthancError(
            f"files of this index are kept by {plugin} (attachedfiles.customdata), not by a storage that import "
            "writes to: Orthanc might not find what is imported",
            "import through that Orthanc (POST /instances); or say where the files go, with --storage-dir FOLDER "
            "or --storage postgresql, if you know that Orthanc reads them there",
        )


def _journals(conn: Connection, settings: Settings, stack: ExitStack) -> journal.Journal | None:
    """The journal of the filesystem area; large objects need none."""
    if settings.storage_dir is None:
        return None
    area = storage.FilesystemArea(settings.storage_dir, sync=settings.sync)
    area.prepare()
    with conn, conn.cursor() as cur:
        database = index.identity(cur)
    return stack.enter_context(journal.opened(area, database, runs.Session(conn)))


def _work(target: db.Target, settings: Settings, journals: journal.Journal | None) -> worker.Work:
    return worker.Work(
        target=target,
        profile=settings.profile,
        journals=journals,
        storage_dir=settings.storage_dir,
        compress=settings.compress,
        store_md5=settings.store_md5,
        store_dicom=settings.store_dicom,
        link=settings.link,
        overwrite=settings.overwrite,
        write=not settings.dry_run,
    )


class _Pipeline:
    """Keeps batches in preparation and writes them in order; archives are imported in their place."""

    def __init__(
        self,
        team: Team,
        committer: Committer | Rehearsal,
        stop: threading.Event,
        most_bytes: int = BATCH_BYTES,
    ) -> None:
        self.most_bytes = most_bytes
        self.team = team
        self.committer = committer
        self.stop = stop
        self.names = (f"{number:08}" for number in itertools.count(1))

    def run(self, sources: Iterable[Source | Batch], ahead: int) -> Iterator[Batch]:
        """Import the sources, with up to `ahead` batches prepared or in preparation."""
        waiting: deque[tuple[str, Future[list[Result]]]] = deque()
        try:
            for batch in batched(sources, self.most_bytes):
                if isinstance(batch, Batch):
                    yield batch
                    if self.stop.is_set():
                        return
                    continue
                name = next(self.names)
                waiting.append((name, self.team.submit(name, batch)))
                if len(waiting) > ahead:
                    yield from self._settle(*waiting.popleft())
                if self.stop.is_set():
                    return
            while waiting and not self.stop.is_set():
                yield from self._settle(*waiting.popleft())
        except Stopped:
            return  # what was in hand is given up
        finally:
            self._abandon(waiting)

    def _settle(self, name: str, future: Future[list[Result]]) -> Iterator[Batch]:
        rest = self.team.result(future)
        try:
            while rest:
                plain = list(itertools.takewhile(lambda r: not isinstance(r, Opened), rest))
                batch = self.committer.write(plain)
                rest = rest[len(plain) :]
                yield batch
                if self.stop.is_set():
                    return
                first = rest.pop(0) if rest else None
                if isinstance(first, Opened):
                    yield from self._archive(first.source)
        finally:
            self.committer.forget(name, rest)

    def _archive(self, source: Source) -> Iterator[Batch]:
        try:
            members = list(walk.members(source.path))
        except (OSError, zipfile.BadZipFile) as error:
            yield Batch(refusals=(Refusal(walk.shown(source), f"damaged ZIP archive: {error}"),))
            return
        yield from self.run(members, ahead=1)

    def _abandon(self, waiting: Iterable[tuple[str, Future[list[Result]]]]) -> None:
        """Undo what workers have stored for batches that will not be written."""
        for name, future in waiting:
            if not future.cancel():
                with suppress(Exception):  # then the worker has undone it, or the next import does
                    self.committer.forget(name, self.team.result(future))


def batched(
    sources: Iterable[Source | Batch], most_bytes: int = BATCH_BYTES
) -> Iterator[list[Source] | Batch]:
    """Sources in order, as many together as one transaction should take; fewer at first, and when they come slowly."""
    batch: list[Source] = []
    size, most = 0, min(_FIRST_FILES, BATCH_FILES)
    started = time.monotonic()
    for source in sources:
        if isinstance(source, Batch):
            yield source
            continue
        if not batch:
            started = time.monotonic()
        batch.append(source)
        size += source.size
        full = len(batch) >= most or size >= most_bytes
        if full or time.monotonic() - started > BATCH_S:
            yield batch
            batch, size, most = [], 0, min(2 * most, BATCH_FILES)
    if batch:
        yield batch
