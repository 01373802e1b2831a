"""Files whose instance is stored already: compared with the stored content, which is put back where it is missing."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import db, index, storage
from pgorthanc_cli.ingest import facts, stored
from pgorthanc_cli.ingest.stored import Verdict

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.ingest.journal import Journal
    from pgorthanc_cli.ingest.walk import Source
    from pgorthanc_cli.ingest.worker import Parsed, Work

HANDED_OVER_BYTES = 4 << 20  # larger content is not sent to the parent, which has several batches at hand
_OBSTACLES = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)  # of one file, not of the folder


class Known(NamedTuple):
    """The instance is stored already, and stays as it is.

    Attributes:
        source: Where it is from.
        size: Bytes of the instance, uncompressed.
        facts: About it.
        md5: Of the bytes.
        verdict: Whether the stored one has the same content.
    """

    source: Source
    size: int
    facts: facts.Facts
    md5: str
    verdict: Verdict


class Restored(NamedTuple):
    """The instance is stored already; its missing content has been put back, or the parent is to do it.

    Attributes:
        source: Where it is from.
        size: Bytes of the instance, uncompressed.
        facts: About it.
        md5: Of the bytes.
        lost: The attachments that are put back.
        content: For large objects: the whole DICOM file; None when it is too large to hand over, and is to be read
            again.
    """

    source: Source
    size: int
    facts: facts.Facts
    md5: str
    lost: tuple[index.StoredAttachment, ...]
    content: bytes | None


class Settler:
    """Finds out which files of a batch need not be stored; for one worker, with a connection that only reads."""

    def __init__(self, work: Work) -> None:
        """The connection is opened when it is needed."""
        self.work = work
        self._conn: Connection | None = None
        self._capabilities: index.Capabilities | None = None

    def settle(self, name: str, parsed: Sequence[Parsed]) -> dict[Parsed, Known | Restored]:
        """What has become of those whose instance is stored, and stays; all others are to be stored.

        Raises:
            PgOrthancError: The storage area cannot be written to.
        """
        if not parsed or self.work.overwrite is index.Overwrite.ALWAYS:
            return {}
        if self._conn is None:
            self._conn = db.connect(self.work.target, autocommit=True, readonly=True)
        with db.translate_errors(self._conn), self._conn.cursor() as cur:
            if self._capabilities is None:
                self._capabilities = index.Capabilities.read(self._conn)
            there = index.stored_attachments(cur, self._capabilities, [_public_id(p) for p in parsed])
            settled: dict[Parsed, Known | Restored] = {
                p: _known(p, verdict)
                for p in parsed
                if (verdict := self._verdict(p, there.get(_public_id(p)))) is not None
            }
            if self.work.store_dicom:
                settled.update(self._restore(cur, name, settled, there))
        return settled

    def _verdict(
        self, parsed: Parsed, attachments: Sequence[index.StoredAttachment] | None
    ) -> Verdict | None:
        """How it compares with what is stored; None: it is to be stored."""
        if attachments is None:
            return None
        earlier = parsed.source.replaces
        if earlier and any(a.uuid == earlier and a.md5 != parsed.md5 for a in attachments):
            return None
        verdict = stored.compare(attachments, len(parsed.data), parsed.md5)
        if self.work.overwrite is index.Overwrite.IF_CHANGED and (verdict.difference or not verdict.compared):
            return None
        return verdict

    # --- missing content ---------------------------------------------------------------------------------

    def _restore(
        self,
        cur: Cursor,
        name: str,
        known: Mapping[Parsed, Known | Restored],
        there: Mapping[str, Sequence[index.StoredAttachment]],
    ) -> dict[Parsed, Known | Restored]:
        """Those of the known files whose stored content is missing: put back, or told to be different."""
        lost = stored.lost(cur, self.work.storage_dir, [a for p in known for a in there[_public_id(p)]])
        if not lost:
            return {}
        result: dict[Parsed, Known | Restored] = {}
        again: dict[str, index.StoredAttachment] = {}  # by uuid
        for parsed, one in known.items():
            missing = [a for a in there[_public_id(parsed)] if a.uuid in lost]
            if not missing:
                continue
            if not stored.reproduces(missing, memoryview(parsed.data)):
                result[parsed] = _known(parsed, _irreproducible(one))
            elif new := [a for a in missing if a.uuid not in again]:  # else by another file of this batch
                again.update((a.uuid, a) for a in new)
                result[parsed] = self._restored(parsed, new)
        if self.work.journals and again:
            self._put_back(cur, f"{name}-restored", result, self.work.journals)
        return result

    def _restored(self, parsed: Parsed, lost: Sequence[index.StoredAttachment]) -> Restored:
        handed = self.work.write and not self.work.journals and len(parsed.data) <= HANDED_OVER_BYTES
        return Restored(
            parsed.source,
            len(parsed.data),
            facts.of(parsed.instance.levels),
            parsed.md5,
            tuple(lost),
            bytes(parsed.data) if handed else None,
        )

    def _put_back(
        self, cur: Cursor, name: str, result: dict[Parsed, Known | Restored], journals: Journal
    ) -> None:
        """Write the missing files; each is synced and renamed by itself, for its row is there already."""
        restored = {p: r for p, r in result.items() if isinstance(r, Restored)}
        every = [a for r in restored.values() for a in r.lost]
        journals.record(name, [a.uuid for a in every])
        for parsed, one in restored.items():
            try:
                for attachment in one.lost:
                    _put(journals.area, attachment, memoryview(parsed.data))
            except OSError as error:
                if error.errno not in _OBSTACLES:
                    raise storage.write_error(journals.area.root, error) from error
                what = f"its stored file is damaged, and cannot be replaced: {error.strerror}"
                result[parsed] = _known(parsed, Verdict(what, compared=True))
        # Who deletes an instance removes its rows first: a file that was written meanwhile must not stay.
        named = index.still_referenced(cur, every)
        journals.discard(a.uuid for a in every if a.uuid not in named)
        journals.forget(name)


def _put(area: storage.FilesystemArea, attachment: index.StoredAttachment, data: memoryview) -> None:
    try:
        area.put(attachment.uuid, attachment.file_type, stored.encoded(attachment, data))
    except FileExistsError:  # left by a run that was killed while it did the same
        area.delete(attachment.uuid)
        area.put(attachment.uuid, attachment.file_type, stored.encoded(attachment, data))


def _known(parsed: Parsed, verdict: Verdict) -> Known:
    return Known(parsed.source, len(parsed.data), facts.of(parsed.instance.levels), parsed.md5, verdict)


def _irreproducible(known: Known | Restored) -> Verdict:
    """The content of the instance is missing, and this file may not be put in its place."""
    if isinstance(known, Known) and not known.verdict.compared:
        why = "the index has no MD5 that proves that this file is the same"
    else:
        why = "it was stored in a form that cannot be reproduced to the byte"
    return Verdict(f"its stored file is missing, and {why}: import it with --overwrite always", compared=True)


def _public_id(parsed: Parsed) -> str:
    return parsed.instance.levels[index.INSTANCE].public_id
