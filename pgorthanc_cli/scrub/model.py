"""What a check of the storage area is asked to do, and what it reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pgorthanc_cli import db
from pgorthanc_cli.dicom import Profile
from pgorthanc_cli.ingest import Hours

EXISTS, SIZE, HASH, IDENTITY = DEPTHS = ("exists", "size", "hash", "identity")
GRACE_S = 60.0  # STORAGE.md D5

MISSING, TRUNCATED, TOO_LONG, ALTERED = "missing", "truncated", "too-long", "altered"
WRONG_INSTANCE, DUPLICATE_UUID = "wrong-instance", "duplicate-uuid"
WRONG_SIZE, WRONG_HASH, MISSING_HASH = "wrong-size", "wrong-hash", "missing-hash"
WRONG_COMPRESSION, INVALID_UUID = "wrong-compression", "invalid-uuid"
ABORTING_CUSTOMDATA, UNKNOWN_CUSTOMDATA = "aborting-customdata", "unknown-customdata"
SYMLINK, UNREADABLE = "symlink", "unreadable"
ORPHAN_DICOM, ORPHAN_OTHER, FOREIGN_FILE = "orphan-dicom", "orphan-other", "foreign-file"
IMPORT_LEFTOVER, PENDING_DELETION = "import-leftover", "pending-deletion"

# Kind to what it means, in the order of a page: damages first.
KINDS = {
    MISSING: "the index has a row, but the file is gone",
    TRUNCATED: "the file is shorter than its row says",
    TOO_LONG: "the file is longer than its row says",
    ALTERED: "the size is right, but the content has changed",
    WRONG_INSTANCE: "the file holds another instance than its row says",
    UNREADABLE: "cannot be read",
    SYMLINK: "a symbolic link, which is not followed",
    ABORTING_CUSTOMDATA: "customdata that makes Orthanc abort on access",
    UNKNOWN_CUSTOMDATA: "customdata of a storage plugin that pgorthanc does not know",
    WRONG_SIZE: "the content is right, but the row has another size",
    WRONG_HASH: "the content is right, but the row has another MD5",
    MISSING_HASH: "the row has no MD5",
    WRONG_COMPRESSION: "the row names another compression than the file has",
    DUPLICATE_UUID: "two rows name the same file",
    INVALID_UUID: "the row names no UUID: no file can have that name",
    ORPHAN_DICOM: "DICOM files that the index does not know",
    ORPHAN_OTHER: "other files that the index does not know",
    FOREIGN_FILE: "files whose name is not that of an attachment",
    IMPORT_LEFTOVER: "files of an interrupted import or repair",
    PENDING_DELETION: "files that the storage plugin will delete",
}
# Of a file that no row needs: nothing is lost.
HARMLESS = (ORPHAN_DICOM, ORPHAN_OTHER, FOREIGN_FILE, IMPORT_LEFTOVER, PENDING_DELETION)
# Listed, but no reason for exit code 6: an Orthanc at work has them.
NORMAL = (PENDING_DELETION,)


@dataclass(frozen=True)
class Settings:
    """What to check.

    Attributes:
        storage_dir: The filesystem area; None: the large objects of the database.
        depth: One of `DEPTHS`; each includes those before it.
        jobs: Worker processes.
        force: Check even if the area is empty, or seems to be that of another index.
        grace_s: How old a file without a row must be to be judged.
        profile: How texts of DICOM files are read.
        store_md5: StoreMD5ForAttachments; None if unknown.
        storages: Folders of the storage plugin, by their ids; None if unknown.
        advanced_storage: Whether Orthanc loads the plugin; None if unknown.
        list_studies: Name the affected studies.
        journal: A file that records what was checked when.
        max_age_s: With it, content that was checked more recently is skipped.
        budget_s: Begin no further content after so many seconds.
        max_bytes_per_s: Read no more content than that.
        hours: Read content at these hours of the week only; needs a journal.
        studies: Public ids: check the attachments of these studies only.
        since: Check only those of instances that are in the changes after this number.
    """

    storage_dir: Path | None
    depth: str = HASH
    jobs: int = 2
    force: bool = False
    grace_s: float = GRACE_S
    profile: Profile = field(default_factory=Profile)
    store_md5: bool | None = None
    storages: Mapping[str, Path] | None = None
    advanced_storage: bool | None = None
    list_studies: bool = False
    journal: Path | None = None
    max_age_s: float = 0.0
    budget_s: float | None = None
    max_bytes_per_s: float | None = None
    hours: Hours | None = None
    studies: tuple[str, ...] = ()
    since: int | None = None

    @property
    def is_partial(self) -> bool:
        """Whether only some attachments are checked; then files without a row are not looked for."""
        return bool(self.studies) or self.since is not None


class Row(NamedTuple):
    """A row of `attachedfiles`, and its place in the area.

    Attributes:
        uuid: Its name in the area.
        resource: Internal id of its resource.
        file_type: 1 DICOM, 3 DICOM until pixel data, others.
        size, md5: Of the content.
        stored_size, stored_md5: Of the bytes in the area.
        compression: 1 none, 2 zlib.
        customdata: Of the storage plugin, if any.
        oid: The large object, 0 if there is none.
        actual_size: Bytes in the area, None if that is not known yet.
        path: Absolute, where customdata names it; empty: the usual place.
        instance: Public id, if the row is of an instance and identities are compared.
    """

    uuid: str
    resource: int
    file_type: int
    size: int | None
    md5: str | None
    stored_size: int | None
    stored_md5: str | None
    compression: int | None
    customdata: bytes | None = None
    oid: int = 0
    actual_size: int | None = None
    path: str = ""
    instance: str | None = None


class Difference(NamedTuple):
    """What may become a finding; `row` is None for a file that no row names.

    Attributes:
        kind: One of `KINDS`.
        detail: For people; never a value of a DICOM file.
        row: The row.
        uuid: The name of the file, if it is one.
        path: Of the file, relative to the area; empty for a large object.
        instance: Public id of the instance in the file, if it is DICOM.
    """

    kind: str
    detail: str = ""
    row: Row | None = None
    uuid: str = ""
    path: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference that was there at the second look, too.

    Attributes:
        kind: One of `KINDS`.
        uuid: Name of the attachment, None for a file with another name.
        file_type: 1 DICOM, 3 DICOM until pixel data; None without a row.
        path: Where the file is, or should be; None for large objects.
        level: patient, study, series or instance; None if unknown.
        public_id: Of that resource; of an orphan, of the instance in it.
        detail: For people.
    """

    kind: str
    uuid: str | None
    file_type: int | None
    path: str | None
    level: str | None
    public_id: str | None
    detail: str


@dataclass(frozen=True)
class Left:
    """A file that was not moved or repaired: its UUID, and why."""

    uuid: str
    reason: str


@dataclass(frozen=True)
class Moved:
    """Files that were moved aside, or back.

    Attributes:
        folder: The quarantine.
        area: The storage area.
        restored: Whether they were moved back.
        files: How many were moved.
        bytes: Their size.
        left: Those that were not.
        kinds: How many findings of each kind these files were, or the vanished ones.
        dry_run: Whether nothing was moved: the figures are what would be done.
    """

    folder: str
    area: str
    restored: bool
    files: int
    bytes: int
    left: tuple[Left, ...]
    kinds: dict[str, int] = field(default_factory=dict)
    dry_run: bool = False


@dataclass(frozen=True)
class Repaired:
    """Attachments that were replaced by copies.

    Attributes:
        folder: Where the copies are.
        area: The storage area.
        dry_run: Whether nothing was changed: the figures are what would be done.
        files: How many were repaired, and are intact.
        bytes: Their size.
        left: Damaged attachments that were not.
        restart_orthanc: Whether Orthanc may have the damaged content of one in its cache, and
            so must be restarted.
        complete: Whether it was not interrupted.
        kinds: How many findings of each kind are repaired.
    """

    folder: str
    area: str
    dry_run: bool
    files: int
    bytes: int
    left: tuple[Left, ...]
    restart_orthanc: bool
    complete: bool
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Indexed:
    """Orphans that were imported.

    Attributes:
        area: The storage area.
        dry_run: Whether nothing was changed: the figures are what would be done.
        files: How many were imported, and are attachments now.
        bytes: Their size.
        left: Orphans of instances that the index does not have, which were not.
        complete: Whether it was not interrupted.
    """

    area: str
    dry_run: bool
    files: int
    bytes: int
    left: tuple[Left, ...]
    complete: bool


@dataclass(frozen=True)
class StorageReport:
    """The result of a check.

    Attributes:
        area: The folder, or `large objects`.
        depth: As asked for.
        attachments: Rows of the index.
        bytes: Stored bytes of the checked attachments, as far as their rows say.
        checked: Rows that were checked.
        skipped_recent: Attachments whose content was checked recently (`max_age_s`), and
            files without a row that may still get one.
        undecided: Of these, the files: a transaction is open.
        without_md5: Checked rows whose content cannot be compared, as they have no MD5.
        findings: Damages first; at most `MAX_FINDINGS` of each kind.
        counts: Findings by kind, all of them.
        remaining: Those that were neither repaired nor imported nor moved aside by this run.
        damaged: Attachments with a finding; the other findings are of files without a row, or
            of folders.
        affected_studies: Studies with a damaged attachment.
        studies: Their public ids, if they were asked for.
        complete: Whether everything was checked, but for what was skipped.
        budget_used: Whether it was not because the time was up.
        oldest_unverified: When the attachment was checked whose check is longest ago; None
            if there is no record of it.
        rate_mb_per_s: Content read, in 10^6 bytes per second; 0 if none was.
        elapsed_s: Seconds.
        endpoint: Where we looked.
        partial: Whether only a part of the index was checked (`Settings.is_partial`), and no orphan looked for.
        quarantined: The orphans that were moved aside, if that was asked for.
        repaired: The attachments that were replaced by copies, if that was asked for.
        indexed: The orphans that were imported, if that was asked for.
    """

    area: str
    depth: str
    attachments: int
    bytes: int
    checked: int
    skipped_recent: int
    without_md5: int
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    damaged: int
    affected_studies: int
    studies: tuple[str, ...] | None
    complete: bool
    oldest_unverified: datetime | None
    rate_mb_per_s: float
    elapsed_s: float
    undecided: int
    budget_used: bool
    endpoint: db.Endpoint
    partial: bool = False
    quarantined: Moved | None = None
    repaired: Repaired | None = None
    indexed: Indexed | None = None
    remaining: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Derive what remains."""
        resolved: Counter[str] = Counter(self.quarantined.kinds if self.quarantined else {})
        if self.repaired and not self.repaired.dry_run:
            resolved.update(self.repaired.kinds)
        if self.indexed and not self.indexed.dry_run:
            resolved[ORPHAN_DICOM] += self.indexed.files
        remaining = {kind: count - resolved[kind] for kind, count in self.counts.items()}
        object.__setattr__(self, "remaining", {kind: n for kind, n in remaining.items() if n > 0})

    @property
    def damaged_still(self) -> int:
        """Attachments with a finding that was not repaired."""
        done = self.repaired
        return self.damaged - (done.files if done and not done.dry_run else 0)

    @property
    def interrupted(self) -> bool:
        """Whether a signal has ended the check, or what was to be changed after it."""
        if any(done and not done.complete for done in (self.repaired, self.indexed)):
            return True
        return not self.complete and not self.budget_used

    @property
    def has_problems(self) -> bool:
        """Whether there is a finding that an Orthanc at work does not have, and that remains."""
        return any(kind not in NORMAL for kind in self.remaining)


MAX_FINDINGS = 20_000  # of each kind: more are counted only
