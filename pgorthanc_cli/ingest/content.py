"""The bytes of one source, read so that a file that changes meanwhile cannot slip through."""

from __future__ import annotations

import gzip
import mmap
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import IO, cast

from pgorthanc_cli import dicom, files
from pgorthanc_cli.ingest.walk import Source, ZipArchive

IN_MEMORY_BYTES = 64 << 20  # larger ones are copied to an unnamed temporary file and mapped from there
_CHUNK_BYTES = 1 << 20
_SPACE_CHUNKS = 16  # after so many it is looked again whether there is space
_MOST_UNPACKED = 100
_RESERVE_BYTES, _RESERVE_SHARE = (
    1 << 30,
    20,
)  # what is left free: a twentieth of the file system, a GiB at most
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
_HEAD_BYTES = 132

Spool = Callable[[], IO[bytes]]
Checkpoint = Callable[[], None]
"""Called now and then in long work; raises what ends it."""


class Unreadable(Exception):
    """This source cannot be read; the message says why, without its content."""


class Archive(Exception):
    """This source is a ZIP archive: its members are to be imported instead."""


def unhurried() -> None:
    """Let the work go on: the checkpoint of those who cannot be interrupted."""


def read(
    source: Source,
    spool: Spool = tempfile.TemporaryFile,
    checkpoint: Checkpoint = unhurried,
    *,
    copies: int = 1,
) -> bytes | mmap.mmap:
    """The content of a file (gunzipped if it is gzip) or of an archive's member.

    What is returned is ours: the file may change or shrink afterwards without harm. Large content is mapped from an
    unnamed copy, which goes with the mapping, so that memory stays bounded. It is copied only if it begins like
    DICOM, and if there is space for it.

    Args:
        source: The file, or the member of an archive.
        spool: Makes a new file for the copy.
        checkpoint: Called again and again while large content is copied.
        copies: How often the content will be in the file system of the copy, the copy included.

    Raises:
        Unreadable: It cannot be read, it is not DICOM, there is no space for it, or it changed while it was read.
        Archive: It is a ZIP archive.
    """
    if source.problem:
        raise Unreadable(source.problem)
    try:
        if source.member is None and (whole := _small_file(source.path)) is not None:
            return whole
        with _member(source) if source.member is not None else _file(source) as stream:
            return _read(source, stream, _Copy(spool, checkpoint, _limit(source, stream), copies))
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise Unreadable(_reason(error)) from error


def _small_file(path: str) -> bytes | None:
    """Nearly all files: read at once, neither packed nor too large for memory. None for all others."""
    descriptor = files.open_regular(path)
    try:
        before = os.fstat(descriptor)
        if before.st_size > IN_MEMORY_BYTES:
            return None
        data = os.read(descriptor, before.st_size + 1)
        kind = _packed(data[:_HEAD_BYTES])
        if len(data) != before.st_size or kind == GZIP:
            return None
        if kind == ZIP:
            raise Archive
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Unreadable("it changed while it was read")
    return data


def _packed(head: bytes) -> bytes:
    """GZIP or ZIP if a file that begins like this is packed; a preamble of DICOM may begin with anything."""
    if head[128:132] != b"DICM":
        if head.startswith(GZIP):
            return GZIP
        if head.startswith(ZIP):
            return ZIP
    return b""


def _file(source: Source) -> IO[bytes]:
    with ExitStack() as on_failure:
        raw = on_failure.enter_context(os.fdopen(files.open_regular(source.path), "rb", buffering=0))
        kind = _packed(os.pread(raw.fileno(), _HEAD_BYTES, 0))
        if kind == ZIP:
            raise Archive
        on_failure.pop_all()
    return cast("IO[bytes]", _Unzipped(raw) if kind == GZIP else raw)


class _Unzipped(gzip.GzipFile):
    """A gzip stream that closes its file, too."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._raw = raw

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        super().close()
        self._raw.close()


def _member(source: Source) -> IO[bytes]:
    archive = _archive(source.path)
    return archive.open(archive.infolist()[source.member or 0])


@lru_cache(maxsize=1)
def _archive(path: str) -> zipfile.ZipFile:
    """Kept open: reading the directory again for each batch of members would be quadratic."""
    return ZipArchive(path)


def _limit(source: Source, stream: IO[bytes]) -> int | None:
    """How large packed content may become: images do not shrink to a hundredth, what is made to do harm does."""
    if source.member is not None:
        packed = _archive(source.path).infolist()[source.member].compress_size
    elif isinstance(stream, _Unzipped):
        packed = os.fstat(stream.fileno()).st_size
    else:
        return None
    return max(IN_MEMORY_BYTES, _MOST_UNPACKED * packed)


def _read(source: Source, stream: IO[bytes], copy: _Copy) -> bytes | mmap.mmap:
    before = _state(stream)
    plain = source.member is None and not isinstance(stream, _Unzipped) and before is not None
    if plain and before and before[0] > IN_MEMORY_BYTES:
        _refuse(dicom.reject_reason(lambda start, size: os.pread(stream.fileno(), size, start), before[0]))
        copy.require(before[0])
    data: bytes | mmap.mmap = _read_some(stream, min(source.size, IN_MEMORY_BYTES) + 1, copy.checkpoint)
    if len(data) > source.size:  # gunzipped, or it has grown
        data = bytes(data) + _read_some(stream, IN_MEMORY_BYTES + 1 - len(data), copy.checkpoint)
    if len(data) > IN_MEMORY_BYTES:
        head = bytes(data)
        if not plain:
            _refuse(
                dicom.reject_reason(lambda start, size: head[start : start + size], None, available=len(head))
            )
        data = copy.made(head, stream)
    if _state(stream) != before:
        raise Unreadable("it changed while it was read")
    return data


def _refuse(reason: str | None) -> None:
    if reason:
        raise Unreadable(reason)


def _read_some(stream: IO[bytes], size: int, checkpoint: Checkpoint) -> bytes:
    """Up to `size` bytes; fewer only at the end."""
    data = bytearray()
    while len(data) < size and (more := stream.read(min(size - len(data), 16 * _CHUNK_BYTES))):
        data += more
        checkpoint()
    return bytes(data)


def _state(stream: IO[bytes]) -> tuple[int, int] | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None  # a member of an archive has no descriptor, but a checksum
    return status.st_size, status.st_mtime_ns


class _Copy:
    """Copies large content to a file without a name, and maps it."""

    def __init__(self, spool: Spool, checkpoint: Checkpoint, limit: int | None, copies: int) -> None:
        """`limit`: how large it may become."""
        self.spool = spool
        self.checkpoint = checkpoint
        self.limit = limit
        self.copies = copies

    def require(self, size: int) -> None:
        """Make sure that there is space for content of a known size.

        Raises:
            Unreadable: There is not.
        """
        with self.spool() as copy:
            free = _free(copy)
        if size * self.copies > free:
            raise Unreadable(
                f"no space: it takes {_size(size * self.copies)} where the files are copied to, "
                f"and only {_size(max(0, free))} may be used there"
            )

    def made(self, head: bytes, stream: IO[bytes]) -> mmap.mmap:
        """Copy the content, whose beginning has been read.

        Raises:
            Unreadable: It is too large.
        """
        with self.spool() as copy:
            chunk, size, count = head, 0, 0
            while chunk:
                if count % _SPACE_CHUNKS == 0 and _free(copy) < len(chunk):
                    raise Unreadable(f"no space: more than {_size(size)} where the files are copied to")
                size += copy.write(chunk)
                count += 1
                if self.limit is not None and size > self.limit:
                    raise Unreadable(f"it unpacks to more than {_MOST_UNPACKED} times its size")
                self.checkpoint()
                chunk = stream.read(_CHUNK_BYTES)
            copy.flush()
            return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)


def _free(copy: IO[bytes]) -> int:
    """The bytes that may still be written to a file system, so that others who use it are not stopped."""
    status = os.fstatvfs(copy.fileno())
    reserve = min(_RESERVE_BYTES, status.f_blocks * status.f_frsize // _RESERVE_SHARE)
    return status.f_bavail * status.f_frsize - reserve


def _size(count: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 10**6:.1f} MB"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
