"""What one worker does: read, hash and parse a batch of sources, and store what is new in the filesystem area.

A worker is a process with a connection of its own, which it only reads with.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import pickle
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import dicom, index, storage, workers
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import content, journal
from pgorthanc_cli.ingest.link import Link, Linker
from pgorthanc_cli.ingest.settle import HANDED_OVER_BYTES, Known, Restored, Settler
from pgorthanc_cli.ingest.walk import Source, shown

if TYPE_CHECKING:
    from pathlib import Path

    from pgorthanc_cli import db

DICOM, DICOM_UNTIL_PIXEL_DATA = 1, 3  # file types (SCHEMA.md 5)
NOT_COMPRESSED, ZLIB = 1, 2  # compression types

_PIECE_BYTES = 16 << 20  # of large content, after which it is asked whether the run is to end
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEPT_BYTES = 32 << 20  # the largest threshold that glibc takes

# Metadata that Orthanc writes for a file POSTed to /instances by a local user without authentication.
REST_ORIGIN = {3: "", 8: "RestApi", 11: "127.0.0.1", 13: ""}


@dataclass(frozen=True, slots=True)
class Work:
    """What workers need to know; the same for the whole run.

    Attributes:
        target: The database of the index.
        profile: What decides the rows of a file.
        journals: For the filesystem area; None: the parent stores large objects in its transaction.
        storage_dir: The filesystem area, also where nothing is written; None: large objects.
        compress: StorageCompression.
        store_md5: StoreMD5ForAttachments.
        store_dicom: StoreDicom; false: the rows are written, the DICOM file is not.
        link: How files come into the filesystem area.
        overwrite: OverwriteInstances: which instances that are stored already need not be stored again.
        write: False for a dry run.
    """

    target: db.Target
    profile: dicom.Profile
    journals: journal.Journal | None
    storage_dir: Path | None
    compress: bool
    store_md5: bool
    store_dicom: bool
    link: Link
    overwrite: index.Overwrite
    write: bool


class Prepared(NamedTuple):
    """An instance ready for the index.

    Attributes:
        source: Where it is from.
        size: Bytes of the instance, uncompressed.
        md5: Of those bytes.
        record: Its rows.
        warnings: What is odd about the file; never a value of it.
        contents: For large objects: the bytes to store, one for each attachment; None when they are too large to
            hand over, and are to be read again.
    """

    source: Source
    size: int
    md5: str
    record: index.Record
    warnings: tuple[str, ...]
    contents: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not imported, and why; shown to people, without the content of the file."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A ZIP archive was found; its members come in its place."""

    source: Source


Result = Prepared | Known | Restored | Refusal | Opened
_Parts = Sequence[tuple[int, memoryview]]  # file type and content of each attachment of an instance


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A DICOM file that was read."""

    source: Source
    data: bytes | mmap
    md5: str
    instance: dicom.Instance


class Worker:
    """Prepares batches; the parent uses one itself when it works alone."""

    def __init__(self, work: Work, checkpoint: content.Checkpoint = content.unhurried) -> None:
        """The worker's own connection is opened when it is needed; `checkpoint` ends long work by an exception."""
        self.work = work
        self._checkpoint = checkpoint
        self._linker = Linker(work.journals.area, work.link) if work.journals and not work.compress else None
        self._stored = Settler(work)

    def prepare(self, name: str, sources: Sequence[Source]) -> list[Result]:
        """Results in the order of the sources; `name` is that of the batch's journal.

        Raises:
            PgOrthancError: The storage area cannot be written to.
        """
        results = [self._read(source) for source in sources]
        parsed = [r for r in results if isinstance(r, Parsed)]
        settled = self._stored.settle(name, parsed)
        fresh = [p for p in parsed if p not in settled]
        prepared: dict[Parsed, Result] = {**settled}
        prepared.update(zip(fresh, self._prepare(name, fresh), strict=True))
        return [prepared[r] if isinstance(r, Parsed) else r for r in results]

    def _read(self, source: Source) -> Parsed | Refusal | Opened:
        self._checkpoint()
        try:
            data = self._content(source)
            instance = dicom.parse(data, self.work.profile)
        except content.Archive:
            if source.member is None:
                return Opened(source)
            return Refusal(shown(source), "an archive within an archive")
        except (content.Unreadable, dicom.Refused) as reason:
            return Refusal(shown(source), str(reason))
        return Parsed(source, data, _md5(data, self._checkpoint), instance)

    def _content(self, source: Source) -> bytes | mmap:
        if not self.work.journals:
            return content.read(source, checkpoint=self._checkpoint)
        copies = (
            2 if self.work.write and self.work.store_dicom else 1
        )  # one to read, and the one that is stored
        return content.read(source, self.work.journals.spool, self._checkpoint, copies=copies)

    def _prepare(self, name: str, fresh: Sequence[Parsed]) -> list[Prepared]:
        if not self.work.write:
            return [self._prepared(p, [], None) for p in fresh]
        parts = [self._parts(p) for p in fresh]
        if not self.work.journals:
            return [self._in_memory(p, pieces) for p, pieces in zip(fresh, parts, strict=True)]
        return self._put_all(name, fresh, parts, self.work.journals)

    def _put_all(
        self, name: str, fresh: Sequence[Parsed], parts: Sequence[_Parts], journals: journal.Journal
    ) -> list[Prepared]:
        every = storage.new_uuids(sum(map(len, parts)))
        names = iter(every)
        try:
            journals.record(name, every)
            with journals.area.batch():
                return [
                    self._put(p, pieces, names, journals.area) for p, pieces in zip(fresh, parts, strict=True)
                ]
        except BaseException as error:
            with suppress(PgOrthancError):  # then the next import does it
                journals.discard(every)
                journals.forget(name)
            if isinstance(error, OSError):
                raise storage.write_error(journals.area.root, error) from error
            raise

    def _parts(self, parsed: Parsed) -> _Parts:
        """File type and content of each attachment (INGEST.md 8): ranges cannot be read from compressed files."""
        whole = memoryview(parsed.data)
        offset = parsed.instance.pixel_data_offset
        if self.work.compress and offset is not None:
            return [(DICOM, whole), (DICOM_UNTIL_PIXEL_DATA, whole[:offset])]
        return [(DICOM, whole)]

    def _put(
        self, parsed: Parsed, parts: _Parts, names: Iterator[str], area: storage.FilesystemArea
    ) -> Prepared:
        attachments = []
        for file_type, view in parts:
            name = next(names)
            meter = self._encoded(parsed, view)
            if (
                self.work.store_dicom
                and self._linker
                and self._linker.place(name, parsed.source, bytes(view[:64]))
            ):
                meter.drain()
            elif self.work.store_dicom or file_type != DICOM:
                area.put(name, file_type, meter)
            else:
                meter.drain()
            attachments.append(self._attachment(parsed, file_type, name, view, meter))
        return self._prepared(parsed, attachments, None)

    def _in_memory(self, parsed: Parsed, parts: _Parts) -> Prepared:
        """For large objects: the parent stores them, in the transaction that writes their rows."""
        attachments, contents = [], []
        for file_type, view in parts:
            meter = self._encoded(parsed, view)
            if len(parsed.data) > HANDED_OVER_BYTES:
                meter.drain()  # too large to hand over: only measured, and read again by the parent
            elif isinstance(parsed.data, bytes) and isinstance(meter, _AsItIs):
                contents.append(parsed.data)
            else:
                contents.append(b"".join(meter))
            attachments.append(self._attachment(parsed, file_type, str(uuid.uuid4()), view, meter))
        return self._prepared(parsed, attachments, tuple(contents) or None)

    def _encoded(self, parsed: Parsed, view: memoryview) -> _AsItIs | _Meter:
        if self.work.compress:
            return _Meter(storage.encode(view, compress=True), self._checkpoint)
        return _AsItIs(view, parsed.md5, self._checkpoint)

    def _attachment(
        self, parsed: Parsed, file_type: int, name: str, view: memoryview, meter: _AsItIs | _Meter
    ) -> index.Attachment:
        md5 = parsed.md5 if file_type == DICOM else _md5(view, self._checkpoint)
        return index.Attachment(
            file_type=file_type,
            uuid=name,
            compressed_size=meter.size,
            uncompressed_size=len(view),
            compression_type=ZLIB if self.work.compress else NOT_COMPRESSED,
            uncompressed_hash=md5 if self.work.store_md5 else "",
            compressed_hash=meter.md5() if self.work.store_md5 else "",
        )

    def _prepared(
        self, parsed: Parsed, attachments: Sequence[index.Attachment], contents: tuple[bytes, ...] | None
    ) -> Prepared:
        instance = parsed.instance
        record = index.Record(
            instance.levels,
            instance.expected_instances,
            instance.index_in_series,
            tuple(attachments),
            REST_ORIGIN,
            parsed.source.replaces,
        )
        return Prepared(parsed.source, len(parsed.data), parsed.md5, record, instance.warnings, contents)


class _AsItIs:
    """A whole file that is stored without compression: what a `_Meter` would find is known."""

    def __init__(self, view: memoryview, md5: str, checkpoint: content.Checkpoint) -> None:
        self._view = view
        self._md5 = md5
        self._checkpoint = checkpoint
        self.size = len(view)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for start in range(0, self.size, _PIECE_BYTES):
            self._checkpoint()
            yield self._view[start : start + _PIECE_BYTES]

    def drain(self) -> None:
        """There is nothing to be measured."""

    def md5(self) -> str:
        return self._md5


class _Meter:
    """Counts and hashes the bytes that pass."""

    def __init__(self, chunks: Iterator[bytes | memoryview], checkpoint: content.Checkpoint) -> None:
        self._chunks = chunks
        self._checkpoint = checkpoint
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size = 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for chunk in self._chunks:
            self._checkpoint()
            self.size += len(chunk)
            self._md5.update(chunk)
            yield chunk

    def drain(self) -> None:
        deque(self, maxlen=0)

    def md5(self) -> str:
        return self._md5.hexdigest()


def _md5(data: bytes | mmap | memoryview, checkpoint: content.Checkpoint = content.unhurried) -> str:
    """The MD5, of large content piece by piece: nothing interrupts a call of hashlib."""
    if len(data) <= _PIECE_BYTES:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    digest = hashlib.md5(usedforsecurity=False)
    with memoryview(data) as view:
        for start in range(0, len(view), _PIECE_BYTES):
            checkpoint()
            with view[start : start + _PIECE_BYTES] as piece:
                digest.update(piece)
    return digest.hexdigest()


def keep_memory() -> None:
    """Let this process keep the memory of a batch for the next one.

    glibc gives large blocks back to the system at once. To get them again, page by page, takes a third of the time
    that it takes to hash them. Elsewhere nothing happens.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


# --- in a process of its own ---------------------------------------------------------------------------------

_alone: Worker | None = None
_begun = b""


def call(pickled: bytes, name: str, sources: Sequence[Source]) -> list[Result]:
    """Prepare a batch; `pickled` is the work, which is the same for all batches of a run."""
    global _alone, _begun
    if _alone is None or pickled != _begun:
        gc.freeze()
        gc.set_threshold(50_000)  # a batch is many small things, and none of them hangs together in a circle
        keep_memory()
        work: Work = pickle.loads(pickled)  # noqa: S301 - from the parent
        if work.journals:
            work.journals.join()
        _alone, _begun = Worker(work, workers.checkpoint), pickled
    return _alone.prepare(name, sources)
