"""The protocol of storage areas, and UUIDs."""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pgorthanc_cli.errors import PgOrthancError

UUID_PATTERN = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = re.compile(UUID_PATTERN)
_UUIDS_PER_FOLDER = 64


class Stream(Protocol):
    """The stored bytes of an attachment; any range of them can be read."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, or all that follow."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a byte, as a file does."""


class Area(Protocol):
    """Attachments by UUID and file type (1 DICOM, 3 DICOM until pixel data)."""

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Store an attachment: all of it or nothing."""

    def open(self, uuid: str, file_type: int) -> AbstractContextManager[Stream]:
        """Open the stored bytes for reading.

        Raises:
            OSError: There is no such attachment, or it is not readable.
        """

    def delete(self, uuid: str, file_type: int) -> None:
        """Delete an attachment, if there is one."""


def new_uuids(count: int) -> list[str]:
    """Return random UUIDs (version 4).

    Each 64 of them share their first four digits, and so their folder in the filesystem
    area: fewer folders have to be created and synced.
    """
    random = [str(uuids.uuid4()) for _ in range(count)]
    return [random[n - n % _UUIDS_PER_FOLDER][:4] + uuid[4:] for n, uuid in enumerate(random)]


def is_uuid(name: str) -> bool:
    """Return whether this can be the name of an attachment."""
    return _UUID.fullmatch(name) is not None


def write_error(root: Path, error: OSError) -> PgOrthancError:
    """Return the error for a storage folder that cannot be written to."""
    return PgOrthancError(
        f"the storage folder {root} cannot be written to: {error.strerror or error}",
        "free some space, correct its permissions, or name another folder with --storage-dir; then run it again",
    )
