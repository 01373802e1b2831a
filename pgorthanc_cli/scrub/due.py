"""What is due, by the journal: new and damaged attachments at once, then those checked longest ago."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone

from pgorthanc_cli.scrub.journal import Check, Journal, is_part
from pgorthanc_cli.scrub.model import Difference, Row, Settings

_PARTS = 256  # of the journal, by the first two digits of the UUIDs
_BANDS = 4  # within one of them, the order is that of the UUIDs


class Due:
    """Decides which attachments are checked now, and records what was.

    Attributes:
        skipped: Attachments that were checked recently.
    """

    def __init__(self, journal: Journal, settings: Settings) -> None:
        """Begin before the first part of the journal."""
        self.skipped = 0
        self._journal = journal
        self._max_age_s = settings.max_age_s
        self._is_partial = settings.is_partial
        self._began_at = journal.began_at
        self._part = -1
        self._checks: dict[str, Check] = {}
        self._hours: Counter[int] = Counter()

    # --- the first pass: rows in the order of their UUIDs ---------------------------------

    def last_check(self, row: Row) -> Check | None:
        """Return the last check of an attachment; None if there was none, or it had damage."""
        self._enter(row.uuid[:2])
        check = self._checks.pop(row.uuid, None)
        return None if check is None or check.damaged else check

    def postpone(self, check: Check) -> None:
        """Leave an attachment for later, or out if it was checked recently."""
        if self._began_at - check.at < self._max_age_s:
            self.skipped += 1
        else:
            self._hours[check.at // 3600] += 1

    def finish(self) -> None:
        """Go to the end of the journal."""
        self._go_to(_PARTS)

    def _enter(self, digits: str) -> None:
        if is_part(digits):
            self._go_to(int(digits, 16))

    def _go_to(self, part: int) -> None:
        """Read the journal up to a part; forget what the index no longer has of those before it."""
        while self._part < part:
            if not self._is_partial:
                self._journal.forget(self._checks)
            self._part += 1
            self._checks = self._journal.part(f"{self._part:02x}") if self._part < _PARTS else {}

    # --- again ----------------------------------------------------------------------------

    def bands(self) -> list[tuple[int, int]]:
        """Return ranges of times of earlier checks, the oldest first, each with about as many of them."""
        limit, size, bands, first = sum(self._hours.values()) / _BANDS, 0, [], 0
        for hour in sorted(self._hours):
            size += self._hours[hour]
            if size >= limit:
                bands.append((first, (hour + 1) * 3600))
                first, size = (hour + 1) * 3600, 0
        return bands + ([(first, (max(self._hours) + 1) * 3600)] if size else [])

    def between(self, rows: Iterable[Row], first: int, end: int) -> Iterator[Row]:
        """Yield those of these rows that are due, and were last checked at first <= time < end."""
        # What this run has checked itself is in the journal, too.
        latest = min(end, self._began_at)
        digits, checks = "", {}
        for row in rows:
            if row.uuid[:2] != digits:
                digits = row.uuid[:2]
                checks = self._journal.part(digits) if is_part(digits) else {}
            check = checks.get(row.uuid)
            if check is None or check.damaged or not first <= check.at < latest:
                continue
            if self._began_at - check.at >= self._max_age_s:
                yield row

    # --- results --------------------------------------------------------------------------

    def record(self, rows: Sequence[Row], differences: Sequence[Difference]) -> None:
        """Record rows as checked, those with a difference as damaged."""
        damaged = {each.row.uuid for each in differences if each.row}
        self._journal.record(damaged, damaged=True)
        self._journal.record({row.uuid for row in rows} - damaged, damaged=False)

    def record_run(self, attachments: int, counts: Mapping[str, int], *, complete: bool) -> None:
        """Record the end of this run, unless it was about a part of the index only."""
        if not self._is_partial:
            self._journal.record_run(attachments, counts, complete=complete)

    def oldest(self, attachments: int) -> datetime | None:
        """Return when the attachment was checked whose check is longest ago; None if one never was."""
        count, at = self._journal.oldest()
        if at is None or count < attachments or self._is_partial:
            return None
        return datetime.fromtimestamp(at, timezone.utc)
