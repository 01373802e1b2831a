"""Work handed out to worker processes, piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from pgorthanc_cli.progress import Progress
from pgorthanc_cli.workers import Pool

_AHEAD = 3  # pieces of work that wait for each worker


def each(
    pool: Pool,
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
            waiting.append(pool.submit(*piece, **options))
        yield Progress(phase, what, number, total), pool.result(waiting.popleft())
