"""Files that arrive while an import follows a folder: modalities write while we read.

The folders are polled, not watched: polling works the same on every file system, network
mounts included, loses nothing when a queue overflows, and needs no watch for each folder.
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

POLL_S = 1.0  # at least between two walks of the folders that are followed
# Rest 9 times as long as the walk took, so that walking takes a tenth of the time.
POLL_REST = 9
# Incomplete files to remember: a later walk meets the others.
MAX_WAITING = 10_000
_F_SETSIG = 10  # Linux; missing in Python's fcntl


def complete(sources: Iterable[Source], settle_s: float) -> Iterator[Source]:
    """Yield the sources modified more than `settle_s` ago; others arrive later."""
    latest_ns = time.time_ns() - int(settle_s * 1e9)
    for source in sources:
        settled = source.mtime_ns <= latest_ns and not _open_for_writing(source.path)
        if source.problem or settled:
            yield source


def arrivals(
    poll: Callable[[], Iterable[Source]],
    stop: threading.Event,
    *,
    settle_s: float,
    poll_s: float = POLL_S,
    poll_rest: float = POLL_REST,
    max_waiting: int = MAX_WAITING,
) -> Iterator[list[Source]]:
    """Yield new files in groups, as soon as they are complete, until `stop` is set.

    A file is complete when its size and modification time have stayed the same for
    `settle_s` seconds, and no process of this machine has it open for writing (where the
    file system can tell).

    Args:
        poll: Returns the files there are, without those that were yielded and have not
            changed.
        stop: Ends it.
        settle_s: How long a file must stay the same.
        poll_s: Seconds between two polls, at least.
        poll_rest: The same, in multiples of the duration of a poll.
        max_waiting: Incomplete files to remember; a later poll finds the others.
    """
    waiting: dict[str, tuple[Source, float]] = {}  # by path: its state, and since when
    while not stop.is_set():
        started = time.monotonic()
        incomplete: dict[str, tuple[Source, float]] = {}
        arrived = []
        for source in poll():
            before, since = waiting.get(source.path, (None, started))
            # Size and modification time are part of a source.
            if before != source:
                since = started
            settled = started - since >= settle_s
            if source.problem or (settled and not _open_for_writing(source.path)):
                arrived.append(source)
            else:
                incomplete[source.path] = source, since
            if stop.is_set():
                return
            if len(incomplete) + len(arrived) >= max_waiting:
                break
        waiting = incomplete
        if arrived:
            yield arrived
        stop.wait(max(poll_s, poll_rest * (time.monotonic() - started)))


def _open_for_writing(path: str) -> bool:
    """Whether a process of this machine has the file open for writing.

    The kernel grants a read lease only while no process has it open for writing
    (fcntl(2)).
    """
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # the import will report why
    try:
        # A process that opens the file meanwhile breaks the lease with a signal: choose
        # one that is ignored by default, as SIGIO would end the program.
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        # A file of another user, or a file system without leases.
        return False
    finally:
        os.close(descriptor)  # gives the lease back
    return False
