"""Files that arrive: found by looking again and again, and taken when they are complete.

Looking, not listening: it is the same on every file system, network mounts included, forgets nothing when a queue
overflows, and needs no watch for each folder. It takes a tenth of the time at most.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from pgorthanc_cli.ingest.walk import Source

EVERY_S = 1.0
REST = 9  # times as long as the look took
MAX_WAITING = 10_000  # files that are not complete yet; more are found later
_F_SETSIG = 10  # Linux; Python has no name for it


def settled(sources: Iterable[Source], settle_s: float) -> Iterator[Source]:
    """Those that nobody has touched for a while, by the clock; what is left out will be seen to arrive."""
    latest = time.time_ns() - int(settle_s * 1e9)
    for source in sources:
        if source.problem or (source.mtime_ns <= latest and not _being_written(source.path)):
            yield source


def arrivals(
    look: Callable[[], Iterable[Source]], stop: threading.Event, *, settle_s: float
) -> Iterator[list[Source]]:
    """What `look` finds, as soon as it is complete, round by round until `stop` is set.

    A file is complete when its size and time of change have stayed the same for `settle_s` seconds, and nobody on
    this machine has it open for writing (where the file system can tell). What was handed out must not be found
    by `look` any more unless it has changed.
    """
    waiting: dict[str, tuple[Source, float]] = {}  # by path: as it was, and since when
    while not stop.is_set():
        started = time.monotonic()
        still: dict[str, tuple[Source, float]] = {}
        complete = []
        for source in look():
            was, since = waiting.get(source.path, (None, started))
            if was != source:
                since = started
            if source.problem or (started - since >= settle_s and not _being_written(source.path)):
                complete.append(source)
            else:
                still[source.path] = source, since
            if stop.is_set():
                return
            if len(still) + len(complete) >= MAX_WAITING:
                break
        waiting = still
        if complete:
            yield complete
        stop.wait(max(EVERY_S, REST * (time.monotonic() - started)))


def _being_written(path: str) -> bool:
    """Whether a process of this machine has the file open for writing: then nobody gets a lease on it (fcntl(2))."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # the import will say why
    try:
        fcntl.fcntl(
            descriptor, _F_SETSIG, signal.SIGURG
        )  # who opens it now is told by a signal that is ignored
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file of somebody else, or a file system without leases
    finally:
        os.close(descriptor)  # gives the lease back
    return False
