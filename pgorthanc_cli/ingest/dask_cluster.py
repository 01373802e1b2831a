"""An import on many machines, on a Dask cluster (extra `dask`).

Every file goes to a bucket by its patient, and a bucket is in one task at a time, so no
two writers meet on a patient. The remaining collisions (workers thought dead, files whose
patient was not recognized) are retried as with any other writer. Each task is an import
of its own, which commits what it counts and cleans up after a task that was cut off.
There is no other state: a lost worker or scheduler costs time.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import make_dsn

from pgorthanc_cli import __version__, db, index, storage
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.ingest import journal, pipeline
from pgorthanc_cli.ingest.model import Batch, ignore
from pgorthanc_cli.ingest.walk import Source, bucket, patient_key

if TYPE_CHECKING:
    from distributed import Client, Future

    from pgorthanc_cli.ingest.settings import Settings

TASK_FILES = 1000
WORTHWHILE_FILES = 250  # a bucket with fewer waits for more of them
BUCKETS_PER_THREAD = 8
WORKERS_S = 30.0  # how long to wait for the scheduler, and for the first worker
_WAIT_S = 0.5  # for a task, before checking whether to stop


@dataclass(frozen=True)
class Job:
    """What the workers need to know.

    Attributes:
        target: The database; without a password unless the cluster is encrypted.
        settings: How to import.
        database: Identifies the index: `localhost` may be another one on another machine.
        token: A file in the storage area that every worker must see; else the folder is
            not shared.
    """

    target: db.Target
    settings: Settings
    database: str
    token: Path | None


def import_sources(
    target: db.Target,
    sources: Iterable[Source],
    settings: Settings,
    *,
    scheduler: str,
    stop: threading.Event | None = None,
    report: pipeline.ReportBatch = ignore,
    connected: pipeline.Connected = ignore,
    workers_s: float = WORKERS_S,
) -> None:
    """Import sources on the workers of a Dask cluster.

    Args:
        target: The database, as every worker reaches it.
        sources: As in `pipeline.import_sources`; workers read the files under the same
            paths.
        settings: How to import; the storage folder must be the same for all. Other
            writers are let in, as with `concurrent`.
        scheduler: `tcp://host:8786`, `tls://host:8786`, or the path of a scheduler file.
        stop: Set it to end after the current tasks.
        report: Called with each batch, once it is committed.
        connected: Called with where the index is.
        workers_s: How long to wait for the scheduler, and for the first worker.

    Raises:
        UsageError: Dask is not installed, or some workers have another version of
            pgorthanc; or `stable_changes`.
        ConnectError: There is no scheduler, or no worker.
        PgOrthancError: What `pipeline.import_sources` raises, on any worker; what was
            reported is committed.
    """
    if settings.stable_changes:
        raise UsageError(
            "a cluster imports in pieces, and --stable-changes would log each of them as stable",
            "leave out --stable-changes or --dask",
        )
    # The tasks are writers of their own: none may take the index lock for itself.
    settings = replace(settings, concurrent=True)
    address = _address(scheduler)
    with (
        _client(address, workers_s) as client,
        _job(target, settings, address, connected) as job,
    ):
        threads = _check_workers(client, workers_s)
        _Run(client, job, threads, stop or threading.Event(), report).run(sources)


@contextmanager
def _client(address: str, timeout_s: float) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("--dask needs Dask", "pip install 'pgorthanc[dask]'") from None
    for name in ("distributed", "distributed.client"):
        # Whatever it logs, it raises too.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        client = Client(address, name="pgorthanc import", timeout=timeout_s, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(error) or type(error).__name__) from None
    # `wait` finds the current client.
    with client, client.as_current():
        yield client


def _address(scheduler: str) -> str:
    """Return the address, read from a scheduler file if need be.

    Dask itself would wait for a missing file.
    """
    if "://" in scheduler:
        return scheduler
    try:
        return str(json.loads(Path(scheduler).read_text("utf-8"))["address"])
    except OSError as error:
        raise _unreachable(scheduler, error.strerror or "it cannot be read") from None
    except (ValueError, KeyError, TypeError):
        raise _unreachable(scheduler, "it is no scheduler file") from None


def _unreachable(scheduler: str, reason: str) -> ConnectError:
    return ConnectError(
        f"there is no Dask scheduler at {scheduler}: {reason}",
        "start it with: dask scheduler; and workers with: dask worker ADDRESS",
    )


@contextmanager
def _job(target: db.Target, settings: Settings, address: str, connected: pipeline.Connected) -> Iterator[Job]:
    """Yield the job, after checking the database and the storage area from here."""
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        connected(db.endpoint(conn))
        index.Capabilities.read(conn)
        database = index.identity(cur)
    token, area = None, None
    if settings.storage_dir and not settings.dry_run:
        area = storage.FilesystemArea(settings.storage_dir)
        area.prepare()
        folder = settings.storage_dir.absolute() / journal.FOLDER
        token = folder / f"{uuid.uuid4().hex}.token"
        journal.create_token(area, token.name)
        settings = replace(settings, storage_dir=settings.storage_dir.absolute())
    try:
        yield Job(_portable(target, address), settings, database, token)
    finally:
        if token and area:
            journal.remove_token(area, token.name)


def _portable(target: db.Target, address: str) -> db.Target:
    """Return the target without secrets, which are never sent in the clear.

    Workers have .pgpass or PGPASSWORD.
    """
    if address.startswith("tls://"):
        return target
    parameters = {k: v for k, v in db.parse_dsn(target.dsn).items() if k not in db.SECRETS}
    return replace(target, dsn=make_dsn(**parameters))


def _check_workers(client: Client, timeout_s: float) -> int:
    """Check the version of the workers; return how many tasks run at the same time."""
    from distributed import TimeoutError as DaskTimeout

    try:
        client.wait_for_workers(1, timeout=timeout_s)
    except DaskTimeout:
        raise ConnectError(
            "the Dask cluster has no worker",
            "start some with: dask worker ADDRESS --nthreads 1 --nworkers N",
        ) from None
    # A worker without pgorthanc returns its ImportError, which is no version either.
    versions: dict[str, str] = client.run(_version, on_error="return")
    for worker, version in versions.items():
        if version != __version__:
            raise UsageError(
                f"the worker {worker} has pgorthanc {version}, expected {__version__}",
                "install the same version on all machines of the cluster",
            )
    return sum(client.nthreads().values())


class _Run:
    """Keeps the workers busy: they sort files into buckets, and import the buckets."""

    def __init__(
        self,
        client: Client,
        job: Job,
        threads: int,
        stop: threading.Event,
        report: pipeline.ReportBatch,
    ) -> None:
        self.client = client
        self.job = job
        self.stop = stop
        self.report = report
        # Some tasks wait at the workers, so that none is idle.
        self.max_tasks = threads + max(2, threads // 4)
        self.buckets = threads * BUCKETS_PER_THREAD
        self.max_waiting = self.buckets * 2 * WORTHWHILE_FILES
        self.sorting: dict[Future, list[Source]] = {}
        self.importing: dict[Future, int] = {}  # the bucket of each task
        self.waiting: dict[int, deque[Source]] = {}  # by bucket: files for a next task
        self.waiting_files = 0

    def run(self, sources: Iterable[Source]) -> None:
        batches = pipeline.batched(sources, self.job.settings.batch_files)
        more = True
        while more or self.sorting or self.waiting_files or self.importing:
            while more and not self.stop.is_set() and self._can_sort():
                batch = next(batches, None)
                if batch is None:
                    more = False
                elif batch[0].known:
                    self.report(pipeline.known_batch(batch))
                else:
                    task = self._submit(_buckets, batch, self.buckets)
                    self.sorting[task] = batch
            if self.stop.is_set():
                more = False
                self._drop()
            # While more files come, small buckets wait for them.
            growing = self.sorting or (more and self._can_sort())
            self._import(WORTHWHILE_FILES if growing else 1)
            self._collect()

    def _can_sort(self) -> bool:
        return len(self.sorting) < self.max_tasks and self.waiting_files < self.max_waiting

    def _submit(self, function: Any, *arguments: object) -> Future:
        # Dask would run pure functions with equal arguments only once.
        return self.client.submit(function, *arguments, pure=False)

    def _drop(self) -> None:
        """Forget the files that no worker imports yet."""
        # Imports that have begun finish: what they commit must be counted.
        self.client.cancel(list(self.sorting))
        self.sorting.clear()
        self.waiting.clear()
        self.waiting_files = 0

    def _import(self, min_files: int) -> None:
        """Submit buckets of at least `min_files`, the fullest first, each to one task."""
        # Two tasks of one bucket could collide over the same patient.
        busy = set(self.importing.values())
        sizes = [(len(queue), n) for n, queue in self.waiting.items() if n not in busy]
        fullest = sorted((pair for pair in sizes if pair[0] >= min_files), reverse=True)
        for _, n in fullest[: max(self.max_tasks - len(self.importing), 0)]:
            queue = self.waiting[n]
            files = [queue.popleft() for _ in range(min(TASK_FILES, len(queue)))]
            self.waiting_files -= len(files)
            self.importing[self._submit(_import, self.job, files)] = n

    def _collect(self) -> None:
        """Take the results of finished tasks; waits a moment for one."""
        for task, result in _finished([*self.sorting, *self.importing]):
            if task in self.importing:
                del self.importing[task]
                self.report(result)
            else:
                for source, n in zip(self.sorting.pop(task), result, strict=True):
                    self.waiting.setdefault(n, deque()).append(source)
                    self.waiting_files += 1


def _finished(tasks: Sequence[Future]) -> list[tuple[Future, Any]]:
    """Return the tasks that have finished, and their results."""
    from distributed import TimeoutError as DaskTimeout
    from distributed import wait
    from distributed.scheduler import KilledWorker

    if not tasks:
        return []
    try:
        done = wait(tasks, timeout=_WAIT_S, return_when="FIRST_COMPLETED").done
        return [(task, task.result()) for task in done]
    except DaskTimeout:
        return []
    except PgOrthancError:
        raise
    except KilledWorker as error:
        worker = error.last_worker.address
        raise PgOrthancError(
            f"workers died again and again over one task, the last one at {worker}",
            "look into the log of the worker (memory?), and run it again: what was counted is committed",
        ) from None
    except Exception as error:
        raise PgOrthancError(
            f"the Dask cluster failed: {type(error).__name__}",
            "look into the logs of scheduler and workers, and run it again: what was counted is committed",
        ) from error


# --- on the workers ---------------------------------------------------------------------


def _version() -> str:
    return __version__


def _buckets(sources: Sequence[Source], count: int) -> list[int]:
    """Return the bucket of each file, by its patient or, if unknown, its path."""
    buckets = []
    for source in sources:
        # os.fsencode would depend on the locale of the worker.
        key = patient_key(source) or source.path.encode("utf-8", "surrogateescape")
        buckets.append(bucket(key, count))
    return buckets


def _import(job: Job, sources: Sequence[Source]) -> Batch:
    """Run one task: import the files of one bucket, in their order."""
    _check(job)
    total = Batch()

    def add(batch: Batch) -> None:
        nonlocal total
        total = total + batch

    # The cluster runs a task on each of its threads: more processes would only compete.
    pipeline.import_sources(job.target, sources, job.settings, jobs=1, report=add)
    return total


def _check(job: Job) -> None:
    """Raise PgOrthancError unless this machine sees the same folder and database."""
    if job.token and not job.token.exists():
        raise PgOrthancError(
            f"a worker does not see the storage folder {job.settings.storage_dir} of the others",
            "mount it at the same path on all machines, or use --storage postgresql",
        )
    with db.session(job.target, readonly=True) as conn, conn.cursor() as cur:
        database = index.identity(cur)
    if database != job.database:
        raise PgOrthancError(
            f"a worker reaches another database under {job.target}",
            "name the server with --host as all machines know it",
        )
