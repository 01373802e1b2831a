"""One batch of records becomes rows, with a few set-based statements."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import StringIO
from typing import TYPE_CHECKING

from psycopg2.extras import execute_values

from pgorthanc_cli.index.lookup import Layout
from pgorthanc_cli.index.model import (
    COMPLETED_SERIES,
    INDEX_IN_SERIES,
    INSTANCE,
    LAST_UPDATE,
    LEVEL_NAMES,
    NEW_INSTANCE,
    NEW_PATIENT,
    NEW_SERIES,
    NEW_STUDY,
    PATIENT,
    PATIENT_RECYCLING_ORDER,
    RECEPTION_DATE,
    REMOTE_AET,
    SERIES,
    STABLE_PATIENT,
    STABLE_SERIES,
    STABLE_STUDY,
    STUDY,
    Attachment,
    Conflict,
    LevelRows,
    Outcome,
    Overwrite,
    Record,
    Written,
)  # fmt: skip

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

_NEW = {PATIENT: NEW_PATIENT, STUDY: NEW_STUDY, SERIES: NEW_SERIES}
_STABLE = {PATIENT: STABLE_PATIENT, STUDY: STABLE_STUDY, SERIES: STABLE_SERIES}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(eq=False, slots=True)
class _Node:
    """A resource in play: existing (with its internal id), or to be inserted by the next flush."""

    public_id: str
    level: int
    parent: _Node | None
    internal_id: int = 0


@dataclass
class _SeriesIndex:
    """The IndexInSeries of all instances of a series, as far as completeness needs them (INGEST.md 9)."""

    numbers: set[int] = field(default_factory=set)
    spoiled: bool = False  # a repetition, or something that is no integer: it can never be complete

    def add(self, text: str | None) -> None:
        if text is None:
            return
        if not _INTEGER.fullmatch(text) or int(text) in self.numbers:
            self.spoiled = True
        else:
            self.numbers.add(int(text))

    def complete(self, expected: int) -> bool:
        return (
            not self.spoiled
            and len(self.numbers) == expected
            and min(self.numbers, default=0) >= 1
            and max(self.numbers, default=0) <= expected
        )


@dataclass
class _Pending:
    """Rows in the order in which Orthanc would write them, waiting for one flush."""

    created: list[tuple[_Node, LevelRows, dict[int, str]]] = field(default_factory=list)
    attachments: list[tuple[_Node, Attachment]] = field(default_factory=list)
    changes: list[tuple[int, _Node, str]] = field(default_factory=list)
    last_update: dict[_Node, str] = field(default_factory=dict)  # in order of the last touch


class Writer:
    """Writes batches into one index; make one for each connection."""

    def __init__(self, conn: Connection, overwrite: Overwrite = Overwrite.NEVER) -> None:
        """Reads the layout of the index (see `Layout.read`)."""
        self.conn = conn
        self.overwrite = overwrite
        self.layout = Layout.read(conn)

    def write(
        self, records: Sequence[Record], store: Callable[[Attachment], None] = lambda _: None
    ) -> Written:
        """Write the records in the caller's transaction, as if they came one after the other.

        Args:
            records: The batch.
            store: Called for each attachment of a record that is stored, inside the transaction.

        Raises:
            Conflict: A public id belongs to a resource of another level, or its ancestors are missing.
            psycopg2.Error: The batch is not written; the caller rolls back.
        """
        with self.conn.cursor() as cur:
            return _Batch(cur, self.layout, self.overwrite, store).run(records)


class _Batch:
    def __init__(
        self, cur: Cursor, layout: Layout, overwrite: Overwrite, store: Callable[[Attachment], None]
    ) -> None:
        self.cur = cur
        self.layout = layout
        self.overwrite = overwrite
        self.store = store
        self.nodes: dict[str, _Node] = {}
        self.series: dict[str, _SeriesIndex] = {}
        self.pending = _Pending()
        self.removed: list[tuple[str, int]] = []
        self.touched: dict[tuple[str, int], None] = {}

    def run(self, records: Sequence[Record]) -> Written:
        self._load(records)
        outcomes = [self._add(record) for record in records]
        self._flush()
        return Written(outcomes, self.removed, list(self.touched))

    def _load(self, records: Sequence[Record]) -> None:
        """What the index already has of the batch: two statements, whatever its size."""
        wanted = {level.public_id: number for r in records for number, level in enumerate(r.levels)}
        self.cur.execute(
            "SELECT publicid, resourcetype, internalid, parentid FROM resources WHERE publicid = ANY(%s)",
            (list(wanted),),
        )
        rows = self.cur.fetchall()
        by_id = {row[2]: _Node(row[0], row[1], None, row[2]) for row in rows}
        for public_id, level, internal_id, parent_id in rows:
            if level != wanted[public_id]:
                found, expected = LEVEL_NAMES[level], LEVEL_NAMES[wanted[public_id]]
                raise Conflict(f"{public_id} is a {found} in the index, and a {expected} in this file")
            node = by_id[internal_id]
            node.parent = by_id.get(parent_id)
            if level != PATIENT and node.parent is None:
                raise Conflict(f"the {LEVEL_NAMES[level]} {public_id} is in the index without its parent")
            self.nodes[public_id] = node
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
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        nodes, new = self._resources(record, now)
        for attachment in record.attachments:
            self.pending.attachments.append((nodes[INSTANCE], attachment))
            self.store(attachment)
        self._touch(nodes, now)
        self._log(record, nodes, new, now)
        return outcome

    def _resources(self, record: Record, now: str) -> tuple[list[_Node], set[int]]:
        """The nodes of the four levels, patient first, and which of them are new."""
        nodes: list[_Node] = []
        new = set()
        for number, level in enumerate(record.levels):
            node = self.nodes.get(level.public_id)
            if node is None:
                node = self.nodes[level.public_id] = _Node(
                    level.public_id, number, nodes[-1] if nodes else None
                )
                new.add(number)
                self.pending.created.append((node, level, _reception(number, record.origin, now)))
            nodes.append(node)
        return nodes, new

    def _touch(self, nodes: Sequence[_Node], now: str) -> None:
        for node in nodes[:INSTANCE]:
            self.pending.last_update.pop(node, None)
            self.pending.last_update[node] = now
        for node in reversed(nodes[:INSTANCE]):
            self.touched.pop((node.public_id, node.level), None)
            self.touched[node.public_id, node.level] = None

    def _log(self, record: Record, nodes: Sequence[_Node], new: set[int], now: str) -> None:
        """The changes of one stored instance, from the instance up (INGEST.md 9)."""
        changes = self.pending.changes
        changes.append((NEW_INSTANCE, nodes[INSTANCE], now))
        changes += [(_NEW[level], nodes[level], now) for level in (SERIES, STUDY, PATIENT) if level in new]
        series = self.series.get(nodes[SERIES].public_id)
        if series is not None:
            series.add(record.index_in_series)
            if record.expected_instances is not None and series.complete(record.expected_instances):
                changes.append((COMPLETED_SERIES, nodes[SERIES], now))

    # --- overwriting -------------------------------------------------------------------------------------

    def _replaces(self, record: Record) -> bool:
        if self.overwrite is not Overwrite.IF_CHANGED:
            return self.overwrite is Overwrite.ALWAYS
        self._flush()
        self.cur.execute(
            "SELECT uncompressedhash FROM attachedfiles WHERE id = %s AND filetype = 1",
            (self.nodes[record.levels[INSTANCE].public_id].internal_id,),
        )
        row = self.cur.fetchone()
        return row is None or row[0] != record.attachments[0].uncompressed_hash

    def _delete(self, record: Record) -> None:
        """Delete the stored instance as Orthanc does: with its parents if it was their only child."""
        self._flush()
        node = self.nodes[record.levels[INSTANCE].public_id]
        if self.layout.delete_function:
            self.cur.execute("SELECT FROM deleteresource(%s)", (node.internal_id,))
        else:
            self.cur.execute(
                "DELETE FROM deletedfiles; DELETE FROM remainingancestor; DELETE FROM deletedresources"
            )
            self.cur.execute("DELETE FROM resources WHERE internalid = %s", (node.internal_id,))
        self.cur.execute("SELECT uuid, filetype FROM deletedfiles")
        self.removed += self.cur.fetchall()
        self.cur.execute("SELECT publicid FROM deletedresources")
        for (public_id,) in self.cur.fetchall():
            self.nodes.pop(public_id, None)
        self._load_series(self.series)

    # --- flushing ----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        pending, self.pending = self.pending, _Pending()
        if not pending.changes:
            return
        self._insert_resources([node for node, _, _ in pending.created])
        self._insert_tags(pending.created)
        self._insert_metadata(pending)
        self._copy(
            "attachedfiles",
            "id, filetype, uuid, compressedsize, uncompressedsize, compressiontype,"
            " uncompressedhash, compressedhash, revision",
            [
                (
                    node.internal_id, a.file_type, a.uuid, a.compressed_size, a.uncompressed_size,
                    a.compression_type, a.uncompressed_hash, a.compressed_hash, 0,
                )
                for node, a in pending.attachments
            ],
        )  # fmt: skip
        self._copy(
            "changes",
            "changetype, internalid, resourcetype, date",
            [(kind, node.internal_id, node.level, date) for kind, node, date in pending.changes],
        )
        self._recycle([node for node in pending.last_update if node.level == PATIENT])

    def _insert_resources(self, nodes: Sequence[_Node]) -> None:
        if self.layout.direct_child_count:
            self._count_children({n.parent.internal_id for n in nodes if n.parent and n.parent.internal_id})
        for node, internal_id in zip(nodes, self._next("resources_internalid_seq", len(nodes)), strict=True):
            node.internal_id = internal_id
        columns = "internalid, resourcetype, publicid, parentid"
        rows = [(n.internal_id, n.level, n.public_id, n.parent and n.parent.internal_id) for n in nodes]
        if self.layout.child_count:
            self._copy("resources", f"{columns}, childcount", [(*row, 0) for row in rows])
        else:
            self._copy("resources", columns, rows)

    def _count_children(self, parents: set[int]) -> None:
        """Revision 3: its trigger would set a childcount of NULL to 1 (UPSTREAM_DEFECTS.md B6)."""
        self.cur.execute(
            """UPDATE resources p SET childcount = (SELECT count(*) FROM resources c WHERE c.parentid = p.internalid)
               WHERE p.internalid = ANY(%s) AND p.childcount IS NULL""",
            (list(parents),),
        )

    def _insert_tags(self, created: Sequence[tuple[_Node, LevelRows, dict[int, str]]]) -> None:
        columns = "id, taggroup, tagelement, value"
        main = [(node.internal_id, *tag) for node, level, _ in created for tag in level.main_dicom_tags]
        identifiers = [(node.internal_id, *tag) for node, level, _ in created for tag in level.identifiers]
        self._copy("maindicomtags", columns, main)
        self._copy("dicomidentifiers", columns, identifiers)

    def _insert_metadata(self, pending: _Pending) -> None:
        new = {node for node, _, _ in pending.created}
        rows = [
            (node.internal_id, kind, value, 0)
            for node, level, reception in pending.created
            for kind, value in {**level.metadata, **reception}.items()
        ]
        rows += [(n.internal_id, LAST_UPDATE, date, 0) for n, date in pending.last_update.items() if n in new]
        self._copy("metadata", "id, type, value, revision", rows)
        self._upsert_metadata(
            [(n.internal_id, LAST_UPDATE, date) for n, date in pending.last_update.items() if n not in new]
        )

    def _upsert_metadata(self, rows: list[tuple[int, int, str]]) -> None:
        """In ascending order of ids, so that two writers cannot wait for each other."""
        if rows:
            execute_values(
                self.cur,
                """INSERT INTO metadata (id, type, value, revision) VALUES %s
                   ON CONFLICT (id, type) DO UPDATE SET value = excluded.value, revision = excluded.revision""",
                sorted(rows),
                template="(%s, %s, %s, 0)",
                page_size=len(rows),
            )

    def _recycle(self, patients: Sequence[_Node]) -> None:
        """Move patients to the end of the recycling order, in this order; protected ones stay as they are."""
        if not self.layout.recycling_table:
            ranks = self._next("patientrecyclingordersequence", len(patients))
            self._upsert_metadata(
                [
                    (n.internal_id, PATIENT_RECYCLING_ORDER, str(r))
                    for n, r in zip(patients, ranks, strict=True)
                ]
            )
            return
        for node in patients:
            if self.layout.recycling_function:
                self.cur.execute("SELECT patientaddedorupdated(%s, 1)", (node.internal_id,))
                continue
            self.cur.execute("DELETE FROM patientrecyclingorder WHERE patientid = %s", (node.internal_id,))
            if self.cur.rowcount:
                self.cur.execute(
                    "INSERT INTO patientrecyclingorder (patientid) VALUES (%s)", (node.internal_id,)
                )

    def _next(self, sequence: str, count: int) -> list[int]:
        if not count:
            return []
        self.cur.execute("SELECT nextval(%s) FROM generate_series(1, %s)", (sequence, count))
        return [row[0] for row in self.cur.fetchall()]

    def _copy(self, table: str, columns: str, rows: Sequence[tuple[object, ...]]) -> None:
        """COPY in text format: an order of magnitude less work than INSERT, and the triggers fire all the same."""
        if rows:
            text = StringIO("".join("\t".join(map(_copy_cell, row)) + "\n" for row in rows))
            self.cur.copy_expert(f"COPY {table} ({columns}) FROM STDIN", text)


def log_stable(cur: Cursor, resources: Iterable[tuple[str, int]]) -> int:
    """Append StableSeries, StableStudy and StablePatient changes, in this order of resources (INGEST.md 9).

    Args:
        cur: Inside the caller's transaction.
        resources: (public id, level); those that are gone meanwhile are left out.

    Returns:
        How many changes were logged.
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
    """Metadata that comes from receiving the instance, not from its content."""
    if level == INSTANCE:
        return {RECEPTION_DATE: now, **origin}
    if level == SERIES and REMOTE_AET in origin:
        return {REMOTE_AET: origin[REMOTE_AET]}
    return {}


def _copy_cell(value: object) -> str:
    return "\\N" if value is None else str(value).translate(_COPY_ESCAPES)
