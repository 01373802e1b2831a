"""When files are handed to an import: rates, hours of the week, and files that arrive.

A hospital's network and disks have other work by day, and its modalities write while we
read.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pgorthanc_cli import files
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest.walk import Source

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
POLL_S = 1.0  # at least between two walks of the folders that are followed
# Rest 9 times as long as the walk took, so that walking takes a tenth of the time.
POLL_REST = 9
# Incomplete files to remember: a later walk meets the others.
MAX_WAITING = 10_000
_SHORT_S = 0.02  # shorter waits are added up
_DAY = 24 * 60
_WEEK = 7 * _DAY
_F_SETSIG = 10  # Linux; missing in Python's fcntl

_HINT = 'write the hours of each day, such as {"Monday": ["0-6", "20-24"], "Sunday": ["0-24"]}'


@dataclass(frozen=True)
class Limits:
    """Maximal rates, by what is read; None: no limit."""

    max_files_per_s: float | None = None
    max_bytes_per_s: float | None = None

    def throttled(self, sources: Iterable[Source], stop: threading.Event) -> Iterator[Source]:
        """Yield the sources no faster than the limits, until `stop` is set."""
        if self.max_files_per_s is None and self.max_bytes_per_s is None:
            yield from sources
            return
        due = time.monotonic()  # when the next file may go
        for source in sources:
            if not source.known:
                wait_s = due - time.monotonic()
                if wait_s > _SHORT_S and stop.wait(wait_s):
                    return
                # A pause earns no burst: the peak rate is what a network feels.
                due = max(due, time.monotonic() - _SHORT_S) + self._cost_s(source)
            yield source

    def _cost_s(self, source: Source) -> float:
        """Return how long the next file has to wait because of this one."""
        by_count = 1 / self.max_files_per_s if self.max_files_per_s else 0.0
        by_size = source.size / self.max_bytes_per_s if self.max_bytes_per_s else 0.0
        return max(by_count, by_size)


@dataclass(frozen=True)
class Hours:
    """The hours of the week at which work is allowed, in the local time of this machine.

    Attributes:
        spans: (first minute, minute after the last), counted from Monday 0:00.
        clock: Returns the current time.
        recheck_s: How long to wait at most before reading the clock again: clocks are
            set, and daylight saving time begins.
    """

    spans: tuple[tuple[int, int], ...]
    clock: Callable[[], datetime] = field(default=datetime.now, compare=False)
    recheck_s: float = field(default=30.0, compare=False)

    @classmethod
    def parse(cls, schedule: str) -> Hours:
        """Return the hours of a schedule: JSON, or the name of a JSON file.

        The format is that of python-orthanc-tools and of Orthanc's Housekeeper: an object
        of English names of days to lists of ranges, `"20-24"`, also `"6:30-7:45"` and
        `[20, 24]`. A day that is missing is a day without work. A range ends on the day
        on which it begins.

        Raises:
            UsageError: It is not such a schedule, or allows no hour at all.
        """
        try:
            is_json = schedule.lstrip().startswith("{")
            text = schedule if is_json else files.read(schedule).decode("utf-8")
            document = json.loads(text)
        except OSError as error:
            message = f"the schedule {schedule} cannot be read: {error.strerror}"
            raise UsageError(message, _HINT) from None
        except ValueError as error:
            raise UsageError(f"the schedule is no JSON: {error}", _HINT) from None
        if not isinstance(document, Mapping):
            raise UsageError("the schedule is no object of days", _HINT)
        spans = tuple(sorted(_spans(document)))
        if not spans:
            raise UsageError("the schedule allows no hour of the week", _HINT)
        return cls(spans)

    def open(self) -> bool:
        """Whether work is allowed now."""
        minute = _minute(self.clock())
        return any(start <= minute < end for start, end in self.spans)

    def opening(self) -> datetime:
        """Return when work is allowed next: now, if it is."""
        now = self.clock()
        if self.open():
            return now
        minute = _minute(now)
        ahead = min((start - minute) % _WEEK for start, _ in self.spans)
        return now.replace(second=0, microsecond=0) + timedelta(minutes=ahead)

    def wait(self, stop: threading.Event) -> bool:
        """Wait until work is allowed; return False if `stop` was set meanwhile."""
        while not self.open():
            left_s = (self.opening() - self.clock()).total_seconds()
            if stop.wait(min(max(left_s, 0.0), self.recheck_s)):
                return False
        return not stop.is_set()

    def during(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Yield sources while work is allowed; the rest stays in the iterator."""
        # The file at hand is finished: the clock is read after it.
        if self.open():
            for source in sources:
                yield source
                if not self.open():
                    return


def _spans(document: Mapping[str, object]) -> Iterator[tuple[int, int]]:
    numbers = {day.casefold(): number for number, day in enumerate(DAYS)}
    for day, ranges in document.items():
        number = numbers.get(day.casefold())
        if number is None:
            expected = ", ".join(DAYS)
            raise UsageError(f"the schedule has a day {day!r}, expected {expected}", _HINT)
        if not isinstance(ranges, list):
            message = f"the schedule of {day} is {ranges!r}, expected a list of ranges"
            raise UsageError(message, _HINT)
        for each in ranges:
            start, end = _range(day, each)
            yield number * _DAY + start, number * _DAY + end


def _range(day: str, value: object) -> tuple[int, int]:
    """Return the first minute of the day, and the minute after the last."""
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    match = re.fullmatch(r"\s*(\d{1,2})(?::(\d\d))?\s*-\s*(\d{1,2})(?::(\d\d))?\s*", text)
    if match is None:
        message = f'the schedule of {day} has {value!r}, expected a range such as "20-24"'
        raise UsageError(message, _HINT)
    start, end = (int(match[n]) * 60 + int(match[n + 1] or 0) for n in (1, 3))
    if not start < end <= _DAY:
        raise UsageError(
            f"the schedule of {day} has {text!r}: it must begin before it ends, and end at 24 at the latest",
            'write a night as two ranges: "20-24" of one day and "0-6" of the next',
        )
    return start, end


def _minute(time_: datetime) -> int:
    return time_.weekday() * _DAY + time_.hour * 60 + time_.minute


# --- files that arrive ------------------------------------------------------------------
#
# The folders are polled, not watched: polling works the same on every file system,
# network mounts included, loses nothing when a queue overflows, and needs no watch for
# each folder.


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
