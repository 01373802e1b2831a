"""Statistics of an import, for its page, in bounded memory."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pgorthanc_cli.index import Outcome
from pgorthanc_cli.ingest import Batch, FileProblem, IndexedFile, Reasons, Source
from pgorthanc_cli.text import printable

# More folders or reasons are added up as OTHERS.
MAX_ROWS = 2_000
MAX_PATIENTS = 500_000  # whose instances are counted one by one
MAX_EXAMPLES = 3
OTHERS, LISTED, UNREAD = (
    "others",
    "files that were listed",
    "known by the journal, not read",
)
_TIMELINE_SPANS = 240
_SPAN_S = 0.25


@dataclass
class Row:
    """Instances and files of one row; `size_bytes` of those imported or overwritten."""

    imported: int = 0
    known: int = 0
    refused: int = 0
    size_bytes: int = 0


class Timeline:
    """Files and bytes over time, in a bounded number of spans that grow with the run."""

    def __init__(self) -> None:
        self.width_s = _SPAN_S
        self.files: list[int] = []
        self.bytes: list[int] = []

    def add(self, at_s: float, file_count: int, byte_count: int) -> None:
        """Add what was done `at_s` seconds after the start."""
        while at_s >= self.width_s * _TIMELINE_SPANS:
            self.width_s *= 2
            self.files, self.bytes = _halved(self.files), _halved(self.bytes)
        span = int(at_s / self.width_s)
        for counts, more in ((self.files, file_count), (self.bytes, byte_count)):
            counts.extend([0] * (span + 1 - len(counts)))
            counts[span] += more


def _halved(counts: list[int]) -> list[int]:
    """Add each two neighbours up."""
    return [sum(counts[n : n + 2]) for n in range(0, len(counts), 2)]


class ImportStatistics:
    """Adds up the batches of an import.

    Attributes:
        started: Local time of this machine.
        elapsed_s: From then to the last batch.
        names: Whether folders below the roots, files and patients are recorded.
        total: Of all files.
        overwritten: Instances among `total.imported` that replaced others.
        restored: Instances among `total.known` whose missing content was put back.
        differing: Instances among `total.known` that are stored with other content.
        modalities, years, folders: Rows by name; "" where a file has none.
        reasons: Of refusals; with `names` they have examples.
        patients: Instances by patient, as (name, Orthanc's identifier); only with
            `names`.
        timeline: Files and bytes over time.
    """

    def __init__(self, roots: Iterable[str], *, names: bool = False, max_rows: int = MAX_ROWS) -> None:
        """Start the clock.

        Args:
            roots: The paths to import, as the user named them; of a file, its folder
                counts.
            names: As the attribute.
            max_rows: Of folders, of reasons, and of other tables.
        """
        self.names = names
        self.started = datetime.now().astimezone()
        self._clock = time.monotonic()
        self.elapsed_s = 0.0
        self.total = Row()
        self.overwritten = 0
        self.restored = 0
        self.differing = 0
        self.modalities: dict[str, Row] = {}
        self.years: dict[str, Row] = {}
        self.folders: dict[str, Row] = {}
        self.reasons = Reasons(max_reasons=max_rows, max_examples=MAX_EXAMPLES if names else 0)
        self.patients: Counter[tuple[str, str]] = Counter()
        self.timeline = Timeline()
        self._max_rows = max_rows
        self._roots = set()
        for root in roots:
            folder = root if os.path.isdir(root) else os.path.dirname(root)
            self._roots.add(os.path.abspath(Source(folder).display_name))
        self._last_folder = ("", LISTED)  # a folder, and its row
        self._patient_hashes: set[int] = set()

    @property
    def patient_count(self) -> int:
        """Patients of the instances imported or known, as far as files were read."""
        return len(self._patient_hashes)

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
            self._add_file(item)
        for refusal in batch.refusals:
            self._add_refusal(refusal)
        unread = batch.files - len(batch.items) - len(batch.refusals)
        if unread:
            self._row(self.folders, UNREAD).known += unread

    def _add_file(self, item: IndexedFile) -> None:
        summary = item.summary
        # Hashes, because millions of identifiers would take too much memory.
        self._patient_hashes.add(hash(summary.patient_id))
        folder = self._row(self.folders, self._folder(item.source.display_name))
        if item.outcome in (Outcome.KNOWN, Outcome.RESTORED):
            folder.known += 1
            return
        self.total.size_bytes += item.size
        modality = self._row(self.modalities, summary.modality)
        year = self._row(self.years, summary.year)
        for row in (folder, modality, year):
            row.imported += 1
            row.size_bytes += item.size
        if self.names:
            patient = (summary.patient, summary.patient_id)
            if patient in self.patients or len(self.patients) < MAX_PATIENTS:
                self.patients[patient] += 1

    def _add_refusal(self, refusal: FileProblem) -> None:
        self._row(self.folders, self._folder(printable(refusal.path))).refused += 1
        self.reasons.add(refusal)

    def _row(self, rows: dict[str, Row], name: str) -> Row:
        if name not in rows and len(rows) >= self._max_rows:
            name = OTHERS
        return rows.setdefault(name, Row())

    def _folder(self, path: str) -> str:
        """Return the root of a file; with names, the folder below the root."""
        parent = os.path.dirname(path)
        if parent != self._last_folder[0]:  # files come folder by folder
            self._last_folder = parent, self._folder_row(os.path.abspath(parent))
        return self._last_folder[1]

    def _folder_row(self, parent: str) -> str:
        root, below = parent, ""
        while root not in self._roots:
            root, name = os.path.split(root)
            if not name:
                return parent if self.names else LISTED
            below = name
        return os.path.join(root, below) if self.names and below else root
