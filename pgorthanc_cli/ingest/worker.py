"""What one worker does: read, hash and parse a batch of sources, and store what is new in the filesystem area.

A worker is a process with a connection of its own, which it only reads with. It leaves Ctrl-C to the
parent and ends when the parent is gone.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import signal
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import db, dicom, index, storage
from pgorthanc_cli.ingest import content, journal
from pgorthanc_cli.ingest.link import Link, Linker
from pgorthanc_cli.ingest.settle import HANDED_OVER_BYTES, Known, Restored, Settler
from pgorthanc_cli.ingest.walk import Source, shown

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe


DICOM, DICOM_UNTIL_PIXEL_DATA = 1, 3  # file types (SCHEMA.md 5)
NOT_COMPRESSED, ZLIB = 1, 2  # compression types

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

    def __init__(self, work: Work) -> None:
        """The worker's own connection is opened when it is needed."""
        self.work = work
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
        try:
            data = content.read(source, self.work.journals.folder if self.work.journals else None)
            instance = dicom.parse(data, self.work.profile)
        except content.Archive:
            if source.member is None:
                return Opened(source)
            return Refusal(shown(source), "an archive within an archive")
        except (content.Unreadable, dicom.Refused) as reason:
            return Refusal(shown(source), str(reason))
        return Parsed(source, data, _md5(data), instance)

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
            journals.discard(every)
            journals.forget(name)
            if isinstance(error, OSError):
                raise storage.unusable(journals.area.root, error) from error
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
            return _Meter(storage.encode(view, compress=True))
        return _AsItIs(view, parsed.md5)

    def _attachment(
        self, parsed: Parsed, file_type: int, name: str, view: memoryview, meter: _AsItIs | _Meter
    ) -> index.Attachment:
        md5 = parsed.md5 if file_type == DICOM else _md5(view)
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

    def __init__(self, view: memoryview, md5: str) -> None:
        self._view = view
        self._md5 = md5
        self.size = len(view)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._view

    def drain(self) -> None:
        """There is nothing to be measured."""

    def md5(self) -> str:
        return self._md5


class _Meter:
    """Counts and hashes the bytes that pass."""

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        self._chunks = chunks
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size = 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for chunk in self._chunks:
            self.size += len(chunk)
            self._md5.update(chunk)
            yield chunk

    def drain(self) -> None:
        deque(self, maxlen=0)

    def md5(self) -> str:
        return self._md5.hexdigest()


def _md5(data: bytes | mmap | memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


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


def serve(pipe: Pipe, inherited: Iterable[Pipe]) -> None:
    """What a worker process does: its work, then name and sources in, results (or what was raised) out.

    It ends with the pipe. `inherited` are ends of pipes that belong to the parent, which a fork has copied.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for other in inherited:
        other.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()
    gc.set_threshold(50_000)  # a batch is many small things, and none of them hangs together in a circle
    keep_memory()
    with suppress(EOFError, ConnectionError):
        work: Work = pipe.recv()
        if work.journals:
            work.journals.join()
        alone = Worker(work)
        while True:
            name, sources = pipe.recv()
            pipe.send(_answer(alone, name, sources))


def _answer(alone: Worker, name: str, sources: Sequence[Source]) -> list[Result] | Exception:
    try:
        return alone.prepare(name, sources)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        return error


def _end_with_parent() -> None:
    """A parent that was killed -9 cannot say so: a worker would finish its batch, and store files that nobody wants."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
