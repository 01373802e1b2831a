"""The transactions of an import: a prepared batch becomes rows and attachments, together or not at all."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from mmap import mmap
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import errors as pg

from pgorthanc_cli import db, index, storage
from pgorthanc_cli.index import Outcome
from pgorthanc_cli.ingest import content, facts, journal, recover, runs, stored, walk
from pgorthanc_cli.ingest.report import Batch, Difference
from pgorthanc_cli.ingest.settle import Known, Restored
from pgorthanc_cli.ingest.worker import ZLIB, Prepared, Refusal, Result
from pgorthanc_cli.workers import Checkpoint, Stopped

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# What the server says about a record that it does not take; an identifier too long for its index is the third.
_REFUSED = (pg.DataError, pg.IntegrityError, pg.ProgramLimitExceeded)
_COLLISIONS = (pg.SerializationFailure, pg.DeadlockDetected, index.ParentDeleted)
End = Outcome | Refusal | Known  # of a prepared record
_REPLAYS = 10  # of a batch that collided with another writer (Orthanc's MaximumConnectionRetries)


class Committer:
    """Writes prepared batches, each in one transaction.

    Attributes:
        touched: (public id, level) of what got instances, least recently last touched first; only kept for
            `stable_changes`.
    """

    def __init__(
        self,
        conn: Connection,
        writer: index.Writer,
        objects: storage.LargeObjectArea | None,
        journals: journal.Journal | None,
        *,
        stable_changes: bool,
        stop: threading.Event,
    ) -> None:
        """Attachments are in `objects`, or have been put by the workers into the area of `journals`."""
        self.conn = conn
        self.writer = writer
        self.objects = objects
        self.journals = journals
        self.stable_changes = stable_changes
        self._checkpoint = Checkpoint(stop)
        self.touched: dict[tuple[str, int], None] = {}
        self._recovery = recover.Recovery(journals, runs.Session(conn)) if journals else None
        self._old = itertools.count(1)
        self._in_doubt = False  # a commit whose outcome nobody knows: the next run settles its journal

    def settle_dead_runs(self) -> list[str]:
        """Remove attachments without a row that an interrupted import has left; returns warnings."""
        return self._recovery.settle() if self._recovery else []

    def write(self, results: Sequence[Result]) -> Batch:
        """Write what a worker prepared, and commit."""
        results = self._put_back(results)
        ends = self._store([r for r in results if isinstance(r, Prepared)])
        return counted(results, ends)

    def forget(self, name: str, unwritten: Sequence[Result]) -> None:
        """The batch of that journal is settled, but for what will not be written: that is undone."""
        if self.journals and not self._in_doubt:
            self._discard(r for r in unwritten if isinstance(r, Prepared))
            self.journals.forget(name)

    def log_stable(self) -> None:
        """Write the StablePatient, StableStudy and StableSeries changes of all that was touched."""
        with self.conn, self.conn.cursor() as cur:
            index.log_stable(cur, self.touched)

    def _put_back(self, results: Sequence[Result]) -> list[Result]:
        """Store the large objects that are missing, in a transaction of their own; files are there already."""
        lost = [r for r in results if isinstance(r, Restored)]
        if not lost or self.objects is None:
            return list(results)
        try:
            ends = iter(self._put_back_all(lost, self.objects))
        except content.Unreadable as error:
            if len(lost) == 1:
                refusal = Refusal(walk.shown(lost[0].source), str(error))
                return [refusal if isinstance(r, Restored) else r for r in results]
            return [end for r in results for end in self._put_back([r])]
        return [next(ends) if isinstance(r, Restored) else r for r in results]

    def _put_back_all(self, lost: Sequence[Restored], objects: storage.LargeObjectArea) -> list[Result]:
        """In one transaction, again and again while it collides with another writer."""
        attachments = [a for r in lost for a in r.lost]
        for attempt in itertools.count(1):
            try:
                with self.conn, self.conn.cursor() as cur:
                    named = index.still_referenced(cur, attachments, lock=True)
                    absent = index.missing_large_objects(cur, [a.uuid for a in attachments])
                    return [self._put_back_one(r, named, absent, objects) for r in lost]
            except _COLLISIONS:
                if attempt == _REPLAYS:
                    raise
                time.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311 - only to get out of step
        raise AssertionError("unreachable")

    def _put_back_one(
        self, one: Restored, named: set[str], absent: set[str], objects: storage.LargeObjectArea
    ) -> Result:
        if not named.issuperset(a.uuid for a in one.lost):
            return Refusal(walk.shown(one.source), "its instance has just been deleted: import it again")
        missing = [a for a in one.lost if a.uuid in absent]
        if not missing:  # another import, or another file, was faster
            return Known(one.source, one.size, one.facts, one.md5, stored.Verdict("", compared=True))
        data = memoryview(
            one.content if one.content is not None else _again(one.source, one.md5, self._checkpoint)
        )
        for attachment in missing:
            objects.restore(attachment.uuid, attachment.file_type, stored.encoded(attachment, data))
            absent.remove(attachment.uuid)
        return one

    def _store(self, prepared: Sequence[Prepared]) -> list[End]:
        """One transaction; when the database refuses a record, or others are always faster, halves, down to one."""
        if not prepared:
            return []
        try:
            return self._replayed(prepared)
        except Stopped:
            self.conn.rollback()
            raise
        except (index.Conflict, content.Unreadable, *_REFUSED, *_COLLISIONS) as error:
            self.conn.rollback()
            if len(prepared) == 1:
                if isinstance(error, _COLLISIONS):
                    raise
                self._discard(prepared)
                return [Refusal(walk.shown(prepared[0].source), _reason(error))]
            middle = len(prepared) // 2
            return self._store(prepared[:middle]) + self._store(prepared[middle:])

    def _replayed(self, prepared: Sequence[Prepared]) -> list[End]:
        """The transaction, again and again while it collides with another writer, as Orthanc does it."""
        for attempt in range(1, _REPLAYS):
            try:
                return self._transaction(prepared)
            except (*_COLLISIONS, pg.UniqueViolation, pg.ForeignKeyViolation):
                self.conn.rollback()
                time.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311 - only to get out of step
        return self._transaction(prepared)

    def _transaction(self, prepared: Sequence[Prepared]) -> list[End]:
        written = self.writer.write([p.record for p in prepared])
        if self.objects:
            self.objects.put_many(
                (a.uuid, a.file_type, _stored(p, a, self._checkpoint))
                for p, outcome in zip(prepared, written.outcomes, strict=True)
                if outcome is not Outcome.KNOWN
                for a in p.record.attachments
            )
        ends = self._compared(prepared, written.outcomes)
        old = self._before_commit(written.removed)
        self._commit()
        if self.stable_changes:
            for resource in written.touched:
                self.touched.pop(resource, None)
                self.touched[resource] = None
        self._discard(p for p, o in zip(prepared, written.outcomes, strict=True) if o is Outcome.KNOWN)
        if self.journals and old:
            self.journals.discard(uuid for uuid, _ in written.removed)
            self.journals.forget(old)
        return ends

    def _compared(self, prepared: Sequence[Prepared], outcomes: Sequence[Outcome]) -> list[End]:
        """The outcomes; a file that turned out to be known is compared with what is stored."""
        known = [_public_id(p) for p, o in zip(prepared, outcomes, strict=True) if o is Outcome.KNOWN]
        if not known:
            return list(outcomes)
        with self.conn.cursor() as cur:
            there = index.stored_attachments(cur, self.writer.capabilities, known)
        return [
            Known(
                p.source,
                p.size,
                facts.of(p.record.levels),
                p.md5,
                stored.compare(there.get(_public_id(p), ()), p.size, p.md5),
            )
            if o is Outcome.KNOWN
            else o
            for p, o in zip(prepared, outcomes, strict=True)
        ]

    def _before_commit(self, removed: Sequence[tuple[str, int]]) -> str | None:
        """Large objects go in the transaction; files go after it, hence their journal before it."""
        if self.objects:
            for uuid, file_type in removed:
                self.objects.delete(uuid, file_type)
        if not removed or not self.journals:
            return None
        name = f"old-{next(self._old):08}"
        self.journals.record(name, [uuid for uuid, _ in removed])
        return name

    def _commit(self) -> None:
        try:
            self.conn.commit()
        except psycopg2.Error as error:
            # After a collision it is rolled back; of everything else that is said here nobody knows.
            self._in_doubt = not isinstance(error, (*_COLLISIONS, *_REFUSED))
            raise

    def _discard(self, prepared: Iterable[Prepared]) -> None:
        if self.journals:
            self.journals.discard(a.uuid for p in prepared for a in p.record.attachments)


class Rehearsal:
    """A dry run: says what would become of the files, and writes nothing."""

    def __init__(self, conn: Connection, overwrite: index.Overwrite) -> None:
        """Reads with `conn`."""
        self.conn = conn
        self.overwrite = overwrite
        self.imagined: dict[str, tuple[int, str]] = {}  # instances that would be stored: size and MD5

    def write(self, results: Sequence[Result]) -> Batch:
        """Count what would be written."""
        prepared = [r for r in results if isinstance(r, Prepared)]
        with self.conn, self.conn.cursor() as cur:
            there = index.stored_instances(cur, [_public_id(p) for p in prepared])
        return counted(results, [self._end(p, stored_now=_public_id(p) in there) for p in prepared])

    def _end(self, prepared: Prepared, *, stored_now: bool) -> End:
        """A worker has settled what is stored and stays: what it prepared, replaces that, or repeats a file of now."""
        public_id, content_now = _public_id(prepared), (prepared.size, prepared.md5)
        before = self.imagined.get(public_id)
        if before is None:
            self.imagined[public_id] = content_now
            return Outcome.OVERWRITTEN if stored_now else Outcome.IMPORTED
        changed = before != content_now
        if self.overwrite is index.Overwrite.ALWAYS or (
            self.overwrite is index.Overwrite.IF_CHANGED and changed
        ):
            self.imagined[public_id] = content_now
            return Outcome.OVERWRITTEN
        verdict = stored.Verdict(
            "another file of this import has other content" if changed else "", compared=True
        )
        return Known(prepared.source, prepared.size, facts.of(prepared.record.levels), prepared.md5, verdict)

    def forget(self, name: str, unwritten: Sequence[Result]) -> None:
        """Nothing was stored, nothing is to be undone."""


def counted(results: Sequence[Result], ends: Sequence[End]) -> Batch:
    """The sums of a batch: `ends` are those of its prepared records."""
    known = [r for r in (*results, *ends) if isinstance(r, Known)]
    return Batch(
        imported=ends.count(Outcome.IMPORTED),
        known=len(known),
        overwritten=ends.count(Outcome.OVERWRITTEN),
        restored=sum(isinstance(r, Restored) for r in results),
        uncompared=sum(not r.verdict.compared for r in known),
        differences=tuple(
            Difference(walk.shown(r.source), r.verdict.difference) for r in known if r.verdict.difference
        ),
        refusals=tuple(r for r in (*results, *ends) if isinstance(r, Refusal)),
        bytes=sum(r.size for r in results if isinstance(r, (Prepared, Known, Restored))),
        warnings=tuple(
            f"{walk.shown(r.source)}: {w}" for r in results if isinstance(r, Prepared) for w in r.warnings
        ),
        items=tuple(_items(results, ends)),
    )


def _items(results: Sequence[Result], ends: Sequence[End]) -> Iterator[facts.Item]:
    remaining = iter(ends)
    for r in results:
        end = next(remaining) if isinstance(r, Prepared) else r
        if isinstance(end, Known):
            differs = bool(end.verdict.difference)
            yield facts.Item(end.source, Outcome.KNOWN, end.size, end.facts, end.md5, differs=differs)
        elif isinstance(end, Restored):
            yield facts.Item(end.source, Outcome.RESTORED, end.size, end.facts, end.md5)
        elif isinstance(r, Prepared) and isinstance(end, Outcome):
            name = r.record.attachments[0].uuid if r.record.attachments else ""
            yield facts.Item(r.source, end, r.size, facts.of(r.record.levels), r.md5, name)


def _public_id(prepared: Prepared) -> str:
    return prepared.record.levels[index.INSTANCE].public_id


def _stored(
    prepared: Prepared, attachment: index.Attachment, checkpoint: content.Checkpoint
) -> Iterator[bytes | memoryview]:
    """The bytes to store as a large object; what was too large to hand over is read a second time."""
    if prepared.contents is not None:
        position = prepared.record.attachments.index(attachment)
        yield prepared.contents[position]
        return
    data = _again(prepared.source, prepared.md5, checkpoint)
    part = memoryview(data)[: attachment.uncompressed_size]
    for chunk in storage.encode(part, compress=attachment.compression_type == ZLIB):
        checkpoint()
        yield chunk


def _again(source: walk.Source, md5: str, checkpoint: content.Checkpoint) -> bytes | mmap:
    """The content of a source that was read before."""
    data = content.read(source, checkpoint=checkpoint)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise content.Unreadable("it changed while it was read")
    return data


def _reason(error: Exception) -> str:
    """Why the database refuses a record, without the values in it."""
    if isinstance(error, psycopg2.Error):
        return f"the database refuses it: {db.primary_message(error)}"
    return str(error)
