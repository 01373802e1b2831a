"""The transactions of an import: rows and attachments of a batch, or neither of them.

Longer than other modules: what of a batch is repeated after a collision, and what must not
be, is decided in one place.
"""

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
from pgorthanc_cli.ingest import content
from pgorthanc_cli.ingest.model import (
    Batch,
    Comparison,
    FileProblem,
    IndexedFile,
    Known,
    NotDicom,
    Prepared,
    Restored,
    Result,
    summarize,
)
from pgorthanc_cli.ingest.recovery import Recovery
from pgorthanc_cli.ingest.remover import Remover
from pgorthanc_cli.ingest.runs import Session
from pgorthanc_cli.ingest.stored import COMPRESSED_DIFFERENTLY, ZLIB, compare, encoded
from pgorthanc_cli.workers import Checkpoint, Stopped

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from pgorthanc_cli.ingest.adoption import Adoption
    from pgorthanc_cli.ingest.journal import Journal
    from pgorthanc_cli.ingest.walk import Source

# The server refuses a record; ProgramLimitExceeded: an identifier is too long for its
# index.
_REFUSED = (pg.DataError, pg.IntegrityError, pg.ProgramLimitExceeded)
_COLLISIONS = (pg.SerializationFailure, pg.DeadlockDetected, index.ParentDeleted)
# As often as Orthanc tries by default (MaximumConnectionRetries) when writers collide.
_ATTEMPTS = 10

PreparedOutcome = Outcome | FileProblem | Known
"""What became of a prepared record."""


class Committer:
    """Writes prepared batches, each in one transaction.

    Attributes:
        touched: (public id, level) of the resources that got instances, least recently
            touched first; only recorded for `stable_changes`.
    """

    def __init__(
        self,
        conn: Connection,
        writer: index.Writer,
        objects: storage.LargeObjectArea | None,
        journal: Journal | None,
        *,
        stable_changes: bool,
        stop: threading.Event,
        adopt: Adoption | None = None,
    ) -> None:
        """Store attachments in `objects`; if None, workers have stored or adopted files."""
        self.conn = conn
        self.writer = writer
        self.objects = objects
        self.journal = journal
        self.stable_changes = stable_changes
        self.adopt = adopt
        self._checkpoint = Checkpoint(stop)
        self.touched: dict[tuple[str, int], None] = {}
        self._recovery = Recovery(journal, Session(conn)) if journal else None
        self._remover = Remover(journal) if journal else None
        self._numbers = itertools.count(1)
        # After a commit of unknown outcome, the journal stays: the next run finds out.
        self._in_doubt = False

    def close(self) -> None:
        """Wait until the files of overwritten instances are removed.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        if self._remover:
            self._remover.close()

    def clean_up_dead_runs(self) -> list[str]:
        """Remove the orphans of interrupted imports; return warnings."""
        return self._recovery.clean_up() if self._recovery else []

    def write(self, results: Sequence[Result]) -> Batch:
        """Write what a worker prepared, and commit."""
        results = self._put_back(results)
        outcomes = self._store([r for r in results if isinstance(r, Prepared)])
        if self.adopt:
            seen = [r.source for r in (*results, *outcomes) if isinstance(r, (Known, NotDicom))]
            self.adopt.note_seen(self.conn, self.writer.capabilities, seen)
        return summarize_batch(results, outcomes)

    def forget(self, name: str, unwritten: Sequence[Result]) -> None:
        """Remove the journal of a batch, and the attachments of its unwritten results."""
        if self.journal and not self._in_doubt:
            self._discard(r for r in unwritten if isinstance(r, Prepared))
            self.journal.forget(name)

    def log_stable(self) -> None:
        """Write the Stable* changes of all resources that were touched."""
        with self.conn, self.conn.cursor() as cur:
            index.log_stable(cur, self.touched)

    # --- missing large objects ----------------------------------------------------------

    def _put_back(self, results: Sequence[Result]) -> list[Result]:
        """Restore missing large objects in one transaction; workers restore files."""
        restored = [r for r in results if isinstance(r, Restored)]
        if not restored or self.objects is None:
            return list(results)
        try:
            outcomes = iter(self._put_back_all(restored, self.objects))
        except content.UnreadableError as error:
            if len(restored) == 1:
                refusal = FileProblem(restored[0].source.name, str(error))
                return [refusal if isinstance(r, Restored) else r for r in results]
            # One by one, so that only the unreadable file is refused.
            return [outcome for r in results for outcome in self._put_back([r])]
        return [next(outcomes) if isinstance(r, Restored) else r for r in results]

    def _put_back_all(self, restored: Sequence[Restored], objects: storage.LargeObjectArea) -> list[Result]:
        """Restore in one transaction, repeated while it collides with another writer."""
        attachments = [a for r in restored for a in r.missing]
        for attempt in itertools.count(1):
            try:
                with self.conn, self.conn.cursor() as cur:
                    # The lock keeps others from deleting an instance before its object is
                    # back: nothing would ever remove that object.
                    named = index.still_referenced(cur, attachments, lock=True)
                    absent = index.missing_large_objects(cur, [a.uuid for a in attachments])
                    return [self._put_back_one(r, named, absent, objects) for r in restored]
            except _COLLISIONS:
                if attempt == _ATTEMPTS:
                    raise
                _back_off(attempt)
        raise AssertionError("unreachable")

    def _put_back_one(
        self,
        restored: Restored,
        named: set[str],
        absent: set[str],
        objects: storage.LargeObjectArea,
    ) -> Result:
        source = restored.source
        if not named.issuperset(a.uuid for a in restored.missing):
            reason = "its instance has just been deleted: import it again"
            return FileProblem(source.name, reason)
        missing = [a for a in restored.missing if a.uuid in absent]
        if not missing:  # another import, or another file, was faster
            same = Comparison("", compared=True)
            return Known(source, restored.size, restored.summary, restored.md5, same)
        data = restored.content
        view = memoryview(self._read_again(source, restored.md5) if data is None else data)
        for attachment in missing:
            chunks = encoded(attachment, view)
            objects.restore(attachment.uuid, attachment.file_type, chunks)
            absent.remove(attachment.uuid)
        return restored

    # --- new instances ------------------------------------------------------------------

    def _store(self, prepared: Sequence[Prepared]) -> list[PreparedOutcome]:
        """Store in one transaction.

        If the database refuses a record, or other writers are always faster, the batch is
        halved until a single record is refused.
        """
        if not prepared:
            return []
        try:
            return self._store_with_retries(prepared)
        except Stopped:
            self.conn.rollback()
            raise
        except (
            index.Conflict,
            content.UnreadableError,
            *_REFUSED,
            *_COLLISIONS,
        ) as error:
            self.conn.rollback()
            if len(prepared) == 1:
                # The file is not to blame for a collision: it must not be refused.
                if isinstance(error, _COLLISIONS):
                    raise
                self._discard(prepared)
                return [FileProblem(prepared[0].source.name, _reason(error))]
            middle = len(prepared) // 2
            return self._store(prepared[:middle]) + self._store(prepared[middle:])

    def _store_with_retries(self, prepared: Sequence[Prepared]) -> list[PreparedOutcome]:
        """Retry the transaction while it collides with another writer, like Orthanc."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return self._transaction(prepared)
            # The last two are collisions too: another writer has inserted the same
            # patient, or deleted it. If not, the last attempt raises them.
            except (*_COLLISIONS, pg.UniqueViolation, pg.ForeignKeyViolation):
                self.conn.rollback()
                _back_off(attempt)
        return self._transaction(prepared)

    def _transaction(self, prepared: Sequence[Prepared]) -> list[PreparedOutcome]:
        written = self.writer.write([p.record for p in prepared])
        pairs = list(zip(prepared, written.outcomes, strict=True))
        known = [p for p, outcome in pairs if outcome is Outcome.KNOWN]
        if self.objects:
            self.objects.put_many(
                (a.uuid, a.file_type, self._large_object(p, a))
                for p, outcome in pairs
                if outcome is not Outcome.KNOWN
                for a in p.record.attachments
            )
        # Another file or writer may have stored the instance since the worker checked.
        outcomes = self._compared(prepared, written.outcomes)
        old = self._remove_old(written.removed)
        self._commit()
        if self.stable_changes:
            for resource in written.touched:
                self.touched.pop(resource, None)  # so that it comes last
                self.touched[resource] = None
        # Workers had stored these files before it turned out that they are not needed.
        self._discard(known)
        if self._remover and old:
            self._remover.remove(old, [uuid for uuid, _ in written.removed])
        return outcomes

    def _compared(self, prepared: Sequence[Prepared], outcomes: Sequence[Outcome]) -> list[PreparedOutcome]:
        """Compare the files that turned out to be known with what is stored."""
        pairs = list(zip(prepared, outcomes, strict=True))
        public_ids = [_public_id(p) for p, outcome in pairs if outcome is Outcome.KNOWN]
        if not public_ids:
            return list(outcomes)
        with self.conn.cursor() as cur:
            stored = index.stored_attachments(cur, self.writer.capabilities, public_ids)
        results: list[PreparedOutcome] = []
        for p, outcome in pairs:
            if outcome is Outcome.KNOWN:
                attachments = stored.get(_public_id(p), ())
                results.append(_known(p, compare(attachments, p.size, p.md5)))
            else:
                results.append(outcome)
        return results

    def _remove_old(self, removed: Sequence[tuple[str, int]]) -> str | None:
        """Remove the attachments of overwritten instances.

        Large objects are removed by the transaction. Files can only be removed after it,
        so they are recorded in a journal before it, whose name is returned.
        """
        if self.objects:
            for uuid, file_type in removed:
                self.objects.delete(uuid, file_type)
        if not removed or not self.journal:
            return None
        name = f"old-{next(self._numbers):08}"
        self.journal.record(name, [uuid for uuid, _ in removed])
        return name

    def _commit(self) -> None:
        try:
            self.conn.commit()
        except psycopg2.Error as error:
            # A collision or a refusal is a rollback. After any other error, above all a
            # lost connection, the server may have committed or not.
            self._in_doubt = not isinstance(error, (*_COLLISIONS, *_REFUSED))
            raise

    def _discard(self, prepared: Iterable[Prepared]) -> None:
        if self.journal:
            self.journal.discard(a.uuid for p in prepared for a in p.record.attachments)

    def _large_object(self, prepared: Prepared, attachment: index.Attachment) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a large object, read again if they were not transferred."""
        if prepared.contents is not None:
            position = prepared.record.attachments.index(attachment)
            yield prepared.contents[position]
            return
        data = self._read_again(prepared.source, prepared.md5)
        part = memoryview(data)[: attachment.uncompressed_size]
        compress = attachment.compression_type == ZLIB
        digest, size = hashlib.md5(usedforsecurity=False), 0
        for chunk in storage.encode(part, compress=compress):
            self._checkpoint()
            if compress:
                digest.update(chunk)
                size += len(chunk)
            yield chunk
        # The row has what the worker measured, maybe on another machine (Dask).
        expected = attachment.compressed_size, attachment.compressed_hash or digest.hexdigest()
        if compress and (size, digest.hexdigest()) != expected:
            raise content.UnreadableError(COMPRESSED_DIFFERENTLY)

    def _read_again(self, source: Source, md5: str) -> bytes | mmap:
        data = content.read(source, checkpoint=self._checkpoint)
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise content.UnreadableError("it changed while it was read")
        return data


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311 - only to get out of step


class DryRunCommitter:
    """Reports what an import would do with the files, and writes nothing."""

    def __init__(self, conn: Connection, overwrite: index.Overwrite) -> None:
        """Reads with `conn`."""
        self.conn = conn
        self.overwrite = overwrite
        # The instances that would be stored: public id -> size and MD5
        self._would_exist: dict[str, tuple[int, str]] = {}

    def write(self, results: Sequence[Result]) -> Batch:
        """Count what would be written."""
        prepared = [r for r in results if isinstance(r, Prepared)]
        with self.conn, self.conn.cursor() as cur:
            stored = index.stored_instances(cur, [_public_id(p) for p in prepared])
        outcomes = [self._outcome(p, is_stored=_public_id(p) in stored) for p in prepared]
        return summarize_batch(results, outcomes)

    def _outcome(self, prepared: Prepared, *, is_stored: bool) -> PreparedOutcome:
        """Return what would become of a record.

        The worker has sorted out what is stored and would stay, so this record is new,
        replaces a stored instance, or repeats a file of this import.
        """
        public_id, version = _public_id(prepared), (prepared.size, prepared.md5)
        earlier = self._would_exist.get(public_id)
        if earlier is None:
            self._would_exist[public_id] = version
            return Outcome.OVERWRITTEN if is_stored else Outcome.IMPORTED
        changed = earlier != version
        if self.overwrite is index.Overwrite.ALWAYS or (
            self.overwrite is index.Overwrite.IF_CHANGED and changed
        ):
            self._would_exist[public_id] = version
            return Outcome.OVERWRITTEN
        difference = "another file of this import has other content" if changed else ""
        return _known(prepared, Comparison(difference, compared=True))

    def forget(self, name: str, unwritten: Sequence[Result]) -> None:
        """Do nothing: nothing was stored."""


def summarize_batch(results: Sequence[Result], outcomes: Sequence[PreparedOutcome]) -> Batch:
    """Return the sums of a batch, with the outcomes of its prepared records, in order."""
    known = [r for r in (*results, *outcomes) if isinstance(r, Known)]
    differences = [r for r in known if r.comparison.difference]
    problems = (r.problem if isinstance(r, NotDicom) else r for r in (*results, *outcomes))
    read = [r for r in results if isinstance(r, (Prepared, Known, Restored))]
    return Batch(
        imported=outcomes.count(Outcome.IMPORTED),
        known=len(known),
        overwritten=outcomes.count(Outcome.OVERWRITTEN),
        restored=sum(isinstance(r, Restored) for r in results),
        uncompared=sum(not r.comparison.compared for r in known),
        differences=tuple(FileProblem(r.source.name, r.comparison.difference) for r in differences),
        refusals=tuple(p for p in problems if isinstance(p, FileProblem)),
        bytes=sum(r.size for r in read),
        warnings=tuple(
            f"{r.source.display_name}: {warning}"
            for r in results
            if isinstance(r, Prepared)
            for warning in r.warnings
        ),
        items=tuple(_indexed_files(results, outcomes)),
    )


def _indexed_files(results: Sequence[Result], outcomes: Sequence[PreparedOutcome]) -> Iterator[IndexedFile]:
    # `outcomes` are those of the prepared results only.
    remaining = iter(outcomes)
    for r in results:
        end = next(remaining) if isinstance(r, Prepared) else r
        if isinstance(end, Known):
            differs = bool(end.comparison.difference)
            yield IndexedFile(end.source, Outcome.KNOWN, end.size, end.summary, end.md5, differs=differs)
        elif isinstance(end, Restored):
            yield IndexedFile(end.source, Outcome.RESTORED, end.size, end.summary, end.md5)
        elif isinstance(r, Prepared) and isinstance(end, Outcome):
            attachments = r.record.attachments
            uuid = attachments[0].uuid if attachments else ""
            summary = summarize(r.record.levels)
            yield IndexedFile(r.source, end, r.size, summary, r.md5, uuid)


def _known(prepared: Prepared, comparison: Comparison) -> Known:
    summary = summarize(prepared.record.levels)
    return Known(prepared.source, prepared.size, summary, prepared.md5, comparison)


def _public_id(prepared: Prepared) -> str:
    return prepared.record.levels[index.INSTANCE].public_id


def _reason(error: Exception) -> str:
    """Return why the database refuses a record, without the values in it."""
    if isinstance(error, psycopg2.Error):
        return f"the database refuses it: {db.primary_message(error)}"
    return str(error)
