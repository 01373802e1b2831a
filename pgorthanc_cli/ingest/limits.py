"""How fast an import may go, and at which hours: a hospital's network and disks have other work by day."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pgorthanc_cli import files
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest.report import Batch
from pgorthanc_cli.ingest.walk import Source

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LOOK_S = 30.0  # how long to wait at most before looking at the clock again: clocks are set, summer begins
_SHORT_S = 0.02  # shorter waits are put together to one
_DAY = 24 * 60
_WEEK = 7 * _DAY

_HINT = 'write the hours of each day, such as {"Monday": ["0-6", "20-24"], "Sunday": ["0-24"]}'


@dataclass(frozen=True)
class Limits:
    """Rates that are not to be exceeded, by what is read; None: as fast as it goes. `mb` is a million bytes."""

    max_files_per_s: float | None = None
    max_mb_per_s: float | None = None

    def throttled(self, sources: Iterable[Source | Batch], stop: threading.Event) -> Iterator[Source | Batch]:
        """The same sources, handed out no faster than the limits; ends early when `stop` is set."""
        if self.max_files_per_s is None and self.max_mb_per_s is None:
            yield from sources
            return
        due = time.monotonic()  # when the next file may go
        for source in sources:
            if isinstance(source, Source):
                wait = due - time.monotonic()
                if wait > _SHORT_S and stop.wait(wait):
                    return
                due = max(due, time.monotonic() - _SHORT_S) + self._cost_s(source)
            yield source

    def _cost_s(self, source: Source) -> float:
        """How long this file must keep the next one waiting."""
        files = 1 / self.max_files_per_s if self.max_files_per_s else 0.0
        megabytes = source.size / 1e6 / self.max_mb_per_s if self.max_mb_per_s else 0.0
        return max(files, megabytes)


@dataclass(frozen=True)
class Hours:
    """The hours of the week at which work is allowed, in the local time of this machine.

    Attributes:
        spans: (first minute, minute after the last), counted from Monday 0:00.
        clock: What time it is.
    """

    spans: tuple[tuple[int, int], ...]
    clock: Callable[[], datetime] = field(default=datetime.now, compare=False)

    @classmethod
    def parse(cls, given: str) -> Hours:
        """A schedule, as JSON text or the name of a file of it, in the format of python-orthanc-tools and Housekeeper.

        An object of English names of days to lists of ranges: `"20-24"`, also `"6:30-7:45"` and `[20, 24]`. A day that
        is not there is a day without work. A range ends on the day on which it begins.

        Raises:
            UsageError: It is nothing of the kind, or leaves no hour at all.
        """
        try:
            text = given if given.lstrip().startswith("{") else files.read(given).decode("utf-8")
            document = json.loads(text)
        except OSError as error:
            raise UsageError(f"the schedule {given} cannot be read: {error.strerror}", _HINT) from None
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
        """When work is allowed next; now, if it is."""
        now = self.clock()
        if self.open():
            return now
        minute = _minute(now)
        ahead = min((start - minute) % _WEEK for start, _ in self.spans)
        return now.replace(second=0, microsecond=0) + timedelta(minutes=ahead)

    def wait(self, stop: threading.Event) -> bool:
        """Wait until work is allowed; False: `stop` was set meanwhile."""
        while not self.open():
            left = (self.opening() - self.clock()).total_seconds()
            if stop.wait(min(max(left, 0.0), LOOK_S)):
                return False
        return not stop.is_set()

    def during(self, sources: Iterator[Source | Batch]) -> Iterator[Source | Batch]:
        """Sources for as long as work is allowed; what is left stays in the iterator."""
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
            raise UsageError(f"the schedule has a day {day!r}, expected {', '.join(DAYS)}", _HINT)
        if not isinstance(ranges, list):
            raise UsageError(f"the schedule of {day} is {ranges!r}, expected a list of ranges", _HINT)
        for each in ranges:
            start, end = _range(day, each)
            yield number * _DAY + start, number * _DAY + end


def _range(day: str, given: object) -> tuple[int, int]:
    """First minute of the day, and the minute after the last."""
    text = "-".join(map(str, given)) if isinstance(given, list) else str(given)
    match = re.fullmatch(r"\s*(\d{1,2})(?::(\d\d))?\s*-\s*(\d{1,2})(?::(\d\d))?\s*", text)
    if match is None:
        raise UsageError(f'the schedule of {day} has {given!r}, expected a range such as "20-24"', _HINT)
    start, end = (int(match[n]) * 60 + int(match[n + 1] or 0) for n in (1, 3))
    if not start < end <= _DAY:
        raise UsageError(
            f"the schedule of {day} has {text!r}: it must begin before it ends, and end at 24 at the latest",
            'write a night as two ranges: "20-24" of one day and "0-6" of the next',
        )
    return start, end


def _minute(moment: datetime) -> int:
    return moment.weekday() * _DAY + moment.hour * 60 + moment.minute
