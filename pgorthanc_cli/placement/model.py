"""What a move is asked to do, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pgorthanc_cli import db

COPY, SWITCH, CLEAN = PHASES = ("copy", "switch", "clean")
FILESYSTEM, POSTGRESQL, ADVANCED = "filesystem", "postgresql", "advanced-storage"
COMPRESSIONS = {"none": 1, "zlib": 2}  # as the index numbers them
COMPRESSION_NAMES = {number: name for name, number in COMPRESSIONS.items()}


class Place(NamedTuple):
    """A storage area: a folder, or the large objects of the database (no folder).

    Attributes:
        folder: As a source of the advanced-storage plugin, StorageDirectory.
        storage: The id of a storage of the advanced-storage plugin; as a source empty, for all
            of them. None: Orthanc's own storage.
    """

    folder: Path | None
    storage: str | None = None

    @property
    def kind(self) -> str:
        """As the option --to names it."""
        if self.storage is not None:
            return ADVANCED
        return FILESYSTEM if self.folder else POSTGRESQL

    def __str__(self) -> str:
        if self.storage is not None:
            return f"storage {self.storage} ({self.folder})" if self.storage else "the advanced storage"
        return str(self.folder) if self.folder else "large objects"


@dataclass(frozen=True)
class MoveSettings:
    """What to move.

    Attributes:
        source: Where the attachments are.
        target: Where they shall be.
        phase: `copy`, `switch` or `clean`.
        jobs: Worker processes.
        max_bytes_per_s: Read no more than that from the source.
        studies: Public ids: copy the attachments of these studies only.
        older_than_s: Copy only studies that nothing was added to since then.
        configured: The area that Orthanc's configuration names; None: it was not given.
        orphans: With `clean`, also remove large objects that no row of the index names.
        storages: The folders of the advanced-storage plugin by their ids.
        names_files: Whether that plugin gives files other names than Orthanc (NamingScheme).
        compression: Number of the compression to store with; None: as it is.
    """

    source: Place
    target: Place
    phase: str = COPY
    jobs: int = 2
    max_bytes_per_s: float | None = None
    studies: tuple[str, ...] = ()
    older_than_s: float | None = None
    configured: Place | None = None
    orphans: bool = False
    storages: tuple[tuple[str, str], ...] = ()
    names_files: bool = False
    compression: int | None = None

    @property
    def changes_rows(self) -> bool:
        """Whether rows of the index change: those that say where a file is, or how it is stored."""
        return self.compression is not None or ADVANCED in (self.source.kind, self.target.kind)

    @property
    def is_told_by_rows(self) -> bool:
        """Whether each row says by itself in which of the two areas its file is."""
        return self.target.kind == ADVANCED and self.source.folder is not None

    @property
    def is_partial(self) -> bool:
        """Whether only some attachments are meant."""
        return bool(self.studies) or self.older_than_s is not None


class Row(NamedTuple):
    """An attachment of the index.

    Attributes:
        resource: Internal id of its resource.
        file_type: 1 DICOM, 3 DICOM until pixel data, others.
        uuid: Its name in both areas.
        size: Of the stored bytes.
        md5: Of the stored bytes; empty with StoreMD5ForAttachments false.
        root, name: The folder and the path in it of its file, where they are not the usual
            ones; an absolute path is that of an adopted file.
    """

    resource: int
    file_type: int
    uuid: str
    size: int
    md5: str
    root: str = ""
    name: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """What tells it apart in an area: large objects have a type of content."""
        return self.uuid, self.file_type if 1 <= self.file_type <= 3 else 0


class Attachment(NamedTuple):
    """An attachment whose row a move changes.

    Attributes:
        resource, file_type, uuid, size, md5: As in `Row`.
        compression: 1 none, 2 zlib.
        content_size, content_md5: Of what Orthanc serves.
        customdata: Of the storage plugin; None or empty without.
        proved_size, proved_md5: Of the stored bytes in the target, as an earlier run has
            proved them; None: none has.
        replaces: The file that has its path in the target belongs to an attachment that was
            copied and deleted.
    """

    resource: int
    file_type: int
    uuid: str
    size: int
    md5: str
    compression: int
    content_size: int
    content_md5: str
    customdata: bytes | None
    proved_size: int | None = None
    proved_md5: str | None = None
    replaces: bool = False


@dataclass(frozen=True)
class Failed:
    """An attachment that was not copied, or whose source was not removed, and why."""

    uuid: str
    reason: str


@dataclass(frozen=True)
class Moved:
    """The result of one phase.

    Attributes:
        source: `filesystem` or `postgresql`; `from` in JSON.
        target: The same; `to` in JSON.
        source_folder, target_folder: Of the filesystem areas.
        phase: `copy`, `switch` or `clean`.
        attachments: In the index, of those that were asked for.
        copied: How many were copied by this run.
        bytes: Their stored bytes; with `clean`, of those that were removed.
        already_there: Were in the target, and are right.
        removed: Attachments that `clean` has removed from the source.
        left: What `clean` leaves in the source: no row of the index names it.
        unknown: What the target holds besides: attachments deleted since the copy.
        freed_bytes: Space that `clean` gave back to the file system.
        vacuumed: Whether the role could vacuum; None where there is nothing to vacuum.
        failed: What was not copied, or not removed.
        complete: Whether the phase is done.
        kept: Adopted files: with a storage of the plugin as target they stay as they are; else
            they were copied, and `clean` leaves the originals.
        compression: `none` or `zlib`, if it was to be changed.
        partial: Whether only some attachments were meant.
        elapsed_s: Seconds.
        endpoint: The database.
        warnings: Of the check whether an Orthanc is connected.
    """

    source: str
    target: str
    source_folder: Path | None
    target_folder: Path | None
    phase: str
    attachments: int
    copied: int
    bytes: int
    already_there: int
    removed: int
    left: int
    unknown: int
    freed_bytes: int
    vacuumed: bool | None
    failed: tuple[Failed, ...]
    complete: bool
    elapsed_s: float
    endpoint: db.Endpoint
    warnings: tuple[str, ...] = ()
    kept: int = 0
    compression: str | None = None
    partial: bool = False

    def document(self) -> Mapping[str, Any]:
        """Return the fields for JSON, where the ends are called `from` and `to`."""
        fields = {name: value for name, value in vars(self).items() if name not in ("source", "target")}
        return {"from": self.source, "to": self.target, **fields}
