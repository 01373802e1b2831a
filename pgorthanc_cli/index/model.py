"""What goes into the index, and what a batch did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pgorthanc_cli.index.key_values import KeyValue

PATIENT, STUDY, SERIES, INSTANCE = range(4)  # resourceType, the position in `constants.LEVELS`

# Metadata types (SCHEMA.md 5)
INDEX_IN_SERIES, RECEPTION_DATE, REMOTE_AET, LAST_UPDATE, PATIENT_RECYCLING_ORDER = 1, 2, 3, 7, 19
# Change types (SCHEMA.md 5)
COMPLETED_SERIES, NEW_INSTANCE, NEW_PATIENT, NEW_SERIES, NEW_STUDY = 1, 2, 3, 4, 5
STABLE_PATIENT, STABLE_STUDY, STABLE_SERIES = 12, 13, 14


class LevelRows(Protocol):
    """The rows of one resource, should it be new."""

    @property
    def public_id(self) -> str:
        """Orthanc's identifier: SHA-1 in five groups."""

    @property
    def main_dicom_tags(self) -> Iterable[tuple[int, int, str]]:
        """Group, element, value."""

    @property
    def identifiers(self) -> Iterable[tuple[int, int, str]]:
        """Group, element, normalised value."""

    @property
    def metadata(self) -> Mapping[int, str]:
        """Metadata that the file decides, by type."""


class Attachment(NamedTuple):
    """A row of `attachedfiles`; sizes in bytes, MD5 in hexadecimal or empty.

    `custom_data` is what a storage plugin needs to find the file, None for Orthanc's own
    storage.
    """

    file_type: int
    uuid: str
    compressed_size: int
    uncompressed_size: int
    compression_type: int
    uncompressed_hash: str
    compressed_hash: str
    custom_data: bytes | None = None


class Record(NamedTuple):
    """One instance to store: rows of its four levels, attachments, origin.

    Attributes:
        levels: Patient, study, series, instance.
        expected_instances: Number of instances that this file announces for its series
            (INGEST.md 7.1).
        index_in_series: Metadata 1 of the instance, if any.
        attachments: Stored already, or to be stored in the same transaction.
        origin: Metadata of the instance about its reception (3, 8, 11, 12, 13).
        replaces: The uuid of a stored DICOM file that this one replaces, whatever
            `Overwrite` says.
        key_values: Rows that a storage plugin keeps about the file.
    """

    levels: Sequence[LevelRows]
    expected_instances: int | None
    index_in_series: str | None
    attachments: tuple[Attachment, ...]
    origin: Mapping[int, str]
    replaces: str = ""
    key_values: tuple[KeyValue, ...] = ()


class Overwrite(Enum):
    """What to do with a stored instance (OverwriteInstances, INGEST.md 11)."""

    NEVER = "never"
    ALWAYS = "always"
    IF_CHANGED = "if_changed"


class Outcome(Enum):
    """What happened to a record."""

    IMPORTED = "imported"
    KNOWN = "known"
    OVERWRITTEN = "overwritten"
    RESTORED = "restored"  # the row existed, but its content was missing


@dataclass(frozen=True)
class BatchResult:
    """What a batch did.

    Attributes:
        outcomes: One for each record, in order.
        removed: (uuid, file type) of attachments to remove from the storage area after
            the commit.
        touched: Public ids and levels of patients, studies and series that received an
            instance, the least recent first (as Orthanc's list of unstable resources).
    """

    outcomes: list[Outcome]
    removed: list[tuple[str, int]]
    touched: list[tuple[str, int]]


class Conflict(Exception):
    """The index has something that contradicts this record; the message says what."""


class ParentDeleted(Exception):
    """Another session has deleted a parent of this batch; a retry will succeed."""
