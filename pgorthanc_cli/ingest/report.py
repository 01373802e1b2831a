"""What an import is told, and what it tells."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path

from pgorthanc_cli import dicom, index
from pgorthanc_cli.ingest.facts import Item
from pgorthanc_cli.ingest.link import Link
from pgorthanc_cli.ingest.worker import Refusal

_MOST_REFUSALS = 10_000


@dataclass(frozen=True)
class Settings:
    """How to import; the defaults are Orthanc's.

    Attributes:
        storage_dir: The filesystem storage area, or None for large objects in the database.
        profile: What decides the rows of a file: Orthanc's version, DefaultEncoding, ExtraMainDicomTags.
        compress: StorageCompression.
        store_md5: StoreMD5ForAttachments.
        store_dicom: StoreDicom.
        link: How files come into the filesystem area.
        overwrite: OverwriteInstances.
        sync: SyncStorageArea.
        concurrent: Work beside Orthancs that use the database, instead of keeping them out by lock 42.
        dry_run: Read and report, write nothing.
        stable_changes: Log StablePatient, StableStudy and StableSeries at the end.
    """

    storage_dir: Path | None = None
    profile: dicom.Profile = field(default_factory=dicom.Profile)
    compress: bool = False
    store_md5: bool = True
    store_dicom: bool = True
    link: Link = Link.AUTO
    overwrite: index.Overwrite = index.Overwrite.NEVER
    sync: bool = True
    concurrent: bool = False
    dry_run: bool = False
    stable_changes: bool = False


@dataclass(frozen=True)
class Batch:
    """What has become of a few files; the rows are committed.

    Attributes:
        imported: Instances that are new in the index.
        known: Instances that were there already, and stayed as they were.
        overwritten: Instances that were there already, and were replaced.
        refusals: Files that were not imported, and why.
        bytes: Size of the instances read, uncompressed.
        warnings: What the operator should know.
        items: The files that are in the index now, known ones included, in the order of the sources; empty for
            those that were known without being read.
    """

    imported: int = 0
    known: int = 0
    overwritten: int = 0
    refusals: tuple[Refusal, ...] = ()
    bytes: int = 0
    warnings: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()

    def __add__(self, other: Batch) -> Batch:
        """Both together."""
        return Batch(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def files(self) -> int:
        """How many files (or members of archives) this is."""
        return self.imported + self.known + self.overwritten + len(self.refusals)


@dataclass(frozen=True)
class Report:
    """The sum of an import; rates are over the whole time, `mb` is a million bytes.

    `refusals` are the first ones of the `refused`, so that no folder is too large to be told about.
    """

    imported: int
    known: int
    overwritten: int
    refused: int
    instances_per_s: float
    mb_per_s: float
    elapsed_s: float
    bytes: int
    refusals: list[Refusal]


class Tally:
    """Adds batches up."""

    def __init__(self) -> None:
        """The clock starts now."""
        self._started = time.monotonic()
        self._imported = self._known = self._overwritten = self._refused = self._bytes = 0
        self._refusals: list[Refusal] = []

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self._imported += batch.imported
        self._known += batch.known
        self._overwritten += batch.overwritten
        self._bytes += batch.bytes
        self._refused += len(batch.refusals)
        self._refusals += batch.refusals[: _MOST_REFUSALS - len(self._refusals)]

    def report(self) -> Report:
        """The sums so far."""
        elapsed = time.monotonic() - self._started
        instances = self._imported + self._known + self._overwritten
        return Report(
            imported=self._imported,
            known=self._known,
            overwritten=self._overwritten,
            refused=self._refused,
            instances_per_s=round(instances / elapsed, 1),
            mb_per_s=round(self._bytes / elapsed / 1e6, 3),
            elapsed_s=round(elapsed, 3),
            bytes=self._bytes,
            refusals=self._refusals,
        )
