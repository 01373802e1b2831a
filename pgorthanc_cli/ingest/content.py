"""The bytes of one source, read so that a file that changes meanwhile cannot slip through."""

from __future__ import annotations

import gzip
import mmap
import os
import tempfile
import zipfile
import zlib
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

from pgorthanc_cli.ingest.walk import Source

IN_MEMORY_BYTES = 64 << 20  # larger ones are copied to an unnamed temporary file and mapped from there
_CHUNK_BYTES = 1 << 20
_MOST_UNPACKED = 100
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"


class Unreadable(Exception):
    """This source cannot be read; the message says why, without its content."""


class Archive(Exception):
    """This source is a ZIP archive: its members are to be imported instead."""


def read(source: Source, spool_dir: Path | None = None) -> bytes | mmap.mmap:
    """The content of a file (gunzipped if it is gzip) or of an archive's member.

    What is returned is ours: the file may change or shrink afterwards without harm. Large content is mapped from
    an unnamed copy in `spool_dir`, which goes with the mapping, so that memory stays bounded.

    Raises:
        Unreadable: It cannot be read, or it changed while it was read.
        Archive: It is a ZIP archive.
    """
    if source.problem:
        raise Unreadable(source.problem)
    try:
        if source.member is None and (whole := _small_file(source.path)) is not None:
            return whole
        with _member(source) if source.member is not None else _file(source) as stream:
            return _read(stream, source.size, _limit(source, stream), spool_dir)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise Unreadable(_reason(error)) from error


def _small_file(path: str) -> bytes | None:
    """Nearly all files: read at once, neither packed nor too large for memory. None for all others."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        if before.st_size > IN_MEMORY_BYTES:
            return None
        data = os.read(descriptor, before.st_size + 1)
        if len(data) != before.st_size or _is_gzip(data[:132]):
            return None
        if data[:4] == ZIP:
            raise Archive
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Unreadable("it changed while it was read")
    return data


def _file(source: Source) -> IO[bytes]:
    with ExitStack() as on_failure:
        raw = on_failure.enter_context(open(source.path, "rb", buffering=0))
        head = os.pread(raw.fileno(), 132, 0)
        if head[:4] == ZIP:
            raise Archive
        on_failure.pop_all()
    return cast("IO[bytes]", _Unzipped(raw) if _is_gzip(head) else raw)


def _is_gzip(head: bytes) -> bool:
    """Return True for gzip; a DICOM file may have a preamble that begins like it."""
    return head[:2] == GZIP and head[128:132] != b"DICM"


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
    return zipfile.ZipFile(path)


def _limit(source: Source, stream: IO[bytes]) -> int | None:
    """How large packed content may become: images do not shrink to a hundredth, what is made to do harm does."""
    if source.member is not None:
        packed = _archive(source.path).infolist()[source.member].compress_size
    elif isinstance(stream, _Unzipped):
        packed = os.fstat(stream.fileno()).st_size
    else:
        return None
    return max(IN_MEMORY_BYTES, _MOST_UNPACKED * packed)


def _read(
    stream: IO[bytes], expected_size: int, limit: int | None, spool_dir: Path | None
) -> bytes | mmap.mmap:
    before = _state(stream)
    data: bytes | mmap.mmap = _read_some(stream, min(expected_size, IN_MEMORY_BYTES) + 1)
    if len(data) > expected_size:  # gunzipped, or it has grown
        data = bytes(data) + _read_some(stream, IN_MEMORY_BYTES + 1 - len(data))
    if len(data) > IN_MEMORY_BYTES:
        data = _spool(bytes(data), stream, limit, spool_dir)
    if _state(stream) != before:
        raise Unreadable("it changed while it was read")
    return data


def _read_some(stream: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes; fewer only at the end."""
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _state(stream: IO[bytes]) -> tuple[int, int] | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None  # a member of an archive has no descriptor, but a checksum
    return status.st_size, status.st_mtime_ns


def _spool(head: bytes, stream: IO[bytes], limit: int | None, spool_dir: Path | None) -> mmap.mmap:
    with tempfile.TemporaryFile(dir=spool_dir) as copy:
        chunk, size = head, 0
        while chunk:
            size += copy.write(chunk)
            if limit is not None and size > limit:
                raise Unreadable(f"it unpacks to more than {_MOST_UNPACKED} times its size")
            chunk = stream.read(_CHUNK_BYTES)
        copy.flush()
        return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
