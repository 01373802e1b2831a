"""Files whose instance is stored already: compare them, and put missing content back.

A stored instance whose content is missing (a lost disk, a dump without large objects)
gets back exactly the bytes that its row describes, under the same UUID. A row is never
changed for that: content that cannot be reproduced to the byte is reported as different.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pgorthanc_cli import db, index, storage
from pgorthanc_cli.ingest.content import UnreadableError
from pgorthanc_cli.ingest.model import Comparison, FileProblem, Known, Restored, summarize

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.ingest.adoption import Adoption
    from pgorthanc_cli.ingest.journal import Journal
    from pgorthanc_cli.ingest.settings import Settings
    from pgorthanc_cli.ingest.walk import Source
    from pgorthanc_cli.ingest.worker import Parsed

DICOM = 1  # file type (SCHEMA.md 5)
ZLIB = 2  # compression type
COMPRESSED_DIFFERENTLY = (
    "it is compressed differently here than on the machine of the worker: "
    "install the same releases of Python and isal on both"
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Errors of one file that blocks the place of another, and not of the folder.
_OBSTACLES = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)


class Deduplicator:
    """Finds the files of a batch that need not be stored again; for one worker."""

    def __init__(self, target: db.Target, settings: Settings, journal: Journal | None) -> None:
        """The connection is opened when needed; it only reads."""
        self.target = target
        self.settings = settings
        self.journal = journal
        self._conn: Connection | None = None
        self._capabilities: index.Capabilities | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def known(self, name: str, parsed: Sequence[Parsed]) -> dict[Parsed, Known | Restored]:
        """Return the result of the files whose instance is stored, and stays as it is.

        The other files are to be stored. `name` is that of the batch's journal.

        Raises:
            PgOrthancError: The storage area cannot be written to.
        """
        if not parsed or self.settings.overwrite is index.Overwrite.ALWAYS:
            return {}
        with self._index() as (cur, capabilities):
            stored = index.stored_attachments(cur, capabilities, [_public_id(p) for p in parsed])
            results: dict[Parsed, Known | Restored] = {}
            for each in parsed:
                attachments = stored.get(_public_id(each))
                if attachments is not None:
                    comparison = self._compare(each, attachments)
                    if comparison is not None:
                        results[each] = _known(each, comparison)
            # What the index has of an adopted file may lie in any storage.
            if self.settings.store_dicom and not self.settings.adopt:
                results.update(self._restore(cur, name, results, stored))
        return results

    def unchanged(self, files: Mapping[Source, Known]) -> dict[Source, Known]:
        """Return those of the files whose instance is stored with their MD5, nothing of it missing."""
        if not files:
            return {}
        with self._index() as (cur, capabilities):
            public_ids = [known.summary.public_id for known in files.values()]
            stored = index.stored_attachments(cur, capabilities, public_ids)
            same = {
                source: stored[known.summary.public_id]
                for source, known in files.items()
                if any(
                    a.file_type == DICOM and a.md5 == known.md5
                    for a in stored.get(known.summary.public_id, ())
                )
            }
            lost: set[str] = set()
            if self.settings.store_dicom:
                lost = missing(cur, self.settings.storage_dir, [a for group in same.values() for a in group])
        return {
            source: files[source]
            for source, attachments in same.items()
            if not any(a.uuid in lost for a in attachments)
        }

    def conflicts(self, adoption: Adoption, parsed: Sequence[Parsed]) -> dict[Parsed, FileProblem]:
        """Return the files that must not be adopted, as the index has their path already."""
        if not parsed:
            return {}
        files = [(p.source, _public_id(p)) for p in parsed]
        with self._index() as (cur, capabilities):
            reasons = adoption.conflicts(cur, capabilities, files)
        return {p: FileProblem(p.source.name, reasons[p.source]) for p in parsed if p.source in reasons}

    @contextmanager
    def _index(self) -> Iterator[tuple[Cursor, index.Capabilities]]:
        """Yield a cursor on the connection, which is opened when needed."""
        if self._conn is None:
            self._conn = db.connect(self.target, autocommit=True, readonly=True)
        with db.translate_errors(self._conn), self._conn.cursor() as cur:
            if self._capabilities is None:
                self._capabilities = index.Capabilities.read(self._conn)
            yield cur, self._capabilities

    def _compare(self, parsed: Parsed, attachments: Sequence[index.StoredAttachment]) -> Comparison | None:
        """Compare a file with its stored instance; return None if it is to be stored."""
        earlier = parsed.source.replaces
        # The stored content is an earlier version of this very file: replace it.
        if earlier and any(a.uuid == earlier and a.md5 != parsed.md5 for a in attachments):
            return None
        comparison = compare(attachments, len(parsed.data), parsed.md5)
        may_differ = comparison.difference or not comparison.compared
        if may_differ and self.settings.overwrite is index.Overwrite.IF_CHANGED:
            return None
        return comparison

    # --- missing content ----------------------------------------------------------------

    def _restore(
        self,
        cur: Cursor,
        name: str,
        known: Mapping[Parsed, Known | Restored],
        stored: Mapping[str, Sequence[index.StoredAttachment]],
    ) -> dict[Parsed, Known | Restored]:
        """Return the known files whose stored content was missing, after restoring it."""
        attachments = [a for parsed in known for a in stored[_public_id(parsed)]]
        lost = missing(cur, self.settings.storage_dir, attachments)
        if not lost:
            return {}
        results: dict[Parsed, Known | Restored] = {}
        restored: set[str] = set()  # UUIDs
        for parsed, result in known.items():
            absent = [a for a in stored[_public_id(parsed)] if a.uuid in lost]
            if not absent:
                continue
            if not all(_reproduces(a, memoryview(parsed.data)) for a in absent):
                results[parsed] = _known(parsed, _irreproducible(result))
                continue
            # What an earlier file of this batch restores needs no second file.
            absent = [a for a in absent if a.uuid not in restored]
            if absent:
                restored.update(a.uuid for a in absent)
                results[parsed] = self._restored(parsed, absent)
        if self.journal and restored:
            self._put_back(cur, f"{name}-restored", results, self.journal)
        return results

    def _restored(self, parsed: Parsed, absent: Sequence[index.StoredAttachment]) -> Restored:
        size = len(parsed.data)
        # The parent stores large objects; it needs their content.
        transfer = not self.settings.dry_run and not self.journal
        transfer = transfer and size <= self.settings.transfer_bytes
        content = bytes(parsed.data) if transfer else None
        summary = summarize(parsed.instance.levels)
        return Restored(parsed.source, size, summary, parsed.md5, tuple(absent), content)

    def _put_back(
        self,
        cur: Cursor,
        name: str,
        results: dict[Parsed, Known | Restored],
        journal: Journal,
    ) -> None:
        """Write the missing files; correct the results of those that cannot be written.

        Each file is synced and renamed by itself, for its row is there already.
        """
        restored = {p: r for p, r in results.items() if isinstance(r, Restored)}
        attachments = [a for r in restored.values() for a in r.missing]
        journal.record(name, [a.uuid for a in attachments])
        for parsed, result in restored.items():
            try:
                with journal.area.each_alone():
                    for attachment in result.missing:
                        _put(journal.area, attachment, memoryview(parsed.data))
            except OSError as error:
                if error.errno not in _OBSTACLES:
                    raise storage.write_error(journal.area.root, error) from error
                difference = f"its stored file is damaged, and cannot be replaced: {error.strerror}"
                results[parsed] = _known(parsed, Comparison(difference, compared=True))
        # Deleting an instance removes its rows first: a file written meanwhile must not
        # stay.
        named = index.still_referenced(cur, attachments)
        journal.discard(a.uuid for a in attachments if a.uuid not in named)
        journal.forget(name)


def _put(area: storage.FilesystemArea, attachment: index.StoredAttachment, data: memoryview) -> None:
    try:
        area.put(attachment.uuid, attachment.file_type, encoded(attachment, data))
    except FileExistsError:
        # A remnant of a run that was killed while it restored the same file.
        area.delete(attachment.uuid)
        area.put(attachment.uuid, attachment.file_type, encoded(attachment, data))


def _known(parsed: Parsed, comparison: Comparison) -> Known:
    summary = summarize(parsed.instance.levels)
    return Known(parsed.source, len(parsed.data), summary, parsed.md5, comparison)


def _irreproducible(known: Known | Restored) -> Comparison:
    if isinstance(known, Known) and not known.comparison.compared:
        reason = "the index has no MD5 that proves that this file is the same"
    else:
        reason = "it was stored in a form that cannot be reproduced to the byte"
    difference = f"its stored file is missing, and {reason}: import it with --overwrite always"
    return Comparison(difference, compared=True)


def _public_id(parsed: Parsed) -> str:
    return parsed.instance.levels[index.INSTANCE].public_id


# --- also for the parent ----------------------------------------------------------------


def compare(attachments: Sequence[index.StoredAttachment], size: int, md5: str) -> Comparison:
    """Compare a file with the stored DICOM file, or files, of its instance."""
    files = [a for a in attachments if a.file_type == DICOM]
    if not files:
        return Comparison("the index has the instance, but no DICOM file of it", compared=True)
    if any(a.md5 == md5 for a in files):
        return Comparison("", compared=True)
    if any(not a.md5 and a.size == size for a in files):
        return Comparison("", compared=False)
    first = files[0]
    stored_md5 = f", MD5 {first.md5}" if first.md5 else ""
    return Comparison(
        f"the stored file is another one: {first.size} bytes{stored_md5}; this file: {size} bytes, MD5 {md5}",
        compared=True,
    )


def missing(cur: Cursor, storage_dir: Path | None, attachments: Iterable[index.StoredAttachment]) -> set[str]:
    """Return the UUIDs of the attachments without content.

    The area is a folder or, if None, the large objects of the database.

    What is not in the folder but among the large objects is not missing: it was stored
    while Orthanc was configured differently.
    """
    absent = [a for a in attachments if not a.elsewhere]
    if storage_dir is not None:
        # A row whose UUID is not one says nothing about a path in the area.
        root = os.fspath(storage.FilesystemArea(storage_dir).root)
        absent = [a for a in absent if _UUID.fullmatch(a.uuid) and not _is_whole(root, a)]
    if not absent:
        return set()
    no_object = index.missing_large_objects(cur, [a.uuid for a in absent])
    return {a.uuid for a in absent if a.uuid in no_object}


def _is_whole(root: str, attachment: index.StoredAttachment) -> bool:
    try:
        # A `Path` would take four times as long.
        status = os.stat(f"{root}/{storage.file_path(attachment.uuid)}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == attachment.stored_size


def _reproduces(attachment: index.StoredAttachment, data: memoryview) -> bool:
    """Whether this content gives exactly the bytes that an attachment's row describes."""
    part = data[: attachment.size]
    if len(part) != attachment.size or not attachment.md5:
        return False
    if hashlib.md5(part, usedforsecurity=False).hexdigest() != attachment.md5:
        return False
    # A longer file with the same beginning is another file.
    if attachment.file_type == DICOM and len(data) != attachment.size:
        return False
    if attachment.compression_type != ZLIB:
        return attachment.stored_size == attachment.size and attachment.stored_md5 == attachment.md5
    return _compressor(attachment, part) is not None


def _compressor(attachment: index.StoredAttachment, part: memoryview) -> storage.NewCompressor | None:
    """Return the compressor that writes exactly the bytes that an attachment's row describes.

    The output depends on the compressor, its version and its level.
    """
    expected = attachment.stored_size, attachment.stored_md5
    for compressor in storage.compressors():
        digest, size = hashlib.md5(usedforsecurity=False), 0
        for piece in storage.encode(part, compress=True, compressor=compressor):
            digest.update(piece)
            size += len(piece)
        if (size, digest.hexdigest()) == expected:
            return compressor
    return None


def encoded(attachment: index.StoredAttachment, data: memoryview) -> Iterator[bytes | memoryview]:
    """Return the bytes of an attachment as they are stored, from the whole DICOM file.

    Raises:
        UnreadableError: No compressor of this machine writes these bytes.
    """
    part = data[: attachment.size]
    if attachment.compression_type != ZLIB:
        return storage.encode(part, compress=False)
    compressor = _compressor(attachment, part)
    if compressor is None:  # a worker on another machine had one
        raise UnreadableError(COMPRESSED_DIFFERENTLY)
    return storage.encode(part, compress=True, compressor=compressor)
