"""What a move is asked to do, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pgorthanc_cli import db

COPY, SWITCH, CLEAN = PHASES = ("copy", "switch", "clean")
FILESYSTEM, POSTGRESQL = "filesystem", "postgresql"


class Place(NamedTuple):
    """A storage area: a folder, or the large objects of the database (None)."""

    folder: Path | None

    @property
    def kind(self) -> str:
        """As the option --to names it."""
        return FILESYSTEM if self.folder else POSTGRESQL

    def __str__(self) -> str:
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

    def document(self) -> Mapping[str, Any]:
        """Return the fields for JSON, where the ends are called `from` and `to`."""
        fields = {name: value for name, value in vars(self).items() if name not in ("source", "target")}
        return {"from": self.source, "to": self.target, **fields}
