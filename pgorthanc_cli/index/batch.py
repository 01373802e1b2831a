"""Write one batch of records with a few set-based statements."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.db import planted
from pgorthanc_cli.index import customdata
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
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass
class _SeriesIndex:
    """The IndexInSeries of all instances of a series (INGEST.md 9)."""

    numbers: set[int] = field(default_factory=set)
    # A duplicate, or not an integer: the series can never be complete.
    invalid: bool = False

    def add(self, text: str | None) -> None:
        if text is None:
            return
        if not _INTEGER.fullmatch(text) or int(text) in self.numbers:
            self.invalid = True
        else:
            self.numbers.add(int(text))

    def complete(self, expected: int) -> bool:
        return (
            not self.invalid
            and len(self.numbers) == expected
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

    def _load_series(self, public_ids: Iterable[str]) -> None:
        self.series = {public_id: _SeriesIndex() for public_id in public_ids}
        existing = {self.nodes[p].internal_id: p for p in self.series if p in self.nodes}
        if existing:
            self.cur.execute(
                """SELECT i.parentid, m.value FROM resources i JOIN metadata m ON m.id = i.internalid AND m.type = %s
                   WHERE i.parentid = ANY(%s)""",
                (INDEX_IN_SERIES, list(existing)),
            )
            for parent_id, value in self.cur.fetchall():
                self.series[existing[parent_id]].add(value)

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
                node = self.nodes[level.public_id] = Resource(
                    level.public_id, number, nodes[-1] if nodes else None
                )
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
        if self.overwrite is Overwrite.ALWAYS:
            return True
        if self.overwrite is Overwrite.NEVER and not record.replaces:
            return False
        # The stored instance may be of this batch, and pending.
        self._flush()
        self.cur.execute(
            "SELECT uuid, uncompressedhash FROM attachedfiles WHERE id = %s AND filetype = 1",
            (self.nodes[record.levels[INSTANCE].public_id].internal_id,),
        )
        uuid, md5 = self.cur.fetchone() or ("", None)
        if self.overwrite is Overwrite.IF_CHANGED:
            return bool(md5 != record.attachments[0].uncompressed_hash)
        return bool(uuid == record.replaces)

    def _delete(self, record: Record) -> None:
        """Delete the stored instance, and parents without other children."""
        self._flush()
        node = self.nodes[record.levels[INSTANCE].public_id]
        if self.capabilities.delete_function:
            self.cur.execute("SELECT FROM deleteresource(%s)", (node.internal_id,))
        else:
            # Triggers fill these tables. deleteresource() empties them first; revision 1 has
            # no such function.
            self.cur.execute(
                "DELETE FROM deletedfiles; DELETE FROM remainingancestor; DELETE FROM deletedresources"
            )
            self.cur.execute("DELETE FROM resources WHERE internalid = %s", (node.internal_id,))
        ids = [node.internal_id]
        while node.parent:
            node = node.parent
            ids.append(node.internal_id)
        adopting = bool(record.key_values)
        self.removed += customdata.release(self.cur, self.capabilities, ids, adopting=adopting)
        self.cur.execute("SELECT publicid FROM deletedresources")
        for (public_id,) in self.cur.fetchall():
            self.nodes.pop(public_id, None)
        # The deletion may have removed a series, or an IndexInSeries that made it complete.
        self._load_series(self.series)

    def _flush(self) -> None:
        pending, self.pending = self.pending, Pending()
        flush(self.cur, self.capabilities, self.triggers, pending)


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
