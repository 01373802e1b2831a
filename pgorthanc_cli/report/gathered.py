"""Sums of a run, kept while it works; memory does not grow with the number of files."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from pgorthanc_cli.index import Outcome
from pgorthanc_cli.ingest import Batch, Item, Refusal, Source, shown

MAX_ROWS = 2_000  # of folders, reasons and the like; what comes later is summed up as OTHERS
MAX_PATIENTS = 500_000  # whose instances are counted one by one
MAX_EXAMPLES = 3
OTHERS, LISTED, UNREAD = "others", "files that were listed", "known by the journal, not read"
_BUCKETS = 240
_BUCKET_S = 0.25


@dataclass
class Sum:
    """Instances and files of one row; `size_bytes` is what was imported or overwritten."""

    imported: int = 0
    known: int = 0
    refused: int = 0
    size_bytes: int = 0


@dataclass
class Reason:
    """Files refused for one reason.

    Attributes:
        text: The reason; what differs from file to file is left out.
        count: Of files.
        examples: Paths of some of them, kept only if names may be shown.
    """

    text: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Timeline:
    """What was done when, in a bounded number of spans that get longer as the run does."""

    def __init__(self) -> None:
        """Begins now."""
        self.width_s = _BUCKET_S
        self.files: list[int] = []
        self.bytes: list[int] = []

    def add(self, at_s: float, files: int, count_bytes: int) -> None:
        """So many were done at `at_s` seconds after the beginning."""
        while at_s >= self.width_s * _BUCKETS:
            self.width_s *= 2
            self.files, self.bytes = _halved(self.files), _halved(self.bytes)
        place = int(at_s / self.width_s)
        for row, more in ((self.files, files), (self.bytes, count_bytes)):
            row.extend([0] * (place + 1 - len(row)))
            row[place] += more


class Gathered:
    """Adds batches up.

    Attributes:
        started: Local time of this machine.
        elapsed_s: From then to the last batch.
        names: Whether folders below the roots, files and patients are kept.
        total: Of all files.
        overwritten: Instances among `total.imported` that replaced others.
        restored: Instances among `total.known` whose missing content was put back.
        differing: Instances among `total.known` that are stored with another content.
        modalities, years, folders: Sums by name; "" where a file does not tell.
        reasons: Of refusals, by their text without its numbers.
        patients: Instances by patient, as (name, Orthanc's identifier); only kept with `names`.
        timeline: Files and bytes over time.
    """

    def __init__(self, roots: Iterable[str], *, names: bool = False) -> None:
        """`roots` are the paths to import, as they were named; of a file, its folder counts."""
        self.names = names
        self.started = datetime.now().astimezone()
        self._clock = time.monotonic()
        self.elapsed_s = 0.0
        self.total = Sum()
        self.overwritten = 0
        self.restored = 0
        self.differing = 0
        self.modalities: dict[str, Sum] = {}
        self.years: dict[str, Sum] = {}
        self.folders: dict[str, Sum] = {}
        self.reasons: dict[str, Reason] = {}
        self.patients: Counter[tuple[str, str]] = Counter()
        self.timeline = Timeline()
        self._roots = {
            os.path.abspath(shown(Source(root if os.path.isdir(root) else os.path.dirname(root))))
            for root in roots
        }
        self._last = ("", LISTED)
        self._seen_patients: set[int] = set()

    @property
    def patient_count(self) -> int:
        """Patients of whom an instance was imported or found known, as far as files were read."""
        return len(self._seen_patients)

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.elapsed_s = time.monotonic() - self._clock
        self.timeline.add(self.elapsed_s, batch.files, batch.bytes)
        self.total.imported += batch.imported + batch.overwritten
        self.total.known += batch.known + batch.restored
        self.total.refused += len(batch.refusals)
        self.overwritten += batch.overwritten
        self.restored += batch.restored
        self.differing += len(batch.differences)
        for item in batch.items:
            self._item(item)
        for refusal in batch.refusals:
            self._refusal(refusal)
        unread = batch.files - len(batch.items) - len(batch.refusals)
        if unread:
            _row(self.folders, UNREAD).known += unread

    def _item(self, item: Item) -> None:
        facts = item.facts
        self._seen_patients.add(hash(facts.patient_id))
        folder = _row(self.folders, self._folder(shown(item.source)))
        if item.outcome in (Outcome.KNOWN, Outcome.RESTORED):
            folder.known += 1
            return
        self.total.size_bytes += item.size
        for row in (folder, _row(self.modalities, facts.modality), _row(self.years, facts.year)):
            row.imported += 1
            row.size_bytes += item.size
        if self.names:
            patient = (facts.patient, facts.patient_id)
            if patient in self.patients or len(self.patients) < MAX_PATIENTS:
                self.patients[patient] += 1

    def _refusal(self, refusal: Refusal) -> None:
        _row(self.folders, self._folder(refusal.path)).refused += 1
        kind = re.sub(r"\d+", "0", refusal.reason)
        if kind not in self.reasons and len(self.reasons) >= MAX_ROWS:
            kind = OTHERS
        reason = self.reasons.setdefault(kind, Reason(OTHERS if kind == OTHERS else refusal.reason))
        if kind != OTHERS:
            reason.text = _common(reason.text, refusal.reason)
        reason.count += 1
        if self.names and len(reason.examples) < MAX_EXAMPLES:
            reason.examples.append(refusal.path)

    def _folder(self, path: str) -> str:
        """The root that a file is under; with names, and the folder below it."""
        parent = os.path.dirname(path)
        if parent != self._last[0]:  # files come folder by folder
            self._last = parent, self._found(os.path.abspath(parent))
        return self._last[1]

    def _found(self, parent: str) -> str:
        above, below = parent, ""
        while above not in self._roots:
            above, name = os.path.split(above)
            if not name:
                return parent if self.names else LISTED
            below = name
        return os.path.join(above, below) if self.names and below else above


def _row(rows: dict[str, Sum], name: str) -> Sum:
    if name not in rows and len(rows) >= MAX_ROWS:
        name = OTHERS
    return rows.setdefault(name, Sum())


def _common(one: str, other: str) -> str:
    """A text, with … for the words in which two differ."""
    if one == other:
        return one
    return " ".join(a if a == b else "…" for a, b in zip(one.split(" "), other.split(" "), strict=False))


def _halved(row: list[int]) -> list[int]:
    """Each two neighbours together."""
    return [sum(row[n : n + 2]) for n in range(0, len(row), 2)]
