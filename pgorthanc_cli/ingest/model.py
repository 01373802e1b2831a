"""What an import reports: per file, per batch, and for the whole run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from pgorthanc_cli import db, index
from pgorthanc_cli.ingest.refusals import Reasons
from pgorthanc_cli.ingest.walk import Source
from pgorthanc_cli.text import printable

MAX_LISTED = 10_000  # refusals, and differences, that the result names
_PATIENT, _STUDY, _SERIES = 0, 1, 2
_PATIENT_NAME, _STUDY_DATE, _MODALITY = (
    (0x0010, 0x0010),
    (0x0008, 0x0020),
    (0x0008, 0x0060),
)


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file that was refused or that differs from the stored instance, and why.

    Attributes:
        path: As the operating system has it; to print it, escape it with `text.printable`.
        reason: Printed for operators, so it never contains a value from the file.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"

    def as_text(self) -> FileProblem:
        r"""Return the same with bytes of the path that are not UTF-8 as ``\xNN``, for JSON."""
        path = os.fsencode(self.path).decode("utf-8", "backslashreplace")
        return FileProblem(path, self.reason)


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    """What the report page and the journal of known files keep of an instance.

    Attributes:
        public_id: Orthanc's identifier of the instance.
        patient_id: Orthanc's identifier of its patient.
        patient: PatientName, or "". Printed only where the user asked for names.
        modality: Of its series, or "".
        year: The first four digits of StudyDate, or "".
    """

    public_id: str
    patient_id: str
    patient: str = field(repr=False)
    modality: str
    year: str


def summarize(levels: Sequence[index.LevelRows]) -> InstanceSummary:
    """Return the summary of an instance, from the rows of its four levels."""
    year = _tag(levels[_STUDY], _STUDY_DATE)[:4]
    return InstanceSummary(
        public_id=levels[index.INSTANCE].public_id,
        patient_id=levels[_PATIENT].public_id,
        patient=_tag(levels[_PATIENT], _PATIENT_NAME),
        modality=_tag(levels[_SERIES], _MODALITY),
        year=year if len(year) == 4 and year.isascii() and year.isdigit() else "",
    )


def _tag(level: index.LevelRows, tag: tuple[int, int]) -> str:
    for group, element, value in level.main_dicom_tags:
        if (group, element) == tag:
            return value
    return ""


# --- what a worker makes of a file ------------------------------------------------------


class Prepared(NamedTuple):
    """An instance that is ready for the index.

    Attributes:
        source: The file.
        size: Bytes of the instance, uncompressed.
        md5: Of those bytes.
        record: Its rows.
        warnings: Oddities of the file, without values from it.
        contents: For large objects, the bytes of each attachment; None if they are too
            large to send to the parent, which then reads the file again.
    """

    source: Source
    size: int
    md5: str
    record: index.Record
    warnings: tuple[str, ...]
    contents: tuple[bytes, ...] | None


class Comparison(NamedTuple):
    """How a file compares with the stored instance of the same identifiers.

    Attributes:
        difference: How they differ; "" if they do not, as far as they were compared.
        compared: Whether MD5s were compared; False if only the sizes were, because the
            index has no MD5.
    """

    difference: str
    compared: bool


class Known(NamedTuple):
    """An instance that is stored already and stays as it is.

    Attributes:
        source: The file.
        size: Bytes of the instance, uncompressed.
        summary: Of the instance.
        md5: Of the bytes.
        comparison: Of the file with the stored instance.
    """

    source: Source
    size: int
    summary: InstanceSummary
    md5: str
    comparison: Comparison


class Restored(NamedTuple):
    """An instance that is stored already, but whose content was missing.

    A worker has put the missing files back; missing large objects are left to the parent.

    Attributes:
        source: The file.
        size: Bytes of the instance, uncompressed.
        summary: Of the instance.
        md5: Of the bytes.
        missing: The attachments to put back.
        content: For large objects, the whole DICOM file; None if it is too large to send
            to the parent, which then reads the file again.
    """

    source: Source
    size: int
    summary: InstanceSummary
    md5: str
    missing: tuple[index.StoredAttachment, ...]
    content: bytes | None


class NotDicom(NamedTuple):
    """A file that Orthanc would not adopt either; its folder indexer would not try it again."""

    source: Source
    problem: FileProblem


class Archive(NamedTuple):
    """A ZIP archive; its members are imported in its place."""

    source: Source


Result = Prepared | Known | Restored | NotDicom | FileProblem | Archive


# --- what is reported -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file that is in the index now.

    Attributes:
        source: The file.
        outcome: What the import did with it.
        size: Bytes of the instance, uncompressed.
        summary: Of the instance.
        md5: Of those bytes.
        stored: The UUID of the stored DICOM file, if it was stored just now.
        differs: The index keeps other content under the identifiers of this file.
    """

    source: Source
    outcome: index.Outcome
    size: int
    summary: InstanceSummary
    md5: str = ""
    stored: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Batch:
    """The outcome of a few files; their rows are committed.

    Attributes:
        imported: Instances that are new in the index.
        known: Instances that were stored already and stayed as they were.
        overwritten: Instances that were stored already and were replaced.
        restored: Instances that were stored already and whose missing content was put
            back.
        uncompared: Known instances of the same size whose content could not be compared,
            because the index has no MD5.
        differences: Known instances that are stored with other content.
        refusals: Files that were not imported.
        bytes: Size of the instances read, uncompressed.
        warnings: For the operator.
        items: The files that are in the index now, known ones included, in the order of
            the sources; files that were known without being read are missing.
    """

    imported: int = 0
    known: int = 0
    overwritten: int = 0
    restored: int = 0
    uncompared: int = 0
    differences: tuple[FileProblem, ...] = ()
    refusals: tuple[FileProblem, ...] = ()
    bytes: int = 0
    warnings: tuple[str, ...] = ()
    items: tuple[IndexedFile, ...] = ()

    def __add__(self, other: Batch) -> Batch:
        """Return the sum of both."""
        return Batch(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def files(self) -> int:
        """The number of files, or members of archives."""
        instances = self.imported + self.known + self.overwritten + self.restored
        return instances + len(self.refusals)


def ignore(_: object) -> None:
    """Report nothing: the default of `report` parameters."""


@dataclass(frozen=True)
class RefusedFor:
    """How many files were refused for one reason, with … for what differs between them."""

    reason: str
    files: int


@dataclass(frozen=True)
class ImportResult:
    """The totals of an import; rates are over the whole time, `mb` is a million bytes.

    `known` counts all instances that were stored already and stayed as they were. Of
    them, `differing` are stored with other content, and `uncompared` could only be
    compared by size. `refusals` and `differences` are the first ones of the `refused` and
    the `differing`, so that no folder is too large to be reported; `reasons` counts all
    refused files. With `dry_run` nothing was written: the figures are what an import would
    do. `adopted` counts those of the imported and overwritten whose file stays where it lies
    (`Settings.adopt`). `interrupted`: files are left. `endpoint` is None if no connection was needed.
    """

    imported: int
    known: int
    overwritten: int
    refused: int
    restored: int
    differing: int
    uncompared: int
    dry_run: bool
    instances_per_s: float
    mb_per_s: float
    elapsed_s: float
    bytes: int
    refusals: list[FileProblem]
    differences: list[FileProblem]
    reasons: list[RefusedFor]
    interrupted: bool
    endpoint: db.Endpoint | None
    adopted: int = 0

    @property
    def files(self) -> int:
        """The number of files, or members of archives."""
        return self.stored + self.known + self.refused

    @property
    def stored(self) -> int:
        """The number of files whose content was written."""
        return self.imported + self.overwritten + self.restored


class Tally:
    """Adds up the batches of an import; its memory is bounded."""

    def __init__(
        self, *, dry_run: bool = False, adopting: bool = False, max_listed: int = MAX_LISTED
    ) -> None:
        """Start the clock. `max_listed` bounds the refusals and the differences kept."""
        self._started = time.monotonic()
        self._dry_run = dry_run
        self._adopting = adopting
        self._max_listed = max_listed
        self._total = Batch()
        self._refused = self._differing = 0
        self._reasons = Reasons()
        self._endpoint: db.Endpoint | None = None

    def connected(self, endpoint: db.Endpoint) -> None:
        """Note where the index is; with several hosts in the URI, it may change."""
        self._endpoint = endpoint

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        # Counted here, because the lists are cut.
        self._refused += len(batch.refusals)
        self._differing += len(batch.differences)
        for refusal in batch.refusals:
            self._reasons.add(refusal)
        total = self._total + replace(batch, items=(), warnings=())
        self._total = replace(
            total,
            refusals=total.refusals[: self._max_listed],
            differences=total.differences[: self._max_listed],
        )

    def result(self, *, interrupted: bool = False) -> ImportResult:
        """Return the totals up to now."""
        elapsed = time.monotonic() - self._started
        total = self._total
        instances = total.imported + total.known + total.overwritten + total.restored
        return ImportResult(
            imported=total.imported,
            known=total.known,
            overwritten=total.overwritten,
            refused=self._refused,
            restored=total.restored,
            differing=self._differing,
            uncompared=total.uncompared,
            dry_run=self._dry_run,
            instances_per_s=round(instances / elapsed, 1),
            mb_per_s=round(total.bytes / elapsed / 1e6, 3),
            elapsed_s=round(elapsed, 3),
            bytes=total.bytes,
            refusals=[problem.as_text() for problem in total.refusals],
            differences=[problem.as_text() for problem in total.differences],
            reasons=[RefusedFor(reason.text, reason.count) for reason in self._reasons],
            interrupted=interrupted,
            endpoint=self._endpoint,
            adopted=total.imported + total.overwritten if self._adopting else 0,
        )
