"""Worker processes: each has a pipe of its own, and a batch at a time.

concurrent.futures has one pipe for the answers of all processes: when one is killed while it answers, the parent
waits for the rest of that answer for ever. Here the pipe ends with its process, whatever it was doing.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import worker
from pgorthanc_cli.ingest.walk import Source

Submit = Callable[[str, Sequence[Source]], "Future[list[worker.Result]]"]


@contextmanager
def workers(work: worker.Work, jobs: int) -> Iterator[Submit]:
    """The way to have batches prepared: by processes, or by this one if it works alone.

    A future raises what the worker raised, or PgOrthancError if its process was killed.
    """
    if jobs == 1:
        yield _inline(worker.Worker(work))
        return
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    processes = [_Process(work) for _ in range(jobs)]
    for process in processes:
        idle.put(process)

    def prepare(name: str, sources: Sequence[Source]) -> list[worker.Result]:
        process = idle.get()
        try:
            return process.prepare(name, sources)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(jobs, "worker")
    try:
        yield lambda name, sources: threads.submit(prepare, name, sources)
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.end()


class _Process:
    """One worker process, started at once."""

    def __init__(self, work: worker.Work) -> None:
        context = multiprocessing.get_context("spawn")  # a connection must never be shared across a fork
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(end, work))
        self._process.start()
        end.close()  # so that the pipe ends with the process

    def prepare(self, name: str, sources: Sequence[Source]) -> list[worker.Result]:
        try:
            self._pipe.send((name, sources))
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise PgOrthancError(
                "a worker process ended unexpectedly; everything that was counted is committed",
                "look for the out-of-memory killer in the system log, then run it again with fewer --jobs",
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        results: list[worker.Result] = answer
        return results

    def end(self) -> None:
        """Let it finish what it has in hand, and wait for it."""
        self._pipe.close()
        self._process.join()


def _inline(alone: worker.Worker) -> Submit:
    def submit(name: str, sources: Sequence[Source]) -> Future[list[worker.Result]]:
        future: Future[list[worker.Result]] = Future()
        try:
            future.set_result(alone.prepare(name, sources))
        except Exception as error:  # noqa: BLE001 - as a thread does it: raised by future.result()
            future.set_exception(error)
        return future

    return submit
