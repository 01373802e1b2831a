"""Worker processes: each has a pipe of its own, and a batch at a time.

They are forked where that is safe, which takes no time; else they are new processes (0.2 s).

concurrent.futures has one pipe for the answers of all processes: when one is killed while it answers, the parent
waits for the rest of that answer for ever. Here the pipe ends with its process, whatever it was doing.
"""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import worker
from pgorthanc_cli.ingest.walk import Source

Submit = Callable[[str, Sequence[Source]], "Future[list[worker.Result]]"]
Start = Callable[[worker.Work], Submit]


@contextmanager
def workers(jobs: int) -> Iterator[Start]:
    """Processes that prepare batches, or this one if it works alone; they begin when they are told the work.

    Enter it before anything is opened that a forked process must not share: connections, locks. A future raises what
    the worker raised, or PgOrthancError if its process was killed.
    """
    worker.keep_memory()
    if jobs == 1:
        yield lambda work: _inline(worker.Worker(work))
        return
    processes: list[_Process] = []
    threads = ThreadPoolExecutor(jobs, "worker")
    try:
        for _ in range(jobs):
            processes.append(_Process(processes))
        yield lambda work: _handing_out(processes, threads, work)
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()
        for process in processes:
            process.join()


def _handing_out(processes: Sequence[_Process], threads: ThreadPoolExecutor, work: worker.Work) -> Submit:
    """Each batch to a process that has nothing to do."""
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    for process in processes:
        process.send(work)
        idle.put(process)

    def prepare(name: str, sources: Sequence[Source]) -> list[worker.Result]:
        process = idle.get()
        try:
            return process.prepare(name, sources)
        finally:
            idle.put(process)

    return lambda name, sources: threads.submit(prepare, name, sources)


class _Process:
    """One worker process, started at once."""

    def __init__(self, others: Sequence[_Process]) -> None:
        """`others` were started before."""
        forks = sys.platform == "linux" and threading.active_count() == 1
        context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        ours = [self._pipe, *(other._pipe for other in others)] if forks else []
        self._process = context.Process(target=worker.serve, args=(end, ours))
        self._process.start()
        end.close()  # so that the pipe ends with the process

    def prepare(self, name: str, sources: Sequence[Source]) -> list[worker.Result]:
        self.send((name, sources))
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _killed() from error
        if isinstance(answer, BaseException):
            raise answer
        results: list[worker.Result] = answer
        return results

    def send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise _killed() from error

    def close(self) -> None:
        """Let it finish what it has in hand, and end."""
        self._pipe.close()

    def join(self) -> None:
        self._process.join()


def _killed() -> PgOrthancError:
    return PgOrthancError(
        "a worker process ended unexpectedly; everything that was counted is committed",
        "look for the out-of-memory killer in the system log, then run it again with fewer --jobs",
    )


def _inline(alone: worker.Worker) -> Submit:
    def submit(name: str, sources: Sequence[Source]) -> Future[list[worker.Result]]:
        future: Future[list[worker.Result]] = Future()
        try:
            future.set_result(alone.prepare(name, sources))
        except Exception as error:  # noqa: BLE001 - as a thread does it: raised by future.result()
            future.set_exception(error)
        return future

    return submit
