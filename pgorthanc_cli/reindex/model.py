"""What a reindex is asked to do, what a worker gets and returns, and the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pgorthanc_cli import db
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.dicom import Profile
from pgorthanc_cli.pacing import Hours, Limits

# Metadata that a reconstruction rewrites (STORAGE.md B3).
TRANSFER_SYNTAX, SOP_CLASS, SIGNATURE, SEQUENCES = 9, 10, 15, 16
PATIENT, STUDY, SERIES, INSTANCE = range(4)
ALL_LEVELS = frozenset(range(len(LEVELS)))


@dataclass(frozen=True)
class Selection:
    """Which instances are read, and so which resources are written; everything by default.

    Attributes:
        resources: Public ids by level (0 patient to 3 instance): these and all below them.
        tags: (tag, value): resources with this main DICOM tag; all of them must match.
        since: Instances that arrived after this change.
    """

    resources: tuple[tuple[int, tuple[str, ...]], ...] = ()
    tags: tuple[tuple[int, str], ...] = ()
    since: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not (self.resources or self.tags or self.since is not None)


@dataclass(frozen=True)
class Settings:
    """How to reindex.

    Attributes:
        storage_dir: The filesystem area; None: the large objects of the database.
        profile: What decides the rows of a file.
        selection: Which instances.
        levels: Resources of which levels are written (0 patient to 3 instance).
        keep_first: The first stored instance decides, as at ingest, instead of the one with
            the greatest public id.
        limit_to_level: Only the selected resources themselves are written, each by the
            instance with the smallest public id: Orthanc's LimitToThisLevelMainDicomTags.
        storages: Folders of the advanced-storage plugin, by their ids.
        jobs: Worker processes.
        dry_run: Compare, write nothing.
        server: DatabaseServerIdentifier of Orthanc, if it is known.
        journal: A file that remembers how far a run has come.
        limits: How fast files are read.
        hours: When.
        batch_files: At most so many files in one transaction, but for a large series.
        is_configured: Whether `profile` has the tag lists of an Orthanc, not merely the default ones.
    """

    storage_dir: Path | None
    profile: Profile = field(default_factory=Profile)
    selection: Selection = field(default_factory=Selection)
    levels: frozenset[int] = ALL_LEVELS
    keep_first: bool = False
    limit_to_level: bool = False
    storages: Mapping[str, Path] | None = None
    jobs: int = 2
    dry_run: bool = False
    server: str | None = None
    journal: Path | None = None
    limits: Limits = field(default_factory=Limits)
    hours: Hours | None = None
    batch_files: int = 500
    is_configured: bool = True


class Decided(NamedTuple):
    """A resource whose rows a file decides."""

    level: int
    id: int
    public_id: str


class Item(NamedTuple):
    """The stored file of an instance, and what it decides.

    Attributes:
        public_id: Of the instance.
        study: Public id of its study.
        patient: Internal id of its patient.
        uuid: Of the attachment, empty if there is none.
        path: Absolute, where a storage plugin says so; empty: the usual place.
        compression: 1 none, 2 zlib.
        size: Of the content, in bytes.
        offset: Where the index says that the pixel data begins, 0 if it does not.
        decides: The resources.
        problem: Why it cannot be read, if that is known.
    """

    public_id: str
    study: str
    patient: int
    uuid: str
    path: str
    compression: int
    size: int
    offset: int
    decides: tuple[Decided, ...]
    problem: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read: its resources keep their rows.

    Attributes:
        uuid: Of the attachment, empty if the index has none.
        reason: Why; never a value of the file.
        instance: Public id.
        study: Public id of its study.
    """

    uuid: str
    reason: str
    instance: str
    study: str


class Kind(NamedTuple):
    """A kind of change: of a table's row, by level.

    Attributes:
        level: 0 patient to 3 instance.
        table: maindicomtags, dicomidentifiers, metadata or attachedfiles.
        key: Tag, type of metadata, or file type.
        change: missing, different or extra.
    """

    level: int
    table: str
    key: int
    change: str


@dataclass
class Done:
    """What a worker did with a batch; also the sum of batches.

    Attributes:
        files, bytes: Read.
        resources: Compared, by level.
        changed: Of these, those with a row that differed, by level.
        kinds: Rows that differed, by kind.
        unreadable: Files.
        gone: Resources that were deleted meanwhile.
        again: Patients with an instance that was deleted before its file could be read: it may
            have been the one to decide.
    """

    files: int = 0
    bytes: int = 0
    resources: Counter[int] = field(default_factory=Counter)
    changed: Counter[int] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    unreadable: list[Unreadable] = field(default_factory=list)
    gone: int = 0
    again: set[int] = field(default_factory=set)

    def add(self, other: Done) -> None:
        """Add another one."""
        self.files += other.files
        self.bytes += other.bytes
        self.resources += other.resources
        self.changed += other.changed
        self.kinds += other.kinds
        self.unreadable += other.unreadable
        self.gone += other.gone
        self.again |= other.again


@dataclass(frozen=True)
class Estimate:
    """What a run will read, by a sample.

    Attributes:
        files: To be read.
        bytes: Of their heads.
        seconds: That it will take; None if no file could be tried.
    """

    files: int
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Change:
    """How many rows of a level differed in one respect.

    Attributes:
        level: patient, study, series or instance.
        table: maindicomtags, dicomidentifiers, metadata or attachedfiles.
        key: A tag as `0008,0080`, or the number of a metadata or file type.
        name: The keyword of the tag, or what the metadata is called.
        missing: Rows that were not there.
        different: Rows with another value.
        extra: Rows that had to go.
    """

    level: str
    table: str
    key: str
    name: str
    missing: int
    different: int
    extra: int


@dataclass(frozen=True)
class Reindexed:
    """The result.

    Attributes:
        patients, studies, series, instances: How many the selection has.
        levels: Whose rows were written.
        decided_by: greatest, smallest (public id), or first (instance).
        files_read, bytes_read: Of the stored files.
        rows_changed: Resources with a changed row, by level.
        unchanged: Resources whose rows are as they should be.
        changes: Rows, by level and tag.
        unreadable: Files; what they decide keeps its rows.
        gone: Resources that Orthanc deleted meanwhile.
        done_before: Patients that the journal says are done; not counted otherwise.
        instances_per_s: Instances of the selection by second.
        elapsed_s: Seconds.
        dry_run: Whether nothing was written.
        complete: Whether the run came to its end.
        housekeeper: What became of the Housekeeper's own record, see `housekeeper.State`.
        area: The folder, or `large objects`.
        endpoint: Where we worked.
        estimate: What was expected at the start.
        partial: Whether only a part of the index was selected.
    """

    patients: int
    studies: int
    series: int
    instances: int
    levels: tuple[str, ...]
    decided_by: str
    files_read: int
    bytes_read: int
    rows_changed: dict[str, int]
    unchanged: int
    changes: tuple[Change, ...]
    unreadable: tuple[Unreadable, ...]
    gone: int
    done_before: int
    instances_per_s: float
    elapsed_s: float
    dry_run: bool
    complete: bool
    housekeeper: str
    area: str
    endpoint: db.Endpoint
    estimate: Estimate
    partial: bool = False
