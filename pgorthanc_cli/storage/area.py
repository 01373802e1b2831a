"""The protocol of storage areas, the form of stored content, and UUIDs.

An attachment is stored as it is (compression 1), or as an 8-byte little-endian size and a
zlib stream (compression 2), which is what Orthanc's StorageCompression writes (INGEST.md
8).
"""

from __future__ import annotations

import re
import struct
import uuid as uuids
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from mmap import mmap
from pathlib import Path
from typing import Protocol

from pgorthanc_cli.errors import PgOrthancError

CHUNK_BYTES = 1 << 20
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


def encode(data: bytes | mmap | memoryview, *, compress: bool) -> Iterator[bytes | memoryview]:
    """Yield the bytes to store for `data`, in chunks of about 1 MiB."""
    view = memoryview(data)
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    yield from compressed(len(view), chunks) if compress else chunks


def compressed(size: int, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the bytes of a compressed attachment whose content has that size."""
    yield struct.pack("<Q", size)
    if size:  # Orthanc stores the size alone of an empty attachment
        compressor = zlib.compressobj(6)
        for chunk in chunks:
            yield compressor.compress(chunk)
        yield compressor.flush()


def decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of a compressed attachment; memory does not depend on its size.

    Raises:
        PgOrthancError: It is damaged, or not a compressed attachment.
    """
    inflater, prefix, size = zlib.decompressobj(), b"", 0
    try:
        for chunk in chunks:
            rest = max(0, 8 - len(prefix))
            prefix, piece = prefix + chunk[:rest], chunk[rest:]
            while piece and not inflater.eof:
                content = inflater.decompress(piece, CHUNK_BYTES)
                piece = inflater.unconsumed_tail
                size += len(content)
                yield content
    except zlib.error as error:
        raise PgOrthancError(f"a compressed attachment is damaged: {error}") from error
    if len(prefix) < 8 or size != struct.unpack("<Q", prefix)[0] or (size and not inflater.eof):
        raise PgOrthancError("a compressed attachment does not hold the size that it begins with")


def decode(stored: bytes) -> bytes:
    """Return the content of a compressed attachment.

    Raises:
        PgOrthancError: It is damaged, or not a compressed attachment.
    """
    try:
        (size,) = struct.unpack_from("<Q", stored)
        content = zlib.decompress(stored[8:]) if size else b""
    except (struct.error, zlib.error) as error:
        raise PgOrthancError(f"a compressed attachment is damaged: {error}") from error
    if len(content) != size:
        raise PgOrthancError(f"a compressed attachment has {len(content)} bytes, expected {size}")
    return content


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


def file_path(uuid: str) -> str:
    """Return the path of an attachment's file, relative to Orthanc's storage folder."""
    return f"{uuid[:2]}/{uuid[2:4]}/{uuid}"


def write_error(root: Path, error: OSError) -> PgOrthancError:
    """Return the error for a storage folder that cannot be written to."""
    return PgOrthancError(
        f"the storage folder {root} cannot be written to: {error.strerror or error}",
        "free some space, correct its permissions, or name another folder with --storage-dir; then run it again",
    )
