"""Insert new rows into the index, and update counters and recycling order (INGEST.md 10).

Rows are written with COPY in text format: an order of magnitude less work than INSERT. If
the role may do it, row triggers are off meanwhile, and their work is done once for the
whole batch (see `triggers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from psycopg2.extras import execute_values

from pgorthanc_cli.index import key_values
from pgorthanc_cli.index.delete import Replaced, delete, hide
from pgorthanc_cli.index.lookup import Capabilities
from pgorthanc_cli.index.model import (
    LAST_UPDATE,
    PATIENT,
    PATIENT_RECYCLING_ORDER,
    Attachment,
    LevelRows,
    ParentDeleted,
)
from pgorthanc_cli.index.triggers import Triggers

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_COPY_BYTES = 1 << 20
# GlobalIntegers (SCHEMA.md 5): the counters of sizes; those of resources follow, patients
# first; the last change
_COMPRESSED, _UNCOMPRESSED, _PATIENTS, _LAST_CHANGE = 0, 1, 2, 6


@dataclass(eq=False, slots=True)
class Resource:
    """A resource: stored (with its internal id), or inserted by the next flush.

    `children` is their number, with those of this batch; None: not counted yet.
    """

    public_id: str
    level: int
    parent: Resource | None
    internal_id: int = 0
    children: int | None = None

    def ancestors(self) -> Iterator[Resource]:
        """Yield its ancestors, from the series to the patient."""
        parent = self.parent
        while parent:
            yield parent
            parent = parent.parent


@dataclass(slots=True)
class Pending:
    """Rows in the order in which Orthanc would write them, waiting for one flush.

    Attributes:
        created: New resources with their rows, and the metadata that comes from receiving
            them.
        attachments: Of the new instances.
        changes: Change type, resource, date.
        last_update: Ancestors of the new instances and their metadata 7, the least recent
            first.
        key_values: What a storage plugin keeps about the attachments.
        replaced: Stored resources to delete before.
    """

    created: list[tuple[Resource, LevelRows, Mapping[int, str]]] = field(default_factory=list)
    attachments: list[tuple[Resource, Attachment]] = field(default_factory=list)
    changes: list[tuple[int, Resource, str]] = field(default_factory=list)
    last_update: dict[Resource, str] = field(default_factory=dict)
    key_values: list[key_values.KeyValue] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)


def flush(
    cur: Cursor, capabilities: Capabilities, triggers: Triggers, pending: Pending
) -> list[tuple[str, int]]:
    """Write the pending rows, and set the internal id of each new node.

    Returns:
        (uuid, file type) of replaced attachments, to remove after the commit.

    Raises:
        Conflict: What is replaced cannot be deleted (see `delete.delete`).
        ParentDeleted: An ancestor was deleted by another session.
        psycopg2.Error: Nothing is written; the caller rolls back.
    """
    # Each stored instance logs a change: without any, there is nothing to write.
    if not pending.changes:
        return []
    if capabilities.recycling_table:
        hide(cur, capabilities, pending.replaced)
        _Flush(cur, capabilities, triggers, pending).run()
        return delete(cur, capabilities, pending.replaced)
    removed = delete(cur, capabilities, pending.replaced)
    _Flush(cur, capabilities, triggers, pending).run()
    return removed


class _Flush:
    def __init__(self, cur: Cursor, capabilities: Capabilities, triggers: Triggers, pending: Pending) -> None:
        self.cur = cur
        self.capabilities = capabilities
        self.triggers = triggers
        self.pending = pending
        self.new = [node for node, _, _ in pending.created]
        self.old = [node for node in pending.last_update if node.internal_id]
        self.patients = [node for node in pending.last_update if node.level == PATIENT]

    def run(self) -> None:
        children = Counter(node.parent for node in self.new if node.parent)
        if self.capabilities.direct_child_counts:
            self._count_children()
        # COPY returns no ids, so they are drawn from the sequence before.
        for node, number in zip(self.new, self._next("resources_internalid_seq", len(self.new)), strict=True):
            node.internal_id = number
        with self.triggers.off(self.cur) as are_off:
            if are_off and self.triggers.foreign_keys_off:
                self._lock_ancestors()
            # With triggers on, counting is their work: new rows start with 0, as
            # Orthanc's do.
            self._insert_resources(children if are_off else Counter())
            self._insert_tags()
            self._insert_metadata()
            self._insert_attachments()
            self._insert_changes()
            key_values.put(self.cur, self.capabilities, self.pending.key_values)
            if self.capabilities.recycling_table:
                self._update_recycling_table(triggers_off=are_off)
            if are_off:
                self._update_child_counts(children)
                self._update_counters()

    # --- rows ---------------------------------------------------------------------------

    def _insert_resources(self, children: Mapping[Resource, int]) -> None:
        rows = (
            f"{n.internal_id}\t{n.level}\t{n.public_id}\t{n.parent.internal_id if n.parent else _NULL}"
            for n in self.new
        )
        columns = "internalid, resourcetype, publicid, parentid"
        if self.capabilities.child_counts:
            counts = (children.get(node, 0) for node in self.new)
            rows = (f"{row}\t{count}" for row, count in zip(rows, counts, strict=True))
            columns += ", childcount"
        self._copy("resources", columns, [f"{row}\n" for row in rows])

    def _insert_tags(self) -> None:
        columns = "id, taggroup, tagelement, value"
        created = [(node.internal_id, level) for node, level, _ in self.pending.created]
        main = [
            f"{number}\t{group}\t{element}\t{copy_cell(value)}\n"
            for number, level in created
            for group, element, value in level.main_dicom_tags
        ]
        self._copy("maindicomtags", columns, main)
        identifiers = [
            f"{number}\t{group}\t{element}\t{copy_cell(value)}\n"
            for number, level in created
            for group, element, value in level.identifiers
        ]
        self._copy("dicomidentifiers", columns, identifiers)

    def _insert_metadata(self) -> None:
        """Copy new rows; update those that may exist already."""
        existing = set(self.old)
        rows = [
            f"{node.internal_id}\t{kind}\t{copy_cell(value)}\t0\n"
            for node, level, reception in self.pending.created
            for kind, value in (*level.metadata.items(), *reception.items())
        ]
        changed = []
        for kind, node, value in self._rewritten_metadata():
            if node in existing:
                changed.append((node.internal_id, kind, value))
            else:
                rows.append(f"{node.internal_id}\t{kind}\t{value}\t0\n")
        self._copy("metadata", "id, type, value, revision", rows)
        self._update_metadata(changed)

    def _rewritten_metadata(self) -> Iterable[tuple[int, Resource, str]]:
        """Yield metadata that new instances rewrite: last update, recycling order."""
        for node, date in self.pending.last_update.items():
            yield LAST_UPDATE, node, date
        if not self.capabilities.recycling_table:
            ranks = self._next("patientrecyclingordersequence", len(self.patients))
            for node, rank in zip(self.patients, ranks, strict=True):
                yield PATIENT_RECYCLING_ORDER, node, str(rank)

    def _update_metadata(self, rows: list[tuple[int, int, str]]) -> None:
        """Update in ascending order of ids, so that two writers cannot deadlock."""
        if rows:
            execute_values(
                self.cur,
                """INSERT INTO metadata (id, type, value, revision) VALUES %s
                   ON CONFLICT (id, type) DO UPDATE SET value = excluded.value, revision = excluded.revision""",
                sorted(rows),
                template="(%s, %s, %s, 0)",
                # One statement; the default is one for each hundred rows.
                page_size=len(rows),
            )

    def _insert_attachments(self) -> None:
        columns = (
            "id, filetype, uuid, compressedsize, uncompressedsize, compressiontype,"
            " uncompressedhash, compressedhash, revision"
        )
        rows = [
            f"{node.internal_id}\t{a.file_type}\t{a.uuid}\t{a.compressed_size}\t{a.uncompressed_size}"
            f"\t{a.compression_type}\t{a.uncompressed_hash}\t{a.compressed_hash}\t0"
            for node, a in self.pending.attachments
        ]
        if any(a.custom_data for _, a in self.pending.attachments):
            columns += ", customdata"
            data = (a.custom_data for _, a in self.pending.attachments)
            # The hexadecimal form of bytea, its backslash doubled for COPY.
            rows = [
                f"{row}\t{_NULL if d is None else _BYTES + d.hex()}"
                for row, d in zip(rows, data, strict=True)
            ]
        self._copy("attachedfiles", columns, [f"{row}\n" for row in rows])

    def _insert_changes(self) -> None:
        self._copy(
            "changes",
            "changetype, internalid, resourcetype, date",
            [f"{kind}\t{n.internal_id}\t{n.level}\t{date}\n" for kind, n, date in self.pending.changes],
        )

    # --- bookkeeping --------------------------------------------------------------------

    def _lock_ancestors(self) -> None:
        """Keep ancestors from being deleted, as a foreign key would."""
        if not self.old:
            return
        # Ordered, so that two writers with the same ancestors cannot deadlock.
        ids = [node.internal_id for node in self.old]
        self.cur.execute(
            "SELECT FROM resources WHERE internalid = ANY(%s) ORDER BY internalid FOR KEY SHARE", (ids,)
        )
        if self.cur.rowcount != len(ids):
            raise ParentDeleted("another session has just deleted a patient, study or series of this batch")

    def _count_children(self) -> None:
        """Count where childcount is NULL: revision 3 would not (UPSTREAM_DEFECTS.md B6)."""
        parents = {node.parent.internal_id for node in self.new if node.parent and node.parent.internal_id}
        self.cur.execute(
            """UPDATE resources p SET childcount = (SELECT count(*) FROM resources c WHERE c.parentid = p.internalid)
               WHERE p.internalid = ANY(%s) AND p.childcount IS NULL""",
            (list(parents),),
        )

    def _update_recycling_table(self, *, triggers_off: bool) -> None:
        """Move patients to the end of the recycling order; skip protected ones."""
        new = set(self.new)
        for node in self.patients:
            # With triggers on, one of them has just added a new patient.
            added = node in new and triggers_off
            # 0 inserts the patient, 1 moves it to the end; a protected one has no row to
            # move.
            if self.capabilities.recycling_function:
                self.cur.execute("SELECT patientaddedorupdated(%s, %s)", (node.internal_id, int(not added)))
                continue
            self.cur.execute("DELETE FROM patientrecyclingorder WHERE patientid = %s", (node.internal_id,))
            # A patient without a row is protected, and must stay so (INGEST.md 10).
            if added or self.cur.rowcount:
                self.cur.execute(
                    "INSERT INTO patientrecyclingorder (patientid) VALUES (%s)", (node.internal_id,)
                )

    def _update_child_counts(self, children: Mapping[Resource, int]) -> None:
        """Update the counts of existing parents, or mark them for housekeeping."""
        existing = set(self.old)
        added = sorted((node.internal_id, count) for node, count in children.items() if node in existing)
        if not self.capabilities.child_counts or not added:
            return
        if self.capabilities.direct_child_counts:
            execute_values(
                self.cur,
                """UPDATE resources SET childcount = childcount + added.count
                   FROM (VALUES %s) AS added (id, count) WHERE internalid = added.id""",
                added,
            )
        else:
            execute_values(
                self.cur, "INSERT INTO invalidchildcounts (id) VALUES %s", [(n,) for n, _ in added]
            )

    def _update_counters(self) -> None:
        """Update the counters; the last change at the end, as all writers wait for it."""
        added: Counter[int] = Counter(_PATIENTS + node.level for node in self.new)
        added[_COMPRESSED] = sum(a.compressed_size for _, a in self.pending.attachments)
        added[_UNCOMPRESSED] = sum(a.uncompressed_size for _, a in self.pending.attachments)
        # Sorted, so that all writers lock the counters in one order.
        deltas = sorted(added.items())
        if self.capabilities.statistics_deltas:
            # Appended, not added: an UPDATE would make all writers wait for this
            # transaction.
            execute_values(self.cur, "INSERT INTO globalintegerschanges (key, value) VALUES %s", deltas)
        else:
            for key, value in deltas:
                self.cur.execute("UPDATE globalintegers SET value = value + %s WHERE key = %s", (value, key))
        # Another writer may have drawn a higher number, and committed it first.
        self.cur.execute(
            "UPDATE globalintegers SET value = GREATEST(value, currval('changes_seq_seq')) WHERE key = %s",
            (_LAST_CHANGE,),
        )

    # --- helpers ------------------------------------------------------------------------

    def _next(self, sequence: str, count: int) -> list[int]:
        if not count:
            return []
        self.cur.execute("SELECT nextval(%s) FROM generate_series(1, %s)", (sequence, count))
        return [row[0] for row in self.cur.fetchall()]

    def _copy(self, table: str, columns: str, rows: Sequence[str]) -> None:
        if rows:
            text = BytesIO("".join(rows).encode())
            copy = f"COPY {table} ({columns}) FROM STDIN (ENCODING '{self.capabilities.encoding}')"
            self.cur.copy_expert(copy, text, _COPY_BYTES)


_NULL, _BYTES = "\\N", "\\\\x"


def copy_cell(value: str) -> str:
    """Return a text escaped for COPY; nearly all texts need no escapes."""
    if value.isprintable() and "\\" not in value:
        return value
    return value.translate(_ESCAPES)
