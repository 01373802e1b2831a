"""Worker processes, and work handed out to them piece by piece."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.sqlite import worker

_AHEAD = 3  # pieces of work that wait for each worker

Submit = Callable[..., "Future[Any]"]
"""Work, name of a method of `worker.Worker`, its arguments."""


@contextmanager
def workers(jobs: int) -> Iterator[Submit]:
    """The way to have something done by one of so many processes.

    Raises:
        PgOrthancError: No processes can be started.
    """
    context = multiprocessing.get_context("spawn")  # a connection must never be shared across a fork
    try:
        pool = ProcessPoolExecutor(jobs, context, initializer=worker.start)
    except OSError as error:
        raise PgOrthancError(
            f"no worker processes can be started: {error.strerror}", "make /dev/shm writable"
        ) from None
    try:
        yield lambda *arguments, **options: pool.submit(worker.call, *arguments, **options)
    finally:
        pool.shutdown(cancel_futures=True)


def result(future: Future[Any]) -> Any:
    """The result of a piece of work, or its error.

    Raises:
        PgOrthancError: The process ended.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise PgOrthancError(
            "a worker process ended unexpectedly; what was copied is committed",
            "look for the out-of-memory killer in the system log, then run it again: it goes on",
        ) from error


def each(
    submit: Submit,
    phase: str,
    what: str,
    pieces: Iterable[tuple[Any, ...]],
    total: int,
    jobs: int,
    **options: Any,
) -> Iterator[tuple[Progress, Any]]:
    """Have pieces of work done; yields in their order how far it is, and the result of each."""
    waiting: deque[Future[Any]] = deque()
    rest = iter(pieces)
    for number in range(1, total + 1):
        while len(waiting) < jobs * _AHEAD and (piece := next(rest, None)):
            waiting.append(submit(*piece, **options))
        yield Progress(phase, what, number, total), result(waiting.popleft())
