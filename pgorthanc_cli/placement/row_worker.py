"""What worker processes do with attachments whose rows a move changes: copy them, or remove them from the source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from os import path
from typing import IO, Any, NamedTuple

from pgorthanc_cli import db, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.index.customdata import NotLocated
from pgorthanc_cli.placement.ends import BothEnds, Chunks, Content, Folder, Unreadable, difference, digest
from pgorthanc_cli.placement.model import Attachment, MoveSettings, Row
from pgorthanc_cli.placement.rules import Rules, is_adopted
from pgorthanc_cli.storage import CHUNK_BYTES, is_uuid
from pgorthanc_cli.workers import checkpoint

_IN_MEMORY_BYTES = 16 << 20  # of an attachment that is compressed, or decompressed
_ZLIB = 2

Entry = tuple[int, int, str, bytes | None, bytes | None, int, int, str]
"""What was proved in the target: resource, file type, UUID, old and new customdata, compression, size, MD5."""


class RowBatch(NamedTuple):
    """What became of some attachments; the first four as in `worker.Batch`.

    Attributes:
        entries: What was proved in the target, for the journal.
        kept: Adopted files that stay.
    """

    done: int
    bytes: int
    already_there: int
    failed: list[tuple[Row, str]]
    entries: list[Entry]
    kept: int


class RowMover(BothEnds):
    """Copies and removes attachments whose rows the move changes."""

    def __init__(self, target: db.Target, settings: MoveSettings) -> None:
        """Open nothing yet."""
        super().__init__(target, settings)
        self._rules = Rules(settings)

    def copy_rows(self, tuples: Sequence[tuple[Any, ...]]) -> RowBatch:
        """Copy what is not in the target; prove both sides."""
        failed: list[tuple[Row, str]] = []
        chosen: dict[Row, Attachment] = {}
        kept = 0
        for attachment in (Attachment(*each) for each in tuples):
            try:
                source = self._rules.source(attachment)
                if not is_uuid(attachment.uuid):
                    raise NotLocated("folder", "its name is not a UUID")
            except NotLocated as error:
                failed.append((Row(*attachment[:5]), str(error)))
                continue
            if not self._rules.stays(attachment, source):
                chosen[source] = attachment
            elif is_adopted(source):
                kept += 1
        missing, entries = self._missing(chosen, failed)
        contents = []
        with ExitStack() as stack:
            for source, chunks in self._from.open(missing):
                try:
                    contents.append(self._prepared(stack, chosen[source], source, chunks))
                except (Unreadable, PgOrthancError) as error:
                    failed.append((Row(*source[:5]), str(error)))
                else:
                    entries.append(self._entry(chosen[source], contents[-1].row))
            if contents:
                self._to.put(contents)
        size = sum(each.row.size for each in contents)
        already_there = len(tuples) - len(contents) - len(failed) - kept
        return RowBatch(len(contents), size, already_there, failed, entries, kept)

    def _missing(
        self, chosen: dict[Row, Attachment], failed: list[tuple[Row, str]]
    ) -> tuple[list[Row], list[Entry]]:
        """Return which attachments have to be copied, and what was found right in the target."""
        targets = {
            source: self._rules.target(each, each.proved_size or 0, "") for source, each in chosen.items()
        }
        sizes = self._to.sizes(list(targets.values()))
        missing, entries = [], []
        for source, attachment in chosen.items():
            size = sizes.get(source.key)
            if size is None:
                missing.append(source)
            elif attachment.proved_size is None or size != attachment.proved_size:
                if right := self._proved(attachment, source, targets[source]):
                    entries.append(self._entry(attachment, right))
                # Its path may be that of another instance: a file of theirs is not ours to replace.
                elif targets[source].name in ("", storage.file_path(source.uuid)) or attachment.replaces:
                    missing.append(source)
                else:
                    failed.append((Row(*source[:5]), "another file has its path in the target"))
        return missing, entries

    def _proved(self, attachment: Attachment, source: Row, target: Row) -> Row | None:
        """Return the attachment in the target with its size and MD5 if its content is right there."""
        expected = attachment.content_size, attachment.content_md5
        try:
            if not attachment.content_md5:
                chunks = _only(self._from.open([source]))
                expected = digest(_content(chunks(), attachment.compression))
            compression = self._rules.compression(attachment)
            chunks = _only(self._to.open([target]))
            if digest(_content(chunks(), compression)) != expected:
                return None
            # Another release of zlib makes other bytes of the same content: only those of the row fit it.
            size, md5 = digest(_only(self._to.open([target]))())
        except (Unreadable, PgOrthancError):
            return None
        if compression == attachment.compression and difference(source, size, md5):
            return None
        return target._replace(size=size, md5=md5)

    def _prepared(self, stack: ExitStack, attachment: Attachment, source: Row, chunks: Chunks) -> Content:
        """Return what to write, once the source is proved.

        Raises:
            Unreadable: It cannot be read, or it is not what its row says.
            PgOrthancError: It cannot be decompressed.
        """
        size, md5 = digest(chunks())
        if reason := difference(source, size, md5):
            raise Unreadable(reason)
        compression = self._rules.compression(attachment)
        if compression != attachment.compression:
            content = attachment.content_size, attachment.content_md5
            actual = digest(_content(chunks(), attachment.compression))
            if actual[0] != content[0] or (content[1] and actual[1] != content[1]):
                raise Unreadable("its content is not what the index says")
            stored: Iterable[bytes] = _content(chunks(), attachment.compression)
            if compression == _ZLIB:
                stored = storage.compressed(attachment.content_size, stored)
            # Compressed once: it is slow. On disk if it is large, so that no content has to fit into memory.
            file = stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES))  # noqa: SIM115
            for chunk in stored:
                checkpoint()
                file.write(chunk)
            chunks = partial(_read_again, file)
            size, md5 = digest(chunks())
        return Content(self._rules.target(attachment, size, md5), chunks, md5)

    def _entry(self, attachment: Attachment, target: Row) -> Entry:
        old = attachment.customdata or None
        new = self._rules.customdata(attachment)
        compression = self._rules.compression(attachment)
        return (*target[:3], old, new, compression, target.size, target.md5)

    def clean_rows(self, tuples: Sequence[tuple[Any, ...]]) -> RowBatch:
        """Remove from the source what the target has, with the content that was proved there."""
        failed: list[tuple[Row, str]] = []
        removed: list[Row] = []
        kept = 0
        chosen = {}
        for attachment in (Attachment(*each) for each in tuples):
            source = self._rules.source(attachment)
            kept += is_adopted(source)
            if not is_adopted(source):
                chosen[source] = attachment
        sizes = self._from.sizes(list(chosen))
        for source, attachment in chosen.items():
            if source.key not in sizes:
                continue
            target = self._rules.target(attachment, attachment.proved_size or 0, attachment.proved_md5 or "")
            if reason := self._obstacle(source, target):
                failed.append((Row(*source[:5]), reason))
            else:
                removed.append(source)
        if removed:
            self._from.remove(removed)
        size = sum(sizes[row.key] for row in removed)
        there = len(tuples) - len(removed) - len(failed) - kept
        return RowBatch(len(removed), size, there, failed, [], kept)

    def _obstacle(self, source: Row, target: Row) -> str:
        """Return why an attachment must stay in the source; empty if it need not."""
        if isinstance(self._from, Folder) and isinstance(self._to, Folder):
            ends = self._from.status(source), self._to.status(target)
            # A link, or a folder mounted twice: removing one would remove the other.
            if ends[0] and ends[1] and path.samestat(ends[0], ends[1]):
                return "source and target are one file"
        try:
            if digest(_only(self._to.open([target]))()) == (target.size, target.md5):
                return ""
        except Unreadable:
            pass
        return "the target does not have its content"


def _only(opened: Iterator[tuple[Row, Chunks]]) -> Chunks:
    """Return the content of the only attachment."""
    ((_, chunks),) = list(opened)
    return chunks


def _content(chunks: Iterable[bytes], compression: int) -> Iterable[bytes]:
    return storage.decompressed(chunks) if compression == _ZLIB else chunks


def _read_again(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    yield from iter(partial(file.read, CHUNK_BYTES), b"")
