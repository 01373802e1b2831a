"""Reading the bytes of a source; a file that changes while it is read is refused."""

from __future__ import annotations

import gzip
import hashlib
import mmap
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import IO, NamedTuple, cast

from pgorthanc_cli import dicom, files, text
from pgorthanc_cli.ingest.walk import Source, ZipArchive

# Larger files are copied to an unnamed temporary file and mapped, but for adopted ones.
MEMORY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_SPACE_CHUNKS = 16  # between two checks of the free space
# Images do not compress to a hundredth of their size; archives made to do harm (bombs)
# do.
_MAX_UNPACK_RATIO = 100
# Space to leave free: a twentieth of the file system, a GiB at most.
_RESERVE_BYTES, _RESERVE_SHARE = 1 << 30, 20
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
# PS3.10, 7.1: a preamble of 128 bytes, then DICM.
_HEAD_BYTES = 132
_PIXEL_DATA = b"\xe0\x7f\x10\0"  # tag 7FE0,0010, little endian
_CHANGED = "it changed while it was read"

Spool = Callable[[], IO[bytes]]
Checkpoint = Callable[[], None]
"""Called every now and then during long work; raises to end it."""


class UnreadableError(Exception):
    """A source cannot be read; the message gives the reason, without its content."""


class NotDicomError(UnreadableError):
    """A source is not a DICOM file; the message gives the reason."""


class ArchiveError(Exception):
    """A source is a ZIP archive, whose members can be read."""


def no_checkpoint() -> None:
    """Do nothing: the checkpoint of work that is never interrupted."""


def read(
    source: Source,
    spool: Spool = tempfile.TemporaryFile,
    checkpoint: Checkpoint = no_checkpoint,
    *,
    copies: int = 1,
    memory_bytes: int = MEMORY_BYTES,
    unpack: bool = True,
) -> bytes | mmap.mmap:
    """Return the content of a file (gunzipped if it is gzip) or of an archive's member.

    The result is ours: the file may change or shrink afterwards without harm. Large
    content is mapped from an unnamed copy, which disappears with the mapping, so that
    memory stays bounded. It is copied only if it begins like DICOM, and if there is space
    for it.

    Args:
        source: The file, or the member of an archive.
        spool: Returns a new file for the copy.
        checkpoint: Called again and again while large content is copied.
        copies: How many copies of the content its file system will hold, this one
            included.
        memory_bytes: Larger content is copied.
        unpack: Whether gzip and ZIP files are recognized; if not, they are not DICOM.

    Raises:
        NotDicomError: It is not DICOM.
        UnreadableError: It cannot be read, there is no space for it, or
            it changed while it was read.
        ArchiveError: It is a ZIP archive.
    """
    if source.problem:
        raise UnreadableError(source.problem)
    try:
        if source.member is None:
            content = _read_small_file(source.path, memory_bytes, unpack=unpack)
            if content is not None:
                return content
        stream = _open_file(source, unpack=unpack) if source.member is None else _open_member(source)
        with stream:
            copy = _Copy(spool, checkpoint, _max_unpacked(source, stream, memory_bytes), copies)
            return _read(source, stream, copy, memory_bytes)
    # EOFError: a gzip file is cut off; RuntimeError: a member of a ZIP is encrypted.
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise UnreadableError(_reason(error)) from error


class InPlace(NamedTuple):
    """The content of a file that stays where it is.

    Attributes:
        data: The content; of a large file as `ranges` returns it.
        source: With the size and time of that content.
        md5: Of the whole file, empty if it is that of `data`.
        offset: Where the pixel data begins, without which a large file was read; else None.
    """

    data: bytes | mmap.mmap
    source: Source
    md5: str = ""
    offset: int | None = None


def read_in_place(
    source: Source, checkpoint: Checkpoint, *, memory_bytes: int, whole: bool = False
) -> InPlace:
    """Return the content of a file as it lies; of a large one only what is needed, if `whole` is false.

    Raises:
        UnreadableError: As `read`.
    """
    if source.problem:
        raise UnreadableError(source.problem)
    try:
        before = os.stat(source.path)
        content = None
        if before.st_size > memory_bytes and not whole:
            content = _read_ranges(source, checkpoint, memory_bytes)
        if content is None:
            data = read(source, checkpoint=checkpoint, memory_bytes=memory_bytes, unpack=False)
            content = InPlace(data, source)
        after = os.stat(source.path)
    except OSError as error:
        raise UnreadableError(_reason(error)) from error
    states = {(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in (before, after)}
    if len(states) > 1 or after.st_size != len(content.data):
        raise UnreadableError(_CHANGED)
    return content._replace(source=source._replace(size=after.st_size, mtime_ns=after.st_mtime_ns))


def _read_ranges(source: Source, checkpoint: Checkpoint, memory_bytes: int) -> InPlace | None:
    """Return what `dicom.parse` needs of a file that is mostly pixel data, None of any other file.

    The file itself is never mapped: it may shrink, which would kill this process.
    """
    with os.fdopen(files.open_regular(source.path), "rb", buffering=0) as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        _refuse(dicom.reject_reason(lambda start, count: os.pread(descriptor, count, start), size))
        try:
            # Pages that are not written are zeros, and take no memory.
            data = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            return None

        def fill(position: int, length: int) -> bytes:
            piece = os.pread(descriptor, length, position)
            data[position : position + len(piece)] = piece
            return piece

        offset = _pixel_data(fill, data, memory_bytes)
        if offset is None:
            data.close()
            return None
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            checkpoint()
    return InPlace(data, source, digest.hexdigest(), offset)


def _pixel_data(fill: Callable[[int, int], bytes], data: mmap.mmap, memory_bytes: int) -> int | None:
    """Return where the pixel data begins of which a file mostly consists; the rest of it is filled then."""
    size = len(data)
    filled = start = 0
    while filled < memory_bytes and (piece := fill(filled, _CHUNK_BYTES)):
        filled += len(piece)
        while (offset := data.find(_PIXEL_DATA, start, filled)) != -1:
            end = dicom.pixel_data_end(fill, offset, size)
            # Padding and signatures may follow; after the pixel data of an icon, much more does.
            if end is not None and 0 <= size - end <= _CHUNK_BYTES:
                fill(end, size - end)
                return offset
            start = offset + 1
        start = max(start, filled - len(_PIXEL_DATA) + 1)
    return None


def _read_small_file(path: str, memory_bytes: int, *, unpack: bool) -> bytes | None:
    """Return the content of a small unpacked file, as nearly all are; None for others."""
    descriptor = files.open_regular(path)
    try:
        before = os.fstat(descriptor)
        if before.st_size > memory_bytes:
            return None
        # One byte more than expected shows that the file has grown.
        data = os.read(descriptor, before.st_size + 1)
        kind = packed(data[:_HEAD_BYTES]) if unpack else b""
        # The slow path decides about a file that has grown, or was read in part only.
        if len(data) != before.st_size or kind == GZIP:
            return None
        if kind == ZIP:
            raise ArchiveError
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise UnreadableError(_CHANGED)
    return data


def packed(head: bytes) -> bytes:
    """Return GZIP or ZIP if a file with this head is packed, else nothing.

    The preamble of a DICOM file may begin with anything, also like a packed file.
    """
    if head[128:132] != b"DICM":
        if head.startswith(GZIP):
            return GZIP
        if head.startswith(ZIP):
            return ZIP
    return b""


def _open_file(source: Source, *, unpack: bool) -> IO[bytes]:
    with ExitStack() as on_failure:
        raw = on_failure.enter_context(os.fdopen(files.open_regular(source.path), "rb", buffering=0))
        # pread leaves the position where it is.
        kind = packed(os.pread(raw.fileno(), _HEAD_BYTES, 0)) if unpack else b""
        if kind == ZIP:
            raise ArchiveError
        on_failure.pop_all()
    return cast("IO[bytes]", _Unzipped(raw) if kind == GZIP else raw)


class _Unzipped(gzip.GzipFile):
    """A gzip stream that owns its file, and closes it."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._raw = raw

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        super().close()
        self._raw.close()


def _open_member(source: Source) -> IO[bytes]:
    archive = _archive(source.path)
    # By position: a name may occur twice in an archive, and `open` takes the last one.
    return archive.open(archive.infolist()[source.member or 0])


@lru_cache(maxsize=1)
def _archive(path: str) -> zipfile.ZipFile:
    """Return an open archive: reading its directory for each batch were quadratic."""
    return ZipArchive(path)


def _max_unpacked(source: Source, stream: IO[bytes], memory_bytes: int) -> int | None:
    """Return how large packed content may become; None for other content."""
    if source.member is not None:
        packed = _archive(source.path).infolist()[source.member].compress_size
    elif isinstance(stream, _Unzipped):
        packed = os.fstat(stream.fileno()).st_size
    else:
        return None
    return max(memory_bytes, _MAX_UNPACK_RATIO * packed)


def _read(source: Source, stream: IO[bytes], copy: _Copy, memory_bytes: int) -> bytes | mmap.mmap:
    before = _state(stream)
    is_file = source.member is None and not isinstance(stream, _Unzipped)
    # Large content is not copied before its head looks like DICOM.
    if is_file and before is not None and before[0] > memory_bytes:
        descriptor, size = stream.fileno(), before[0]
        _refuse(dicom.reject_reason(lambda start, count: os.pread(descriptor, count, start), size))
        copy.require_space(size)
    expected = min(source.size, memory_bytes) + 1
    data: bytes | mmap.mmap = _read_some(stream, expected, copy.checkpoint)
    if len(data) > source.size:  # gunzipped, or it has grown
        rest = _read_some(stream, memory_bytes + 1 - len(data), copy.checkpoint)
        data = bytes(data) + rest
    if len(data) > memory_bytes:
        head = bytes(data)
        if not is_file or before is None:
            _refuse(
                dicom.reject_reason(lambda start, size: head[start : start + size], None, available=len(head))
            )
        data = copy.write(head, stream)
    if _state(stream) != before:
        raise UnreadableError(_CHANGED)
    return data


def _refuse(reason: str | None) -> None:
    if reason:
        raise NotDicomError(reason)


def _read_some(stream: IO[bytes], size: int, checkpoint: Checkpoint) -> bytes:
    """Read `size` bytes, or fewer at the end."""
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(size - len(data), 16 * _CHUNK_BYTES))
        if not chunk:
            break
        data += chunk
        checkpoint()
    return bytes(data)


def _state(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return what tells whether a file has changed: its size and modification time."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        # A member of an archive has no descriptor, but it has a checksum.
        return None
    return status.st_size, status.st_mtime_ns


class _Copy:
    """Copies large content to a file without a name, and maps it."""

    def __init__(self, spool: Spool, checkpoint: Checkpoint, max_bytes: int | None, copies: int) -> None:
        self.spool = spool
        self.checkpoint = checkpoint
        self.max_bytes = max_bytes
        self.copies = copies

    def require_space(self, size: int) -> None:
        """Raise UnreadableError if there is no space for content of a known size."""
        with self.spool() as file:
            free = _free(file)
        if size * self.copies > free:
            raise UnreadableError(
                f"no space: it takes {text.size(size * self.copies)} where the files are "
                f"copied to, and only {text.size(max(0, free))} may be used there"
            )

    def write(self, head: bytes, stream: IO[bytes]) -> mmap.mmap:
        """Copy the content, whose head has been read, and return its mapping.

        Raises:
            UnreadableError: It is too large.
        """
        with self.spool() as file:
            chunk, size, count = head, 0, 0
            while chunk:
                if count % _SPACE_CHUNKS == 0 and _free(file) < len(chunk):
                    raise UnreadableError(
                        f"no space: more than {text.size(size)} where the files are copied to"
                    )
                size += file.write(chunk)
                count += 1
                if self.max_bytes is not None and size > self.max_bytes:
                    raise UnreadableError(f"it unpacks to more than {_MAX_UNPACK_RATIO} times its size")
                self.checkpoint()
                chunk = stream.read(_CHUNK_BYTES)
            file.flush()
            # The mapping outlives the descriptor, and the unnamed file lives as long.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _free(file: IO[bytes]) -> int:
    """Return how many bytes may be written without filling the disk for other users."""
    status = os.fstatvfs(file.fileno())
    reserve = min(_RESERVE_BYTES, status.f_blocks * status.f_frsize // _RESERVE_SHARE)
    # f_bavail leaves out the blocks that the file system reserves for root.
    return status.f_bavail * status.f_frsize - reserve


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
