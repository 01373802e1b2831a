"""Input and result of `parse`: frozen, picklable values."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Buffer: TypeAlias = "bytes | mmap.mmap | memoryview"
TagLists: TypeAlias = "tuple[tuple[str, tuple[str, ...]], ...]"


class Refused(Exception):
    """Orthanc would not store this file.

    Attributes:
        reason: why, for people; never a value of the file.
        missing_tag: one of the three UIDs is absent (Orthanc answers 404), anything else
            is 400.
    """

    def __init__(self, reason: str, *, missing_tag: bool = False) -> None:
        """Take the reason."""
        super().__init__(reason)
        self.reason = reason
        self.missing_tag = missing_tag

    def __reduce__(self) -> tuple[type[Refused], tuple[str], dict[str, bool]]:
        """Pickle the keyword argument, too."""
        return Refused, (self.reason,), {"missing_tag": self.missing_tag}


@dataclass(frozen=True)
class Profile:
    """What besides the file decides the rows: Orthanc's version and two options.

    Attributes:
        orthanc_version: the version to imitate, (1, 10, 1) to (1, 13, 0).
        default_encoding: Orthanc's `DefaultEncoding`, for files without a specific
            character set.
        extra_main_dicom_tags: Orthanc's `ExtraMainDicomTags`: level ("Patient", "Study",
            "Series" or "Instance") to keywords or `gggg,eeee`. Kept as `extra_tags`, so
            that a profile can be hashed and pickled.
    """

    orthanc_version: tuple[int, int, int] = (1, 13, 0)
    default_encoding: str = "Latin1"
    extra_main_dicom_tags: Mapping[str, Iterable[str]] | TagLists = ()

    def __post_init__(self) -> None:
        """Convert the extra tags to tuples, which can be hashed."""
        object.__setattr__(self, "extra_main_dicom_tags", self.extra_tags)

    @property
    def extra_tags(self) -> TagLists:
        """Extra tags as sorted pairs of level and names."""
        given = self.extra_main_dicom_tags
        pairs = given.items() if isinstance(given, Mapping) else given
        return tuple(sorted((level, tuple(names)) for level, names in pairs))


class Level(NamedTuple):
    """The rows of one resource, should it be new.

    Attributes:
        public_id: 44 characters, SHA-1 in five groups.
        main_dicom_tags: (group, element, value); a study has those of its patient too.
        identifiers: (group, element, normalised value).
        metadata: type to value, of those types that the file decides (1, 4, 9, 10, 14,
            15, 16, 17).
    """

    public_id: str
    main_dicom_tags: tuple[tuple[int, int, str], ...]
    identifiers: tuple[tuple[int, int, str], ...]
    metadata: dict[int, str]


class Instance(NamedTuple):
    """Everything that one file determines in the index.

    Attributes:
        levels: patient, study, series, instance.
        expected_instances: how many instances this file says that its series has.
        index_in_series: metadata 1 of the instance, as text (not always a number).
        pixel_data_offset: position of the pixel data element in the file, in bytes.
        warnings: for people; never a value of the file.
        transfer_syntax: the one that the data set was read with, whatever the file says; empty
            if Orthanc does not know it.
    """

    levels: tuple[Level, Level, Level, Level]
    expected_instances: int | None
    index_in_series: str | None
    pixel_data_offset: int | None
    warnings: tuple[str, ...]
    transfer_syntax: str = ""
