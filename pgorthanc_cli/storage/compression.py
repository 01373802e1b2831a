"""The form of stored content: as it is, or compressed.

An attachment is stored as it is (compression 1), or as an 8-byte little-endian size and a
zlib stream (compression 2), which is what Orthanc's StorageCompression writes (INGEST.md
8). Of an empty content there is the size alone.

isal, if it is installed (`pip install pgorthanc[fast]`), compresses 14 times as fast as
zlib, to nearly the same size. Other programs read both; the bytes differ. Content is
always decompressed by zlib, as Orthanc does: what is verified is what Orthanc can read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from mmap import mmap
from typing import Protocol

from pgorthanc_cli.errors import PgOrthancError

CHUNK_BYTES = 1 << 20
_SIZE = struct.Struct("<Q")
_ZLIB_LEVEL, _ISAL_LEVEL = 6, 2  # Orthanc's, and the one whose output is about as small


class Compressor(Protocol):
    """A zlib stream that is being written."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Take the next content; return what can be written of it."""

    def flush(self) -> bytes:
        """Return the end of the stream."""


NewCompressor = Callable[[], Compressor]


@cache
def compressors() -> tuple[NewCompressor, ...]:
    """Return the installed compressors, the fastest first; zlib writes the bytes that Orthanc does."""
    as_orthanc: NewCompressor = partial(zlib.compressobj, _ZLIB_LEVEL)
    try:
        from isal import isal_zlib
    except ImportError:
        return (as_orthanc,)
    return partial(isal_zlib.compressobj, _ISAL_LEVEL), as_orthanc


def encode(
    data: bytes | mmap | memoryview, *, compress: bool, compressor: NewCompressor | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes to store for `data`, in chunks of about 1 MiB."""
    view = memoryview(data)
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    yield from compressed(len(view), chunks, compressor) if compress else chunks


def compressed(
    size: int, chunks: Iterable[bytes | memoryview], new_compressor: NewCompressor | None = None
) -> Iterator[bytes]:
    """Yield the bytes of a compressed attachment whose content has that size.

    On one machine the same chunks give the same bytes; the fastest compressor is the default.
    """
    yield _SIZE.pack(size)
    if size:
        compressor = (new_compressor or compressors()[0])()
        for chunk in chunks:
            yield compressor.compress(chunk)
        yield compressor.flush()


def decode(stored: bytes) -> bytes:
    """Return the content of a compressed attachment.

    Raises:
        PgOrthancError: It is damaged, or not a compressed attachment.
    """
    return b"".join(decompressed([stored]))


def decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of a compressed attachment; memory does not depend on its size.

    Raises:
        PgOrthancError: It is damaged, or not a compressed attachment.
    """
    inflater = Inflater()
    for chunk in chunks:
        yield from inflater.inflate(chunk)
    inflater.finish()
    if inflater.problem:
        raise PgOrthancError(f"a compressed attachment is damaged: {inflater.problem}")


class Inflater:
    """Decompresses an attachment piece by piece; memory does not depend on its size.

    Attributes:
        announced: The size that it begins with, None before that is complete.
        size: Bytes of content so far.
        trailing: Bytes after the end of the compressed content, which Orthanc ignores.
        problem: Why it cannot be decompressed, empty if nothing shows that yet.
    """

    def __init__(self, piece_bytes: int = CHUNK_BYTES) -> None:
        """Start at the beginning; `piece_bytes` is the largest piece of content."""
        self.announced: int | None = None
        self.size = 0
        self.trailing = 0
        self.problem = ""
        self._piece_bytes = piece_bytes
        self._prefix = b""
        self._stream = zlib.decompressobj()

    def inflate(self, chunk: bytes) -> Iterator[bytes]:
        """Take the next stored bytes, and yield the content in them."""
        if self.announced is None:
            rest = _SIZE.size - len(self._prefix)
            self._prefix, chunk = self._prefix + chunk[:rest], chunk[rest:]
            if len(self._prefix) < _SIZE.size:
                return
            (self.announced,) = _SIZE.unpack(self._prefix)
        while chunk and not self.problem:
            if self._stream.eof:
                self.trailing += len(chunk)
                return
            try:
                piece = self._stream.decompress(chunk, self._piece_bytes)
            except zlib.error as error:
                self.problem = str(error)
                return
            self.size += len(piece)
            # A small file may inflate to any size: stop where it contradicts itself.
            if self.size > self.announced:
                self.problem = f"it holds more than the {self.announced:,} bytes that it announces"
                return
            if piece:
                yield piece
            chunk = self._stream.unconsumed_tail or self._stream.unused_data

    def finish(self) -> None:
        """Note the problem if the content is not complete."""
        if self.announced is None:
            self.problem = "it is shorter than the size that it begins with"
        elif not self.problem and self.announced and not self._stream.eof:
            self.problem = "it ends within its compressed content"
        elif not self.problem and self.size != self.announced:
            self.problem = f"it holds {self.size:,} bytes and announces {self.announced:,}"
