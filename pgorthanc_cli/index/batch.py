"""Write one batch of records with a few set-based statements."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.db import planted
from pgorthanc_cli.index.delete import Replaced, lock_and_count
from pgorthanc_cli.index.insert import Pending, Resource, flush
from pgorthanc_cli.index.lookup import Capabilities
from pgorthanc_cli.index.model import (
    COMPLETED_SERIES,
    INDEX_IN_SERIES,
    INSTANCE,
    NEW_INSTANCE,
    NEW_PATIENT,
    NEW_SERIES,
    NEW_STUDY,
    PATIENT,
    RECEPTION_DATE,
    REMOTE_AET,
    SERIES,
    STABLE_PATIENT,
    STABLE_SERIES,
    STABLE_STUDY,
    STUDY,
    BatchResult,
    Conflict,
    Outcome,
    Overwrite,
    Record,
)  # fmt: skip
from pgorthanc_cli.index.triggers import Triggers

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

_NEW = {PATIENT: NEW_PATIENT, STUDY: NEW_STUDY, SERIES: NEW_SERIES}
_STABLE = {PATIENT: STABLE_PATIENT, STUDY: STABLE_STUDY, SERIES: STABLE_SERIES}
_DICOM = 1  # file type (SCHEMA.md 5)
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass
class _SeriesIndex:
    """The IndexInSeries of all instances of a series (INGEST.md 9)."""

    numbers: Counter[int] = field(default_factory=Counter)
    count: int = 0
    # Of those that are no integers: with one of them the series cannot be complete.
    invalid: int = 0

    def add(self, text: str | None, count: int = 1) -> None:
        """Add an instance; with -1 remove it."""
        if text is None:
            return
        if not _INTEGER.fullmatch(text):
            self.invalid += count
            return
        number = int(text)
        self.count += count
        self.numbers[number] += count
        if not self.numbers[number]:
            del self.numbers[number]

    def complete(self, expected: int) -> bool:
        return (
            not self.invalid
            and self.count == len(self.numbers) == expected
            and min(self.numbers, default=0) >= 1
            and max(self.numbers, default=0) <= expected
        )


class Writer:
    """Writes batches into one index; one writer per connection."""

    def __init__(
        self, conn: Connection, overwrite: Overwrite = Overwrite.NEVER, *, exclusive: bool = False
    ) -> None:
        """Read the capabilities of the index (see `Capabilities.read`).

        `exclusive`: the session has the index lock, so that no Orthanc is at work.

        Without unique public ids (revision 1) every transaction is serializable, even if
        no other writer is known: an Orthanc that takes no lock may start at any time.
        """
        self.conn = conn
        self.overwrite = overwrite
        self.capabilities = Capabilities.read(conn)
        self.triggers = Triggers(self.capabilities, exclusive=exclusive)
        self._serial = not self.capabilities.unique_public_ids
        if self._serial:
            # psycopg2 refuses it within a transaction, which reading the capabilities has
            # begun.
            conn.rollback()
            conn.set_session(isolation_level="SERIALIZABLE")

    def write(self, records: Sequence[Record]) -> BatchResult:
        """Write records in the caller's transaction, as if received one by one.

        Raises:
            Conflict: A public id belongs to a resource of another level, or its ancestors
                are missing.
            ParentDeleted: Another session has deleted an ancestor; the caller rolls back
                and retries.
            psycopg2.Error: The batch is not written; the caller rolls back.
        """
        with self.conn.cursor() as cur:
            if self._serial:
                # Public ids are not unique there. The lock comes before the snapshot, so a lookup
                # sees all committed resources; another writer that did not see one of ours and
                # inserts it after us fails (40001), and Orthanc restarts its transaction.
                cur.execute("LOCK TABLE resources IN SHARE ROW EXCLUSIVE MODE")
            planted.refuse_until_commit(self.conn)
            return _Batch(cur, self).run(records)


class _Batch:
    def __init__(self, cur: Cursor, writer: Writer) -> None:
        self.cur = cur
        self.capabilities = writer.capabilities
        self.triggers = writer.triggers
        self.overwrite = writer.overwrite
        self.nodes: dict[str, Resource] = {}
        self.series: dict[str, _SeriesIndex] = {}
        # Of instances, by public id: IndexInSeries; uuid and MD5 of the DICOM file.
        self.indexes: dict[str, str | None] = {}
        self.files: dict[str, tuple[str, str | None]] = {}
        self.pending = Pending()
        self.removed: list[tuple[str, int]] = []
        self.touched: dict[tuple[str, int], None] = {}

    def run(self, records: Sequence[Record]) -> BatchResult:
        self._load(records)
        outcomes = [self._add(record) for record in records]
        self._flush()
        return BatchResult(outcomes, self.removed, list(self.touched))

    def _load(self, records: Sequence[Record]) -> None:
        """Load what the index already has of the batch, in two statements."""
        levels = {level.public_id: number for r in records for number, level in enumerate(r.levels)}
        self.cur.execute(
            "SELECT publicid, resourcetype, internalid, parentid FROM resources WHERE publicid = ANY(%s)",
            (list(levels),),
        )
        rows = self.cur.fetchall()
        by_id = {row[2]: Resource(row[0], row[1], None, row[2]) for row in rows}
        for public_id, level, internal_id, parent_id in rows:
            if level != levels[public_id]:
                stored, received = LEVELS[level], LEVELS[levels[public_id]]
                raise Conflict(f"{public_id} is a {stored} in the index, and a {received} in this file")
            node = by_id[internal_id]
            node.parent = by_id.get(parent_id)
            if level != PATIENT and node.parent is None:
                raise Conflict(f"the {LEVELS[level]} {public_id} is in the index without its parent")
            self.nodes[public_id] = node
        # Only a series whose number of instances is announced can become complete.
        self._load_series({r.levels[SERIES].public_id for r in records if r.expected_instances is not None})
        self._load_replaced(records)

    def _load_series(self, public_ids: Iterable[str]) -> None:
        self.series = {public_id: _SeriesIndex() for public_id in public_ids}
        existing = {self.nodes[p].internal_id: p for p in self.series if p in self.nodes}
        if existing:
            self.cur.execute(
                """SELECT i.parentid, i.publicid, m.value FROM resources i
                   JOIN metadata m ON m.id = i.internalid AND m.type = %s WHERE i.parentid = ANY(%s)""",
                (INDEX_IN_SERIES, list(existing)),
            )
            for parent_id, public_id, value in self.cur.fetchall():
                self.series[existing[parent_id]].add(value)
                if public_id in self.nodes:
                    self.indexes[public_id] = value

    def _load_replaced(self, records: Sequence[Record]) -> None:
        """Load what it takes to decide which stored instances are replaced, and to delete those."""
        stored = {
            node.internal_id: record
            for record in records
            if (node := self.nodes.get(record.levels[INSTANCE].public_id))
            and (record.replaces or self.overwrite is not Overwrite.NEVER)
        }
        if stored and self.overwrite is not Overwrite.ALWAYS:
            self.cur.execute(
                """SELECT r.publicid, a.uuid, a.uncompressedhash FROM attachedfiles a
                   JOIN resources r ON r.internalid = a.id WHERE a.id = ANY(%s) AND a.filetype = %s""",
                (list(stored), _DICOM),
            )
            self.files = {public_id: (uuid, md5) for public_id, uuid, md5 in self.cur.fetchall()}
        replaced = [self.nodes[r.levels[INSTANCE].public_id] for r in stored.values() if self._replaces(r)]
        if replaced:
            lock_and_count(self.cur, replaced)

    def _add(self, record: Record) -> Outcome:
        outcome = Outcome.IMPORTED
        if record.levels[INSTANCE].public_id in self.nodes:
            if not self._replaces(record):
                return Outcome.KNOWN
            self._delete(record)
            outcome = Outcome.OVERWRITTEN
        # Orthanc's format: UTC without a time zone, in whole seconds.
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        nodes, new = self._resources(record, now)
        public_id = nodes[INSTANCE].public_id
        self.indexes[public_id] = record.index_in_series
        self.files[public_id] = _dicom_file(record)
        self.pending.attachments += [(nodes[INSTANCE], attachment) for attachment in record.attachments]
        self.pending.key_values += record.key_values
        self._touch(nodes, now)
        self._log(record, nodes, new, now)
        return outcome

    def _resources(self, record: Record, now: str) -> tuple[list[Resource], set[int]]:
        """Return the nodes of the four levels, and which of them are new."""
        nodes: list[Resource] = []
        new = set()
        for number, level in enumerate(record.levels):
            node = self.nodes.get(level.public_id)
            if node is None:
                parent = nodes[-1] if nodes else None
                node = self.nodes[level.public_id] = Resource(level.public_id, number, parent, children=0)
                if parent and parent.children is not None:
                    parent.children += 1
                new.add(number)
                self.pending.created.append((node, level, _reception(number, record.origin, now)))
            nodes.append(node)
        return nodes, new

    def _touch(self, nodes: Sequence[Resource], now: str) -> None:
        # A dict keeps the order of insertion: the resources touched last go to the end.
        for node in nodes[:INSTANCE]:
            self.pending.last_update.pop(node, None)
            self.pending.last_update[node] = now
        # Orthanc touches the series first and the patient last (INGEST.md 9).
        for node in reversed(nodes[:INSTANCE]):
            self.touched.pop((node.public_id, node.level), None)
            self.touched[node.public_id, node.level] = None

    def _log(self, record: Record, nodes: Sequence[Resource], new: set[int], now: str) -> None:
        """Log the changes of one stored instance, from the instance up (INGEST.md 9)."""
        changes = self.pending.changes
        changes.append((NEW_INSTANCE, nodes[INSTANCE], now))
        changes += [(_NEW[level], nodes[level], now) for level in (SERIES, STUDY, PATIENT) if level in new]
        series = self.series.get(nodes[SERIES].public_id)
        if series is not None:
            series.add(record.index_in_series)
            if record.expected_instances is not None and series.complete(record.expected_instances):
                changes.append((COMPLETED_SERIES, nodes[SERIES], now))

    # --- overwriting --------------------------------------------------------------------

    def _replaces(self, record: Record) -> bool:
        """Return whether a record replaces the instance that the index, or this batch, has."""
        if self.overwrite is Overwrite.ALWAYS:
            return True
        uuid, md5 = self.files.get(record.levels[INSTANCE].public_id, ("", None))
        if self.overwrite is Overwrite.IF_CHANGED:
            return md5 != record.attachments[0].uncompressed_hash
        return bool(record.replaces) and uuid == record.replaces

    def _delete(self, record: Record) -> None:
        """Delete the stored instance, and parents without other children, with the next flush."""
        node = self.nodes[record.levels[INSTANCE].public_id]
        # What this batch has written is stored first: the instance itself; and what a storage
        # plugin keeps about adopted files, which each replacement changes.
        if not node.internal_id or self.pending.key_values:
            self._flush()
        if any(ancestor.children is None for ancestor in node.ancestors()):
            self._flush()
            lock_and_count(self.cur, [node])
        series = self.series.get(record.levels[SERIES].public_id)
        if series:
            series.add(self.indexes.get(node.public_id), -1)
        for resource in (node, *node.ancestors()):
            if resource.children:
                break
            self.pending.replaced.append(Replaced(resource, adopting=bool(record.key_values)))
            del self.nodes[resource.public_id]
            if resource.parent and resource.parent.children is not None:
                resource.parent.children -= 1

    def _flush(self) -> None:
        pending, self.pending = self.pending, Pending()
        self.removed += flush(self.cur, self.capabilities, self.triggers, pending)


def _dicom_file(record: Record) -> tuple[str, str | None]:
    """Return uuid and MD5 of the DICOM file, as they will be stored."""
    for attachment in record.attachments:
        if attachment.file_type == _DICOM:
            return attachment.uuid, attachment.uncompressed_hash
    return "", None


def log_stable(cur: Cursor, resources: Iterable[tuple[str, int]]) -> int:
    """Append changes StableSeries, StableStudy and StablePatient (INGEST.md 9).

    Args:
        cur: Inside the caller's transaction.
        resources: (public id, level); those deleted meanwhile are skipped.

    Returns:
        The number of changes logged.
    """
    count = 0
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    for public_id, level in resources:
        cur.execute(
            """INSERT INTO changes (changetype, internalid, resourcetype, date)
               SELECT %s, internalid, resourcetype, %s FROM resources WHERE publicid = %s AND resourcetype = %s""",
            (_STABLE[level], now, public_id, level),
        )
        count += cur.rowcount
    return count


def _reception(level: int, origin: Mapping[int, str], now: str) -> dict[int, str]:
    """Return metadata that comes from receiving the instance, not from its content."""
    if level == INSTANCE:
        return {RECEPTION_DATE: now, **origin}
    if level == SERIES and REMOTE_AET in origin:
        return {REMOTE_AET: origin[REMOTE_AET]}
    return {}
