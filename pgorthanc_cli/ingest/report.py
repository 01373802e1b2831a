"""What an import is told, and what it tells."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from pgorthanc_cli import dicom, index
from pgorthanc_cli.ingest.facts import Item
from pgorthanc_cli.ingest.link import Link
from pgorthanc_cli.ingest.worker import Refusal
from pgorthanc_cli.text import printable

_MOST_LISTED = 10_000


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
        storage_given: The storage was named by the user. False: it was concluded from Orthanc's configuration, so
            an index in which another plugin keeps the files is refused.
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
    storage_given: bool = True


@dataclass(frozen=True, slots=True)
class Difference:
    """A file whose instance is stored with another content, which stays; in what they differ."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """What has become of a few files; the rows are committed.

    Attributes:
        imported: Instances that are new in the index.
        known: Instances that were there already, and stayed as they were.
        overwritten: Instances that were there already, and were replaced.
        restored: Instances that were there already, and whose missing content was put back.
        uncompared: Known ones whose content could not be compared, because the index has no MD5; the size is equal.
        differences: Known ones that are stored with another content, and in what they differ.
        refusals: Files that were not imported, and why.
        bytes: Size of the instances read, uncompressed.
        warnings: What the operator should know.
        items: The files that are in the index now, known ones included, in the order of the sources; empty for
            those that were known without being read.
    """

    imported: int = 0
    known: int = 0
    overwritten: int = 0
    restored: int = 0
    uncompared: int = 0
    differences: tuple[Difference, ...] = ()
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
        return self.imported + self.known + self.overwritten + self.restored + len(self.refusals)


@dataclass(frozen=True)
class Report:
    """The sum of an import; rates are over the whole time, `mb` is a million bytes.

    `known` counts all instances that were there already and stayed as they were. Of them, `differing` are stored with
    another content, and `uncompared` could only be compared by size. `refusals` and `differences` are the first ones
    of the `refused` and the `differing`, so that no folder is too large to be reported. With `dry_run` nothing was
    written: the figures are what an import would do.
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
    refusals: list[Refusal]
    differences: list[Difference]

    @property
    def warnings(self) -> list[str]:
        """What the operator should know about the whole of it."""
        found = []
        if self.differing:
            found.append(
                f"{_counted(self.differing, 'known file differs', 'known files differ')} from the stored instances, "
                f"such as {printable(str(self.differences[0]))}; --overwrite if-changed replaces them"
            )
        if self.restored:
            found.append(
                f"{_counted(self.restored, 'known instance was', 'known instances were')} missing in the storage and "
                f"{'would be put' if self.dry_run else 'put'} back; if Orthanc could read them all the time, "
                "the storage named here is not the one that it uses"
            )
        if self.uncompared:
            found.append(
                f"{_counted(self.uncompared, 'known file was', 'known files were')} compared by size only: the index "
                "has no MD5 of what is stored (StoreMD5ForAttachments is or was false)"
            )
        return found


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


class Tally:
    """Adds batches up."""

    def __init__(self, *, dry_run: bool = False) -> None:
        """The clock starts now; `dry_run` says that the batches are those of a dry run."""
        self._started = time.monotonic()
        self._dry_run = dry_run
        self._sum = Batch()
        self._refused = self._differing = 0

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self._refused += len(batch.refusals)
        self._differing += len(batch.differences)
        more = self._sum + replace(batch, items=(), warnings=())
        self._sum = replace(
            more, refusals=more.refusals[:_MOST_LISTED], differences=more.differences[:_MOST_LISTED]
        )

    def report(self) -> Report:
        """The sums so far."""
        elapsed = time.monotonic() - self._started
        total = self._sum
        instances = total.imported + total.known + total.overwritten + total.restored
        return Report(
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
            refusals=list(total.refusals),
            differences=list(total.differences),
        )
