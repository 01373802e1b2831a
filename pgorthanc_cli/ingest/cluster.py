"""The same run on many machines, by a Dask cluster (extra `dask`).

Every file goes to a bucket by its patient, and a bucket is in one task at a time: so no two writers meet on a
patient, and the collisions that are left (by patients told apart late, by workers thought dead) are replayed as
with any other writer. Each task is an import of its own, which commits what it counts and mends what was cut off
before it. Nothing else is kept of the run: a worker or a scheduler that is lost costs time.
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
from pgorthanc_cli.ingest import journal
from pgorthanc_cli.ingest.pipeline import batched, run_sources
from pgorthanc_cli.ingest.report import Batch, Settings
from pgorthanc_cli.ingest.shard import bucket, patient
from pgorthanc_cli.ingest.walk import Source

if TYPE_CHECKING:
    from distributed import Client, Future

TASK_FILES = 1000
WORTHWHILE_FILES = 250  # fewer wait for more of their bucket, as long as more come
BUCKETS_PER_THREAD = 8
WORKERS_S = 30  # how long to wait for the first worker
_LOOK_S = 0.5


@dataclass(frozen=True)
class Job:
    """What workers need to know.

    Attributes:
        target: The database; without a password unless the cluster is encrypted.
        settings: How to import.
        database: Identifies the index: `localhost` may be another one on another machine.
        token: A file in the storage area that every worker must see: else the folder is not shared.
    """

    target: db.Target
    settings: Settings
    database: str
    token: Path | None


def run(
    target: db.Target,
    sources: Iterable[Source | Batch],
    settings: Settings,
    *,
    scheduler: str,
    stop: threading.Event | None = None,
) -> Iterator[Batch]:
    """Import sources on the workers of a Dask cluster; yields what has become of them, task by task.

    Args:
        target: The database, as every worker reaches it.
        sources: As in `run_sources`; workers read the files under the same paths.
        settings: How to import; the storage folder must be the same for all. It works beside other writers, as
            `concurrent` does.
        scheduler: `tcp://host:8786`, `tls://host:8786`, or the path of a scheduler file.
        stop: Set it to end after the tasks at hand.

    Raises:
        UsageError: Dask is not installed, or not with all workers this version of pgorthanc; or `stable_changes`.
        ConnectError: There is no scheduler, or no worker.
        PgOrthancError: What `run_sources` raises, on any worker; what was yielded is committed.
    """
    if settings.stable_changes:
        raise UsageError(
            "a cluster imports in pieces, and --stable-changes would log each of them as stable",
            "leave out --stable-changes or --dask",
        )
    settings = replace(settings, concurrent=True)
    address = _address(scheduler)
    with _client(address) as client, _job(target, settings, address) as job:
        threads = _threads(client)
        yield from _Run(client, job, threads, stop or threading.Event()).run(sources)


@contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("--dask needs Dask", "pip install 'pgorthanc[dask]'") from None
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what it has to say, it raises, too
    try:
        client = Client(address, name="pgorthanc import", timeout=WORKERS_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(error) or type(error).__name__) from None
    with client, client.as_current():
        yield client


def _address(scheduler: str) -> str:
    """The address itself, or the one in a scheduler file: Dask would wait for a file that is not there."""
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
def _job(target: db.Target, settings: Settings, address: str) -> Iterator[Job]:
    """Everything is looked at here once before workers are asked."""
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        index.Capabilities.read(conn)
        database = index.identity(cur)
    token, area = None, None
    if settings.storage_dir and not settings.dry_run:
        area = storage.FilesystemArea(settings.storage_dir)
        area.prepare()
        token = settings.storage_dir.absolute() / journal.FOLDER / f"{uuid.uuid4().hex}.token"
        journal.make_token(area, token.name)
        settings = replace(settings, storage_dir=settings.storage_dir.absolute())
    try:
        yield Job(_portable(target, address), settings, database, token)
    finally:
        if token and area:
            journal.remove_token(area, token.name)


def _portable(target: db.Target, address: str) -> db.Target:
    """The target without secrets, which are not sent in the clear: workers have .pgpass or PGPASSWORD."""
    if address.startswith("tls://"):
        return target
    kept = {k: v for k, v in db.parse_dsn(target.dsn).items() if k not in db.SECRETS}
    return replace(target, dsn=make_dsn(**kept))


def _threads(client: Client) -> int:
    """How many tasks the cluster works on at once."""
    from distributed import TimeoutError as Late

    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except Late:
        raise ConnectError(
            "the Dask cluster has no worker", "start some with: dask worker ADDRESS --nthreads 1 --nworkers N"
        ) from None
    versions: dict[str, str] = client.run(_version, on_error="return")
    for worker, version in versions.items():
        if version != __version__:
            raise UsageError(
                f"the worker {worker} has pgorthanc {version}, expected {__version__}",
                "install the same version on all machines of the cluster",
            )
    return sum(client.nthreads().values())


class _Run:
    """Keeps the workers busy: first with telling patients apart, then with importing them."""

    def __init__(self, client: Client, job: Job, threads: int, stop: threading.Event) -> None:
        self.client = client
        self.job = job
        self.stop = stop
        self.at_once = threads + max(2, threads // 4)  # some wait at the workers, so that none is idle
        self.buckets = threads * BUCKETS_PER_THREAD
        self.most = self.buckets * 2 * WORTHWHILE_FILES  # that wait for a worker
        self.sorting: dict[Future, list[Source]] = {}
        self.importing: dict[Future, int] = {}  # the bucket of each task
        self.waiting: dict[int, deque[Source]] = {}
        self.held = 0

    def run(self, sources: Iterable[Source | Batch]) -> Iterator[Batch]:
        chunks = batched(sources)
        more = True
        while more or self.sorting or self.held or self.importing:
            while more and not self.stop.is_set() and self._may_sort():
                chunk = next(chunks, None)
                if isinstance(chunk, Batch):
                    yield chunk
                elif chunk is not None:
                    self.sorting[self._submit(_buckets, chunk, self.buckets)] = chunk
                more = chunk is not None
            if self.stop.is_set():
                more = False
                self._drop()
            better = self.sorting or (
                more and self._may_sort()
            )  # to wait for more than to send what there is
            self._import(WORTHWHILE_FILES if better else 1)
            yield from self._finished()

    def _may_sort(self) -> bool:
        return len(self.sorting) < self.at_once and self.held < self.most

    def _submit(self, function: Any, *arguments: object) -> Future:
        return self.client.submit(function, *arguments, pure=False)

    def _drop(self) -> None:
        """Forget what nobody imports yet."""
        self.client.cancel(list(self.sorting))
        self.sorting.clear()
        self.waiting.clear()
        self.held = 0

    def _import(self, least: int) -> None:
        """Hand out buckets of `least` files or more, the fullest first, each to one worker at a time."""
        busy = set(self.importing.values())
        sizes = ((len(queue), n) for n, queue in self.waiting.items() if n not in busy)
        fullest = sorted((pair for pair in sizes if pair[0] >= least), reverse=True)
        for _, n in fullest[: max(self.at_once - len(self.importing), 0)]:
            queue = self.waiting[n]
            part = [queue.popleft() for _ in range(min(TASK_FILES, len(queue)))]
            self.held -= len(part)
            self.importing[self._submit(_import, self.job, part)] = n

    def _finished(self) -> Iterator[Batch]:
        """What has become of tasks that are done; waits a moment for one."""
        for task, result in _done([*self.sorting, *self.importing]):
            if task in self.importing:
                del self.importing[task]
                yield result
            else:
                for source, n in zip(self.sorting.pop(task), result, strict=True):
                    self.waiting.setdefault(n, deque()).append(source)
                    self.held += 1


def _done(tasks: Sequence[Future]) -> list[tuple[Future, Any]]:
    """Those that are done, and their results."""
    from distributed import TimeoutError as Late
    from distributed import wait
    from distributed.scheduler import KilledWorker

    try:
        done = wait(tasks, timeout=_LOOK_S, return_when="FIRST_COMPLETED").done if tasks else ()
        return [(task, task.result()) for task in done]
    except Late:
        return []
    except PgOrthancError:
        raise
    except KilledWorker as error:
        raise PgOrthancError(
            f"workers died again and again over one task, the last one at {error.last_worker.address}",
            "look into the log of the worker (memory?), and run it again: what was counted is committed",
        ) from None
    except Exception as error:
        raise PgOrthancError(
            f"the Dask cluster failed: {type(error).__name__}",
            "look into the logs of scheduler and workers, and run it again: what was counted is committed",
        ) from error


# --- on the workers --------------------------------------------------------------------------------------------


def _version() -> str:
    return __version__


def _buckets(sources: Sequence[Source], count: int) -> list[int]:
    """The bucket of each file: that of its patient, or of its path where that cannot be told."""
    return [
        bucket(patient(source) or source.path.encode("utf-8", "surrogateescape"), count) for source in sources
    ]


def _import(job: Job, sources: Sequence[Source]) -> Batch:
    """One task: the files of one bucket, in their order."""
    _check(job)
    total = Batch()
    for batch in run_sources(job.target, sources, job.settings, jobs=1):
        total = total + batch
    return total


def _check(job: Job) -> None:
    """Make sure that this machine sees the same folder and the same database as the others.

    Raises:
        PgOrthancError: It does not.
    """
    if job.token and not job.token.exists():
        raise PgOrthancError(
            f"a worker does not see the storage folder {job.settings.storage_dir} of the others",
            "mount it at the same path on all machines, or use --storage postgresql",
        )
    with db.session(job.target, readonly=True) as conn, conn.cursor() as cur:
        found = index.identity(cur)
    if found != job.database:
        raise PgOrthancError(
            f"a worker reaches another database under {job.target}",
            "name the server with --host as all machines know it",
        )
