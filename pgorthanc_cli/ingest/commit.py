"""The transactions of an import: a prepared batch becomes rows and attachments, together or not at all."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import errors as pg

from pgorthanc_cli import db, index, storage
from pgorthanc_cli.index import Outcome
from pgorthanc_cli.ingest import content, facts, journal, recover, runs, walk
from pgorthanc_cli.ingest.report import Batch
from pgorthanc_cli.ingest.worker import ZLIB, Known, Prepared, Refusal, Result
from pgorthanc_cli.workers import Checkpoint, Stopped

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# What the server says about a record that it does not take; an identifier too long for its index is the third.
_REFUSED = (pg.DataError, pg.IntegrityError, pg.ProgramLimitExceeded)
_COLLISIONS = (pg.SerializationFailure, pg.DeadlockDetected, index.Vanished)
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

    def _store(self, prepared: Sequence[Prepared]) -> list[Outcome | Refusal]:
        """One transaction; when the database refuses a record, or others are always faster, halves, down to one."""
        if not prepared:
            return []
        try:
            return list(self._replayed(prepared))
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

    def _replayed(self, prepared: Sequence[Prepared]) -> list[Outcome]:
        """The transaction, again and again while it collides with another writer, as Orthanc does it."""
        for attempt in range(1, _REPLAYS):
            try:
                return self._transaction(prepared)
            except (*_COLLISIONS, pg.UniqueViolation, pg.ForeignKeyViolation):
                self.conn.rollback()
                time.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311 - only to get out of step
        return self._transaction(prepared)

    def _transaction(self, prepared: Sequence[Prepared]) -> list[Outcome]:
        written = self.writer.write([p.record for p in prepared])
        if self.objects:
            self.objects.put_all(
                (a.uuid, a.file_type, _stored(p, a, self._checkpoint))
                for p, outcome in zip(prepared, written.outcomes, strict=True)
                if outcome is not Outcome.KNOWN
                for a in p.record.attachments
            )
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
        return written.outcomes

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
        self.repeated = Outcome.KNOWN if overwrite is index.Overwrite.NEVER else Outcome.OVERWRITTEN
        self.imagined: set[str] = set()  # instances that are there, or would be by now

    def write(self, results: Sequence[Result]) -> Batch:
        """Count what would be written."""
        ids = [r.record.levels[index.INSTANCE].public_id for r in results if isinstance(r, Prepared)]
        with self.conn, self.conn.cursor() as cur:
            self.imagined |= index.known(cur, ids)
        ends: list[Outcome | Refusal] = []
        for public_id in ids:
            ends.append(self.repeated if public_id in self.imagined else Outcome.IMPORTED)
            self.imagined.add(public_id)
        return counted(results, ends)

    def forget(self, name: str, unwritten: Sequence[Result]) -> None:
        """Nothing was stored, nothing is to be undone."""


def counted(results: Sequence[Result], ends: Sequence[Outcome | Refusal]) -> Batch:
    """The sums of a batch: `ends` are those of its prepared records."""
    return Batch(
        imported=ends.count(Outcome.IMPORTED),
        known=ends.count(Outcome.KNOWN) + sum(isinstance(r, Known) for r in results),
        overwritten=ends.count(Outcome.OVERWRITTEN),
        refusals=tuple(r for r in (*results, *ends) if isinstance(r, Refusal)),
        bytes=sum(r.size for r in results if isinstance(r, (Prepared, Known))),
        warnings=tuple(
            f"{walk.shown(r.source)}: {w}" for r in results if isinstance(r, Prepared) for w in r.warnings
        ),
        items=tuple(_items(results, ends)),
    )


def _items(results: Sequence[Result], ends: Sequence[Outcome | Refusal]) -> Iterator[facts.Item]:
    remaining = iter(ends)
    for r in results:
        if isinstance(r, Known):
            yield facts.Item(r.source, Outcome.KNOWN, r.size, r.facts)
        elif isinstance(r, Prepared) and isinstance(end := next(remaining), Outcome):
            yield facts.Item(r.source, end, r.size, facts.of(r.record.levels))


def _stored(
    prepared: Prepared, attachment: index.Attachment, checkpoint: content.Checkpoint
) -> Iterator[bytes | memoryview]:
    """The bytes to store as a large object; what was too large to hand over is read a second time."""
    if prepared.contents is not None:
        position = prepared.record.attachments.index(attachment)
        yield prepared.contents[position]
        return
    data = content.read(prepared.source, checkpoint=checkpoint)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != prepared.md5:
        raise content.Unreadable("it changed while it was read")
    part = memoryview(data)[: attachment.uncompressed_size]
    for chunk in storage.encode(part, compress=attachment.compression_type == ZLIB):
        checkpoint()
        yield chunk


def _reason(error: Exception) -> str:
    """Why the database refuses a record, without the values in it."""
    if isinstance(error, psycopg2.Error):
        return f"the database refuses it: {db.primary_message(error)}"
    return str(error)
