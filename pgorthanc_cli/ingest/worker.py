"""What a worker does: read, hash and parse a batch of files, and store the new ones.

A worker is a process with a connection of its own, which it only reads with. It stores
files in the filesystem area; large objects are stored by the parent, in the transaction
of their rows.

Longer than other modules: each way of storing a file is a few lines of one class, which
share its connection, its linker and its settings.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import pickle
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from mmap import mmap
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import dicom, index, storage, workers
from pgorthanc_cli.ingest import content
from pgorthanc_cli.ingest.adoption import ORIGIN as PLUGIN_ORIGIN
from pgorthanc_cli.ingest.link import Linker
from pgorthanc_cli.ingest.model import (
    Archive,
    Comparison,
    FileProblem,
    InstanceSummary,
    Known,
    NotDicom,
    Prepared,
    Result,
)
from pgorthanc_cli.ingest.stored import DICOM, ZLIB, Deduplicator

if TYPE_CHECKING:
    from pgorthanc_cli import db
    from pgorthanc_cli.ingest.adoption import Adoption
    from pgorthanc_cli.ingest.journal import Journal
    from pgorthanc_cli.ingest.settings import Settings
    from pgorthanc_cli.ingest.walk import Source

DICOM_UNTIL_PIXEL_DATA = 3  # file type (SCHEMA.md 5)
NOT_COMPRESSED = 1  # compression type

_PIECE_BYTES = 16 << 20  # of large content, between two checkpoints
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_MALLOC_BYTES = 32 << 20  # the largest threshold that glibc takes

# Metadata that Orthanc writes for a file POSTed to /instances by a local user without
# authentication: remote AET, origin, remote IP, HTTP user name.
REST_ORIGIN = {3: "", 8: "RestApi", 11: "127.0.0.1", 13: ""}


class Work(NamedTuple):
    """What a worker needs to know, pickled once for a whole run.

    Attributes:
        target: The database of the index.
        settings: How to import.
        journal: Of the filesystem area; None in a dry run, and for large objects.
    """

    target: db.Target
    settings: Settings
    journal: Journal | None


_Parts = Sequence[tuple[int, memoryview]]  # file type and content of each attachment


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A DICOM file that was read; each is a key of its own."""

    source: Source
    data: bytes | mmap
    md5: str
    instance: dicom.Instance


class Worker:
    """Prepares batches; with a single job, the parent has one itself."""

    def __init__(self, work: Work, checkpoint: content.Checkpoint = content.no_checkpoint) -> None:
        """`checkpoint` ends long work by an exception."""
        self.work = work
        self.settings = work.settings
        self._checkpoint = checkpoint
        self._linker = None
        if work.journal and not self.settings.compress:
            self._linker = Linker(work.journal.area, self.settings.link)
        self._deduplicator = Deduplicator(work.target, self.settings, work.journal)
        # After a batch of mostly known files, those of the next one are looked up by their
        # MD5 first: what is stored need not be parsed.
        self._expects_known = False

    def close(self) -> None:
        """Close the connection."""
        self._deduplicator.close()

    def prepare(self, name: str, sources: Sequence[Source]) -> list[Result]:
        """Return the results in the order of the sources; `name` is of the batch's journal.

        Raises:
            PgOrthancError: The storage area cannot be written to.
        """
        with ExitStack() as stack:
            uuids: Iterator[str] = iter(())
            if self.work.journal:
                most = len(sources) * (2 if self.settings.compress else 1)
                uuids = stack.enter_context(self.work.journal.new_files(name, most))
            groups = _groups(sources, self.settings.group_bytes)
            return [result for group in groups for result in self._prepare_group(name, group, uuids)]

    def _prepare_group(self, name: str, sources: Sequence[Source], uuids: Iterator[str]) -> list[Result]:
        stored = self._known_by_content(sources) if self._expects_known else {}
        results = [stored.get(source) or self._read(source) for source in sources]
        parsed = [r for r in results if isinstance(r, Parsed)]
        prepared: dict[Parsed, Result] = {**self._deduplicator.known(name, parsed)}
        # A file may repeat another one of its batch: only the transaction finds that out.
        new = [p for p in parsed if p not in prepared]
        if self.settings.adopt:
            conflicts = self._deduplicator.conflicts(self.settings.adopt, new)
            prepared.update(conflicts)
            new = [p for p in new if p not in conflicts]
        prepared.update(zip(new, self._prepare_new(new, uuids), strict=True))
        ends = [prepared[r] if isinstance(r, Parsed) else r for r in results]
        self._expects_known = 2 * sum(isinstance(end, Known) for end in ends) > len(ends)
        return ends

    def _known_by_content(self, sources: Sequence[Source]) -> dict[Source, Known]:
        """Return the files that are stored as they are, by what their identifiers seem to be and their MD5."""
        if self.settings.adopt or self.settings.overwrite is index.Overwrite.ALWAYS:
            return {}
        files: dict[Source, Known] = {}
        for source in sources:
            self._checkpoint()
            if source.size > self.settings.transfer_bytes:
                continue  # reading it twice takes longer than parsing it
            try:
                data = self._content(source)
            except (content.UnreadableError, content.ArchiveError):
                continue  # for `_read`
            if ids := dicom.probable_ids(data):
                patient, instance = ids
                summary = InstanceSummary(instance, patient, "", "", "")
                md5 = _md5(data, self._checkpoint)
                files[source] = Known(source, len(data), summary, md5, Comparison("", compared=True))
        return self._deduplicator.unchanged(files)

    def _read(self, source: Source) -> Parsed | NotDicom | FileProblem | Archive:
        self._checkpoint()
        if self.settings.adopt:
            return self._read_in_place(source, self.settings.adopt)
        try:
            data = self._content(source)
            instance = dicom.parse(data, self.settings.profile)
        except content.ArchiveError:
            if source.member is None:
                return Archive(source)
            return FileProblem(source.name, "an archive within an archive")
        except (content.UnreadableError, dicom.Refused) as reason:
            return FileProblem(source.name, str(reason))
        return Parsed(source, data, _md5(data, self._checkpoint), instance)

    def _read_in_place(self, source: Source, adoption: Adoption) -> Parsed | NotDicom | FileProblem:
        problem = adoption.problem(source)
        if problem:
            return FileProblem(source.name, problem)
        data: bytes | mmap = b""
        try:
            memory_bytes = self.settings.memory_bytes
            data, source, md5, offset = content.read_in_place(
                source, self._checkpoint, memory_bytes=memory_bytes
            )
            instance = self._parsed_ranges(data, offset) if md5 else None
            if instance is None:
                data, source, md5, _ = content.read_in_place(
                    source, self._checkpoint, memory_bytes=memory_bytes, whole=True
                )
                instance = dicom.parse(data, self.settings.profile)
        except (content.NotDicomError, dicom.Refused) as reason:
            packed = content.packed(bytes(data[:132]))
            text = "it is packed, and cannot be adopted: import it without --adopt" if packed else str(reason)
            return NotDicom(source, FileProblem(source.name, text))
        except content.UnreadableError as reason:
            return FileProblem(source.name, str(reason))
        return Parsed(source, data, md5 or _md5(data, self._checkpoint), instance)

    def _parsed_ranges(self, data: bytes | mmap, offset: int | None) -> dicom.Instance | None:
        """Return what a large file determines whose pixel data was not read, None if only the whole file tells."""
        try:
            instance = dicom.parse(data, self.settings.profile)
        except dicom.Refused:
            return None
        return instance if instance.pixel_data_offset == offset else None

    def _content(self, source: Source) -> bytes | mmap:
        memory_bytes = self.settings.memory_bytes
        if not self.work.journal:
            return content.read(source, checkpoint=self._checkpoint, memory_bytes=memory_bytes)
        # A large file is copied to the storage area to be read, and once more to be
        # stored.
        copies = 2 if self.settings.store_dicom else 1
        return content.read(
            source,
            self.work.journal.spool,
            self._checkpoint,
            copies=copies,
            memory_bytes=memory_bytes,
        )

    def _prepare_new(self, parsed: Sequence[Parsed], uuids: Iterator[str]) -> list[Prepared]:
        if self.settings.dry_run:
            return [self._prepared(p, [], None) for p in parsed]
        parts = [self._parts(p) for p in parsed]
        if self.settings.adopt and not any(parts):
            return [self._prepared(p, [self._adopted(p, self.settings.adopt)], None) for p in parsed]
        pairs = zip(parsed, parts, strict=True)
        if self.work.journal:
            area = self.work.journal.area
            return [self._put(p, pieces, uuids, area) for p, pieces in pairs]
        return [self._prepare_large_objects(p, pieces) for p, pieces in pairs]

    def _parts(self, parsed: Parsed) -> _Parts:
        """Return file type and content of each attachment to store (INGEST.md 8).

        Orthanc cannot read a range of a compressed file, so it keeps the head of it
        separately; with StorageCompression also that of an adopted file (STORAGE.md A1).
        """
        whole = memoryview(parsed.data)
        offset = parsed.instance.pixel_data_offset
        parts = [] if self.settings.adopt else [(DICOM, whole)]
        if self.settings.compress and offset is not None:
            parts.append((DICOM_UNTIL_PIXEL_DATA, whole[:offset]))
        return parts

    def _put(
        self,
        parsed: Parsed,
        parts: _Parts,
        uuids: Iterator[str],
        area: storage.FilesystemArea,
    ) -> Prepared:
        adopt = self.settings.adopt
        attachments = [self._adopted(parsed, adopt)] if adopt else []
        for file_type, view in parts:
            name = next(uuids)
            meter = self._encoded(parsed, view)
            stored = self.settings.store_dicom or file_type != DICOM
            head = bytes(view[:64])
            # Only the DICOM file itself has a linker: compressed files have none.
            if not stored or (self._linker and self._linker.place(name, parsed.source, head)):
                meter.drain()
            else:
                area.put(name, file_type, meter)
            attachments.append(self._attachment(parsed, file_type, name, view, meter))
        return self._prepared(parsed, attachments, None)

    def _prepare_large_objects(self, parsed: Parsed, parts: _Parts) -> Prepared:
        attachments, contents = [], []
        for file_type, view in parts:
            meter = self._encoded(parsed, view)
            if len(parsed.data) > self.settings.transfer_bytes:
                meter.drain()  # only measured: the parent reads it again
            elif isinstance(parsed.data, bytes) and isinstance(meter, _Unchanged):
                contents.append(parsed.data)  # without a copy
            else:
                contents.append(b"".join(meter))
            name = str(uuid.uuid4())
            attachments.append(self._attachment(parsed, file_type, name, view, meter))
        return self._prepared(parsed, attachments, tuple(contents) or None)

    def _encoded(self, parsed: Parsed, view: memoryview) -> _Unchanged | _Meter:
        if self.settings.compress:
            return _Meter(storage.encode(view, compress=True), self._checkpoint)
        return _Unchanged(view, parsed.md5, self._checkpoint)

    def _attachment(
        self,
        parsed: Parsed,
        file_type: int,
        name: str,
        view: memoryview,
        meter: _Unchanged | _Meter,
    ) -> index.Attachment:
        md5 = parsed.md5 if file_type == DICOM else _md5(view, self._checkpoint)
        return index.Attachment(
            file_type=file_type,
            uuid=name,
            compressed_size=meter.size,
            uncompressed_size=len(view),
            compression_type=ZLIB if self.settings.compress else NOT_COMPRESSED,
            uncompressed_hash=md5 if self.settings.store_md5 else "",
            compressed_hash=meter.md5() if self.settings.store_md5 else "",
            custom_data=self.settings.adopt.custom_data_of_head(name) if self.settings.adopt else None,
        )

    def _adopted(self, parsed: Parsed, adoption: Adoption) -> index.Attachment:
        """Return the row of a file that stays where it is; its MD5 is always recorded (STORAGE.md A1)."""
        size = len(parsed.data)
        custom_data = adoption.custom_data(parsed.source)
        return index.Attachment(
            DICOM, str(uuid.uuid4()), size, size, NOT_COMPRESSED, parsed.md5, parsed.md5, custom_data
        )

    def _prepared(
        self,
        parsed: Parsed,
        attachments: Sequence[index.Attachment],
        contents: tuple[bytes, ...] | None,
    ) -> Prepared:
        instance, adopt = parsed.instance, self.settings.adopt
        public_id = instance.levels[index.INSTANCE].public_id
        record = index.Record(
            instance.levels,
            instance.expected_instances,
            instance.index_in_series,
            tuple(attachments),
            PLUGIN_ORIGIN if adopt else REST_ORIGIN,
            parsed.source.replaces,
            tuple(adopt.rows(parsed.source, public_id)) if adopt else (),
        )
        size = len(parsed.data)
        return Prepared(parsed.source, size, parsed.md5, record, instance.warnings, contents)


def _groups(sources: Sequence[Source], group_bytes: int) -> Iterator[list[Source]]:
    """Group the sources of a batch, in order, by what is in memory at once."""
    group: list[Source] = []
    size = 0
    for source in sources:
        group.append(source)
        size += source.size
        if size >= group_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Unchanged:
    """Content that is stored without compression; its size and MD5 are known already."""

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
        """Do nothing: there is nothing to measure."""

    def md5(self) -> str:
        return self._md5


class _Meter:
    """Counts and hashes the chunks that pass through."""

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


def _md5(data: bytes | mmap | memoryview, checkpoint: content.Checkpoint) -> str:
    """Return the MD5, of large content in pieces: nothing interrupts hashlib."""
    # A machine in FIPS mode refuses MD5, unless it is not used for security.
    if len(data) <= _PIECE_BYTES:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    digest = hashlib.md5(usedforsecurity=False)
    with memoryview(data) as view:
        for start in range(0, len(view), _PIECE_BYTES):
            checkpoint()
            with view[start : start + _PIECE_BYTES] as piece:
                digest.update(piece)
    return digest.hexdigest()


def tune_malloc() -> None:
    """Let this process keep the memory of a batch for the next one.

    glibc returns large blocks to the system immediately. Getting them back, page by page,
    takes a third of the time that it takes to hash them. Without glibc, this does
    nothing.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MALLOC_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MALLOC_BYTES)


# --- in a worker process ----------------------------------------------------------------

_worker: Worker | None = None
_pickled_work = b""


def call(pickled: bytes, name: str, sources: Sequence[Source]) -> list[Result]:
    """Prepare a batch; `pickled` is the work, the same for all batches of a run."""
    global _worker, _pickled_work
    if _worker is None or pickled != _pickled_work:
        # A batch is many small objects without cycles: frequent collections would find
        # nothing.
        gc.freeze()
        gc.set_threshold(50_000)
        tune_malloc()
        work: Work = pickle.loads(pickled)  # noqa: S301 - from the parent
        if work.journal:
            work.journal.join()
        _worker, _pickled_work = Worker(work, workers.checkpoint), pickled
    return _worker.prepare(name, sources)
