"""The workers of an import: they prepare batches."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from pgorthanc_cli.ingest import worker
from pgorthanc_cli.ingest.walk import Source
from pgorthanc_cli.workers import Pool, pool


class Team:
    """Processes that prepare batches, or this one if it works alone."""

    def __init__(self, made: Pool, *, alone: bool) -> None:
        self._pool = made
        self._alone = alone
        self._submit: Callable[..., Future[Any]] = made.submit

    def begin(self, work: worker.Work) -> None:
        """Say what the work is."""
        if self._alone:
            self._pool.call = worker.Worker(work, self._pool.checkpoint).prepare
        else:
            self._submit = partial(self._pool.submit, pickle.dumps(work))

    def submit(self, name: str, sources: Sequence[Source]) -> Future[list[worker.Result]]:
        """Have a batch prepared."""
        return self._submit(name, sources)

    def result(self, future: Future[list[worker.Result]]) -> list[worker.Result]:
        """See `Pool.result`."""
        results: list[worker.Result] = self._pool.result(future)
        return results


@contextmanager
def workers(jobs: int, stop: threading.Event) -> Iterator[Team]:
    """A team of that many; see `pgorthanc_cli.workers.pool`."""
    worker.keep_memory()
    with pool(jobs, worker.call, stop, inline=True, fork=True) as made:
        yield Team(made, alone=jobs == 1)
