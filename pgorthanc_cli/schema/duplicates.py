"""Find public ids that occur more than once, and merge their rows.

Below revision 2 nothing prevents two writers from storing the same patient, study, series or instance twice, and the
step to revision 2 makes public ids unique. Nothing is dropped silently: what only one of the rows has moves to the
remaining row; what differs, and each file that no row refers to any more, is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.errors import RevisionError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor


_FIND = """
    SELECT resource.publicid, min(resource.resourcetype), count(*), count(DISTINCT resource.resourcetype),
           count(DISTINCT parent.publicid)
        FROM (SELECT publicid FROM index.resources GROUP BY publicid HAVING count(*) > 1) repeated
        JOIN index.resources resource USING (publicid)
        LEFT JOIN index.resources parent ON parent.internalid = resource.parentid
        GROUP BY resource.publicid ORDER BY 2, 1"""

# Tables whose rows belong to a resource: their key, their values, and which of the rows never move.
# The files 1 to 3 and the metadata 14 and 17 describe one DICOM file: they stay with theirs.
_BELONGINGS = {
    "maindicomtags": (("taggroup", "tagelement"), ("value",), "false"),
    "dicomidentifiers": (("taggroup", "tagelement"), ("value",), "false"),
    "metadata": (("type",), ("value",), "lost.type IN (14, 17)"),
    "attachedfiles": (("filetype",), ("uncompressedsize", "uncompressedhash"), "lost.filetype IN (1, 2, 3)"),
    "labels": (("label",), (), "false"),
}
_MOVE = """
    UPDATE {table} moved SET id = candidate.survivor FROM (
        SELECT DISTINCT ON (survivor, {keys}) loser, survivor, {keys}
            FROM pg_temp.pgorthanc_merge JOIN {table} lost ON lost.id = loser
            WHERE NOT ({fixed}) AND NOT EXISTS (
                SELECT FROM {table} kept WHERE kept.id = survivor AND ({kept}) = ({lost}))
            ORDER BY survivor, {keys}, place) candidate
        WHERE moved.id = candidate.loser AND ({moved}) = ({candidate})"""
_DIFFERING = """
    SELECT publicid, resourcetype, '{name} ' || {label}
        FROM pg_temp.pgorthanc_merge
        JOIN {table} lost ON lost.id = loser JOIN {table} kept ON kept.id = survivor AND ({kept}) = ({lost})
        WHERE ({kept_values}) IS DISTINCT FROM ({lost_values})"""
_DIFFERENCES = """
    SELECT publicid, resourcetype, array_agg(what ORDER BY what)
        FROM ({union}) AS one (publicid, resourcetype, what) GROUP BY 1, 2 ORDER BY 2, 1"""
_HEX_TAG = "lpad(to_hex(lost.taggroup), 4, '0') || ',' || lpad(to_hex(lost.tagelement), 4, '0')"
# How a report names such a row: never its value.
_LABELS = {
    "maindicomtags": ("main DICOM tag", _HEX_TAG),
    "dicomidentifiers": ("DICOM identifier", _HEX_TAG),
    "metadata": ("metadata", "lost.type"),
    "attachedfiles": ("attachment", "lost.filetype"),
}

_CHILDREN = """
    UPDATE resources SET parentid = survivor FROM pg_temp.pgorthanc_merge WHERE parentid = loser"""
# A study without a patient (see revision 2's createinstance of the plugin) gets that of its duplicate.
_PARENTS = """
    UPDATE resources SET parentid = known.parentid FROM (
        SELECT DISTINCT ON (survivor) survivor, lost.parentid
            FROM pg_temp.pgorthanc_merge JOIN resources lost ON lost.internalid = loser
            WHERE lost.parentid IS NOT NULL ORDER BY survivor, place) known
        WHERE internalid = survivor AND resources.parentid IS NULL"""
_CHANGES = "UPDATE changes SET internalid = survivor FROM pg_temp.pgorthanc_merge WHERE internalid = loser"

# A downgrade from revision 5 keeps customdata aside; it moves with its file, as an advanced storage needs it.
_KEPT = "pgorthanc_kept_customdata"
_FORGET_KEPT = """
    DELETE FROM pgorthanc_kept_customdata kept USING pg_temp.pgorthanc_merge, attachedfiles file
        WHERE kept.id = survivor AND file.id = survivor AND file.filetype = kept.filetype AND file.uuid <> kept.uuid"""
_MOVE_KEPT = """
    UPDATE pgorthanc_kept_customdata kept SET id = survivor FROM pg_temp.pgorthanc_merge, attachedfiles file
        WHERE kept.id = loser AND file.id = survivor AND (file.filetype, file.uuid) = (kept.filetype, kept.uuid)
            AND NOT EXISTS (
                SELECT FROM pgorthanc_kept_customdata own WHERE own.id = survivor AND own.filetype = kept.filetype)"""

_PROTECTED = (
    """SELECT DISTINCT publicid FROM pg_temp.pgorthanc_patients WHERE isprotected AND isordered ORDER BY 1"""
)
_LEAVE_ORDER = """
    DELETE FROM patientrecyclingorder ranked USING pg_temp.pgorthanc_patients known
        WHERE patientid = patient AND (isprotected OR ranked.seq < known.seq)"""
_KEEP_POSITION = """
    UPDATE patientrecyclingorder SET patientid = survivor FROM pg_temp.pgorthanc_patients
        WHERE patientid = patient AND patient <> survivor"""

_SURPLUS = """
    CREATE TEMPORARY TABLE pgorthanc_surplus ON COMMIT DROP AS
    SELECT uuid, publicid, filetype, compressedsize, uncompressedsize
        FROM pg_temp.pgorthanc_merge JOIN attachedfiles ON id = loser"""
_COUNT = """
    UPDATE globalintegers SET value = value - fewer.number
        FROM (SELECT resourcetype + 2 AS counter, count(*) AS number FROM pg_temp.pgorthanc_merge GROUP BY 1
              UNION ALL SELECT 0, sum(coalesce(compressedsize, 0)) FROM pg_temp.pgorthanc_surplus
              UNION ALL SELECT 1, sum(coalesce(uncompressedsize, 0)) FROM pg_temp.pgorthanc_surplus) fewer
        WHERE key = fewer.counter AND fewer.number IS NOT NULL"""
# Two rows may refer to the same file: it is not surplus while one of them stays.
_UNNAMED = """
    SELECT DISTINCT uuid, publicid, filetype FROM pg_temp.pgorthanc_surplus gone
        WHERE NOT EXISTS (SELECT FROM attachedfiles kept WHERE kept.uuid = gone.uuid) ORDER BY 2, 3, 1"""
_STILL_PARENTS = """
    SELECT count(*) FROM pg_temp.pgorthanc_merge JOIN resources child ON child.parentid = loser"""
_REMOVE = "DELETE FROM resources USING pg_temp.pgorthanc_merge WHERE internalid = loser"

_TRIGGERS = """
    SELECT format('ALTER TABLE %I %s TRIGGER %I', relname, '{action}', tgname)
        FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
        WHERE tgrelid IN ('resources'::regclass, 'attachedfiles'::regclass) AND NOT tgisinternal
            AND tgenabled = 'O' ORDER BY 1"""


@dataclass(frozen=True)
class Duplicate:
    """A public id that occurs more than once.

    Attributes:
        public_id: Orthanc's identifier.
        level: patient, study, series or instance; that of the highest row if they differ.
        rows: How many resources have it.
        obstacle: Why they cannot be merged; None if they can.
    """

    public_id: str
    level: str
    rows: int
    obstacle: str | None

    def __str__(self) -> str:
        """Return the duplicate as a message names it."""
        return f"{self.level} {self.public_id} {self.rows} times" + (
            f" ({self.obstacle})" if self.obstacle else ""
        )


@dataclass(frozen=True)
class Differing:
    """A difference between the rows of one public id; the value of the remaining row counts.

    Attributes:
        public_id: Orthanc's identifier.
        level: patient, study, series or instance.
        what: As in `metadata 7`, `main DICOM tag 0008,0020`, `attachment 1`; no values.
    """

    public_id: str
    level: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        """Return the difference as a report names it."""
        return f"{self.level} {self.public_id}: {', '.join(self.what)}"


@dataclass(frozen=True)
class SurplusFile:
    """A file, or a large object, of the storage area that no row of the index refers to any more."""

    uuid: str
    public_id: str
    file_type: int


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    Attributes:
        merged: The public ids that were not unique.
        removed: How many rows were removed, by level.
        moved: How many rows of other tables moved to the remaining row, by table.
        differing: What was not the same in all rows; the value of the remaining row was kept.
        surplus_files: What to remove from the storage area once the transaction is committed.
        protected: Patients of which only some rows were protected from recycling; they are protected now.
    """

    merged: tuple[Duplicate, ...]
    removed: dict[str, int]
    moved: dict[str, int]
    differing: tuple[Differing, ...]
    surplus_files: tuple[SurplusFile, ...]
    protected: tuple[str, ...]


def find(conn: Connection) -> list[Duplicate]:
    """Return the public ids that occur more than once, patients first. Reads all of resources; writes nothing."""
    result = []
    for public_id, level, number, levels, parents in db.rows(conn, _FIND):
        obstacle = "below different parents" if parents > 1 else None
        if levels > 1:
            obstacle = "of different levels"
        result.append(Duplicate(public_id, _level(level), number, obstacle))
    return result


def merge(conn: Connection) -> Merged:
    """Merge all rows that share a public id, in the transaction of the caller.

    The row with the most below it stays. Children, changes, labels, and the tags, metadata and attachments that it
    lacks move to it. Statistics and recycling order are right afterwards. The caller makes sure that no Orthanc
    uses the database, and commits; until then writers wait.

    Args:
        conn: A connection whose search_path is the schema of an index below revision 2.

    Raises:
        RevisionError: Public ids are unique in this layout, or rows of one public id are of different levels or lie
            below different parents. Nothing is changed then.
    """
    with conn.cursor() as cur:
        tables = _tables(cur)
        if "globalintegerschanges" in tables:
            raise RevisionError(
                "duplicate public ids can only be merged below revision 2",
                "run: pgorthanc verify schema",
            )
        # Readers continue; writers, and a second merge, wait until the end.
        cur.execute(
            f"LOCK TABLE resources, patientrecyclingorder, changes, {', '.join(_owned(tables))}"
            " IN SHARE ROW EXCLUSIVE MODE"
        )
        repeated = find(conn)
        _refuse_obstacles(repeated)
        if not repeated:
            return Merged((), {}, {}, (), (), ())
        # Their triggers would count one row after the other, and delete a parent between two of its children.
        enable = _trigger_statements(cur, "ENABLE")
        for statement in _trigger_statements(cur, "DISABLE"):
            cur.execute(statement)
        result = _merge(cur, tuple(repeated), tables)
        for statement in enable:
            cur.execute(statement)
    if left := find(conn):
        raise RevisionError(
            f"{len(left)} public ids still occur more than once, as {left[0]}: nothing may be committed",
            "stop every Orthanc that uses this database, then run the same command again",
        )
    return result


def _merge(cur: Cursor, repeated: tuple[Duplicate, ...], tables: set[str]) -> Merged:
    cur.execute(db.statement(__package__, "duplicate_pairs.sql"))
    cur.execute("CREATE INDEX ON pg_temp.pgorthanc_merge (loser)")
    # Autovacuum does not see temporary tables: the joins would be planned for a few rows.
    cur.execute("ANALYZE pg_temp.pgorthanc_merge")
    removed = dict(
        _rows(cur, "SELECT resourcetype, count(*) FROM pg_temp.pgorthanc_merge GROUP BY 1 ORDER BY 1")
    )
    moved = {"resources": _changed(cur, _CHILDREN), "changes": _changed(cur, _CHANGES)}
    cur.execute(_PARENTS)
    for table in _owned(tables):
        moved[table] = _changed(cur, _statement(_MOVE, table))
    if _KEPT in tables:
        cur.execute(_FORGET_KEPT)
        moved[_KEPT] = _changed(cur, _MOVE_KEPT)
    differing = _differing(cur)
    cur.execute(db.statement(__package__, "duplicate_patients.sql"))
    protected = tuple(name for (name,) in _rows(cur, _PROTECTED))
    for statement in (_LEAVE_ORDER, _KEEP_POSITION, _SURPLUS):
        cur.execute(statement)
    if "globalintegers" in tables:
        cur.execute(_COUNT)
    _remove(cur)
    return Merged(
        merged=repeated,
        removed={_level(level): number for level, number in removed.items()},
        moved={table: number for table, number in moved.items() if number},
        differing=differing,
        surplus_files=tuple(SurplusFile(*row) for row in _rows(cur, _UNNAMED)),
        protected=protected,
    )


def _remove(cur: Cursor) -> None:
    """Delete the rows that were merged; a resource below one of them would be deleted as well."""
    ((below,),) = _rows(cur, _STILL_PARENTS)
    if below:
        raise RevisionError(
            f"{below} resources are their own ancestors", "restore the database from a backup"
        )
    cur.execute(_REMOVE)


def _refuse_obstacles(repeated: Sequence[Duplicate]) -> None:
    stuck = [duplicate for duplicate in repeated if duplicate.obstacle]
    if stuck:
        more = f" and {len(stuck) - 5} more" if len(stuck) > 5 else ""
        raise RevisionError(
            f"these duplicate public ids cannot be merged: {'; '.join(map(str, stuck[:5]))}{more}",
            "delete one of each in Orthanc (DELETE /patients/{id}, /studies/{id} ...), then run it again",
        )


def _differing(cur: Cursor) -> tuple[Differing, ...]:
    union = " UNION ".join(_statement(_DIFFERING, table) for table in _LABELS)
    rows = _rows(cur, _DIFFERENCES.format(union=union))
    return tuple(Differing(name, _level(level), tuple(what)) for name, level, what in rows)


def _statement(template: str, table: str) -> str:
    """Return a statement for one of the tables whose rows belong to a resource."""
    keys, values, fixed = _BELONGINGS[table]
    name, label = _LABELS.get(table, ("", ""))

    def columns(alias: str, names: tuple[str, ...]) -> str:
        return ", ".join(f"{alias}.{column}" for column in names)

    return template.format(
        table=table,
        keys=", ".join(keys),
        fixed=fixed,
        name=name,
        label=label,
        kept_values=columns("kept", values),
        lost_values=columns("lost", values),
        **{alias: columns(alias, keys) for alias in ("kept", "lost", "moved", "candidate")},
    )


def _owned(tables: set[str]) -> list[str]:
    """Return the tables whose rows belong to a resource: plugins before 5.0 have no labels."""
    return [table for table in _BELONGINGS if table in tables]


def _tables(cur: Cursor) -> set[str]:
    query = """SELECT relname FROM pg_class
        WHERE relnamespace = quote_ident(index_schema())::regnamespace AND relkind = 'r'"""
    return {name for (name,) in _rows(cur, query)}


def _trigger_statements(cur: Cursor, action: str) -> list[str]:
    """Return the statements that enable or disable all triggers of both tables that are enabled now."""
    return [statement for (statement,) in _rows(cur, _TRIGGERS.format(action=action))]


def _rows(cur: Cursor, query: str) -> list[tuple[Any, ...]]:
    cur.execute(query)
    return cur.fetchall()


def _changed(cur: Cursor, statement: str) -> int:
    cur.execute(statement)
    return int(cur.rowcount)


def _level(resource_type: int) -> str:
    return LEVELS[resource_type] if 0 <= resource_type < len(LEVELS) else f"resource type {resource_type}"
