"""How fast, and when, files are read: rates, and hours of the week.

A hospital's network and disks have other work by day.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from pgorthanc_cli import files
from pgorthanc_cli.errors import UsageError

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SHORT_S = 0.02  # shorter waits are added up
_DAY = 24 * 60
_WEEK = 7 * _DAY

_HINT = 'write the hours of each day, such as {"Monday": ["0-6", "20-24"], "Sunday": ["0-24"]}'


class ToBeRead(Protocol):
    """A file; one that is `known` is not read, and costs no time."""

    @property
    def known(self) -> bool:
        """Whether it was read before."""

    @property
    def size(self) -> int:
        """Its size in bytes."""


S = TypeVar("S", bound=ToBeRead)


@dataclass(frozen=True)
class Limits:
    """Maximal rates, by what is read; None: no limit."""

    max_files_per_s: float | None = None
    max_bytes_per_s: float | None = None

    def throttled(self, sources: Iterable[S], stop: threading.Event) -> Iterator[S]:
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

    def _cost_s(self, source: ToBeRead) -> float:
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

    def during(self, sources: Iterator[S]) -> Iterator[S]:
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
