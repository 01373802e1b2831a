"""Where the attachments of an index are, and how large they are; only reads tables.

What the index and the database say. Whether the files exist is what `verify storage` checks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pgorthanc_cli import db, index
from pgorthanc_cli.index import customdata
from pgorthanc_cli.progress import Progress, Report, silent

_FETCHED = 10_000
_CONTENTS = {1: "dicom", 2: "dicom-as-json", 3: "dicom-until-pixel-data"}
_COMPRESSIONS = {1: "none", 2: "zlib"}

# All columns of type oid in tables of users: as with vacuumlo, what one of them names is in use.
_OID_COLUMNS = """
    SELECT format('%I.%I', n.nspname, c.relname), quote_ident(a.attname),
           has_table_privilege(c.oid, 'SELECT')
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relkind IN ('r', 'm', 'p') AND a.attnum > 0 AND NOT a.attisdropped
            AND (t.typname = 'lo' OR t.oid = 'oid'::regtype) AND n.nspname !~ '^pg_'
"""
_BY = {
    # Modality of the series, tag 0008,0060.
    "modality": """LEFT JOIN index.maindicomtags t ON t.taggroup = 8 AND t.tagelement = 96
        AND t.id = CASE r.resourcetype WHEN 3 THEN r.parentid WHEN 2 THEN r.internalid END""",
    # StudyDate, tag 0008,0020.
    "year": """LEFT JOIN index.resources series ON r.resourcetype = 3 AND series.internalid = r.parentid
        LEFT JOIN index.maindicomtags t ON t.taggroup = 8 AND t.tagelement = 32
        AND t.id = CASE r.resourcetype WHEN 3 THEN series.parentid
                                       WHEN 2 THEN r.parentid WHEN 1 THEN r.internalid END""",
}
_VALUES = {"modality": "trim(t.value)", "year": "substring(t.value from '^[0-9]{4}')"}


@dataclass(frozen=True)
class Area:
    """One place of attachments.

    Attributes:
        kind: `filesystem`, `postgresql` (large objects), `advanced-storage` (files that the
            plugin owns), `adopted` (files that it only reads), or `unknown`: another
            plugin's, or customdata in an unknown format.
        storage: Id of the plugin's storage, empty for all others.
        attachments: How many.
        bytes: Of their content, as Orthanc serves it.
        stored_bytes: What they take: the sizes of their files, or the whole table of the
            large objects with its index.
        overhead_percent: How much more than `bytes` that is, negative if it is less; None
            without content.
    """

    kind: str
    storage: str
    attachments: int
    bytes: int
    stored_bytes: int
    overhead_percent: float | None


@dataclass(frozen=True)
class Content:
    """Attachments of one kind in an area.

    Attributes:
        area: The kind of the area.
        content: `dicom`, `dicom-as-json`, `dicom-until-pixel-data`, or `user`.
        compression: `none`, `zlib`, or the number that the index has.
        attachments: How many.
        bytes: Of their content.
        stored_bytes: As the index has them.
    """

    area: str
    content: str
    compression: str
    attachments: int
    bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Group:
    """Attachments with one modality, or of one year.

    Attributes:
        by: `modality` or `year` (of StudyDate).
        value: Empty if it is not known.
        attachments: How many.
        bytes: Of their content.
        stored_bytes: As the index has them.
    """

    by: str
    value: str
    attachments: int
    bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Shown:
    """Where the attachments are.

    Attributes:
        areas: The places, by what the index and the database say.
        contents: The same by kind and compression.
        groups: By modality or year, if that was asked for.
        orphans: Large objects that no attachment names: rows of `storagearea`, and objects
            of its owner that no table names.
        wrong_owner: Large objects of the storage area that Orthanc's role may not delete.
        owner: That role, None without a storage area.
        other_objects: Large objects of other programs.
        unreadable_tables: Tables with a column of type oid that this role may not read, so
            that objects without a name could not be looked for.
        endpoint: Where we looked.
    """

    areas: tuple[Area, ...]
    contents: tuple[Content, ...]
    groups: tuple[Group, ...]
    orphans: int
    wrong_owner: int
    owner: str | None
    other_objects: int
    unreadable_tables: tuple[str, ...]
    endpoint: db.Endpoint


_Sums = dict[tuple[str, str, int, int], list[int]]


def show(
    target: db.Target,
    by: Sequence[Literal["modality", "year"]] = (),
    *,
    limit_s: float | None = None,
    report: Report = silent,
) -> Shown:
    """Return where the attachments of an index are, and how large they are.

    Args:
        target: The index.
        by: Also sum them by this.
        limit_s: The longest that one of the statements may take; None: no limit.
        report: If the tables are large: receives that they will be read, then each step.

    Raises:
        RevisionError: There is no index.
        StatementCancelled: A statement took longer than `limit_s`.
    """
    tables = ("attachedfiles", "storagearea", *(("resources", "maindicomtags") if by else ()))
    with db.session(target, readonly=True) as conn:
        if limit_s:
            conn.limit_statements(limit_s)
        report = db.announce_scans(conn, tables, report)
        capabilities = index.Capabilities.read(conn)
        has_area = db.value(
            conn, "SELECT to_regclass(quote_ident(index_schema()) || '.storagearea') IS NOT NULL"
        )
        total = 1 + has_area + len(by)
        report(Progress("", "adding up attachments", 1, total))
        sums = _contents(conn, capabilities, has_area=has_area)
        if has_area:
            report(Progress("", "looking for orphaned large objects", 2, total))
        orphans, wrong_owner, owner, disk_bytes = (
            db.row(conn, db.statement(__package__, "objects.sql")) if has_area else None
        ) or (0, 0, None, 0)
        loose, others, unreadable = _loose_objects(conn, owner) if owner else (0, 0, ())
        groups: list[Group] = []
        for number, each in enumerate(by, total - len(by) + 1):
            report(Progress("", f"adding up by {each}", number, total))
            groups += _groups(conn, each)
        return Shown(
            areas=tuple(_areas(sums, disk_bytes)),
            contents=tuple(_by_content(sums)),
            groups=tuple(groups),
            orphans=orphans + loose,
            wrong_owner=wrong_owner,
            owner=owner,
            other_objects=others,
            unreadable_tables=unreadable,
            endpoint=db.endpoint(conn),
        )


def _contents(conn: db.Session, capabilities: index.Capabilities, *, has_area: bool) -> _Sums:
    """Return number, size and stored size by kind of area, storage, file type and compression."""
    sums: _Sums = defaultdict(lambda: [0, 0, 0])
    query = db.statement(__package__, "contents.sql")
    if capabilities.custom_data:
        # Not NULLIF: the planner would expect few rows, and sort all of them on disk.
        query = query.replace("/* customdata */ true", "(a.customdata IS NULL OR a.customdata = '')")
    if not has_area:
        nothing = "(SELECT ''::text AS uuid, 0 AS type WHERE false)"
        query = query.replace("/* storagearea */ index.storagearea", nothing)
    for is_object, file_type, compression, *figures in db.rows(conn, query):
        key = ("postgresql" if is_object else "filesystem", "", file_type, compression)
        sums[key] = [int(figure or 0) for figure in figures]
    if capabilities.custom_data:
        for place, file_type, compression, size, stored in _with_customdata(conn):
            key = (place[0], place[1], file_type, compression)
            entry = sums[key]
            entry[0] += 1
            entry[1] += size or 0
            entry[2] += stored or 0
    return sums


def _with_customdata(conn: db.Session) -> Iterator[tuple[Any, ...]]:
    """Yield (kind of area, storage), file type, compression and sizes of rows with customdata."""
    with conn.cursor("pgorthanc_customdata") as cur:
        cur.itersize = _FETCHED
        cur.execute(
            """SELECT customdata, filetype, compressiontype, uncompressedsize, compressedsize
               FROM index.attachedfiles WHERE customdata <> ''"""
        )
        for data, *others in cur:
            custom = customdata.read(bytes(data))
            if custom.plugin != customdata.ADVANCED_STORAGE:
                yield (("unknown", ""), *others)
            elif custom.adopted:
                yield (("adopted", ""), *others)
            else:
                yield (("advanced-storage", custom.storage), *others)


def _areas(sums: _Sums, disk_bytes: int) -> Iterator[Area]:
    areas: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for (kind, storage, _, _), figures in sums.items():
        for position, figure in enumerate(figures):
            areas[kind, storage][position] += figure
    for (kind, storage), (count, size, stored) in sorted(areas.items()):
        taken = disk_bytes if kind == "postgresql" else stored
        overhead = round(100 * (taken / size - 1), 1) if size else None
        yield Area(kind, storage, count, size, taken, overhead)


def _by_content(sums: _Sums) -> Iterator[Content]:
    contents: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for (kind, _, file_type, compression), figures in sums.items():
        key = kind, _CONTENTS.get(file_type, "user"), _COMPRESSIONS.get(compression, str(compression))
        for position, figure in enumerate(figures):
            contents[key][position] += figure
    for key, figures in sorted(contents.items()):
        yield Content(*key, *figures)


def _groups(conn: db.Session, by: str) -> Iterator[Group]:
    query = f"""SELECT COALESCE({_VALUES[by]}, ''), count(*), sum(a.uncompressedsize)::int8,
            sum(a.compressedsize)::int8
        FROM index.attachedfiles a JOIN index.resources r ON r.internalid = a.id {_BY[by]}
        GROUP BY 1 ORDER BY 4 DESC, 1"""  # noqa: S608 - constants
    for value, count, size, stored in db.rows(conn, query):
        yield Group(by, value, count, size or 0, stored or 0)


def _loose_objects(conn: db.Session, owner: str) -> tuple[int, int, tuple[str, ...]]:
    """Return how many large objects no table names: of this owner, and of others.

    Not if there is a table that this role may not read; its name is returned then.
    """
    columns = db.rows(conn, _OID_COLUMNS)
    unreadable = tuple(sorted({table for table, _, readable in columns if not readable}))
    if unreadable:
        return 0, 0, unreadable
    named = " UNION ALL ".join(
        f"SELECT {column}::oid AS oid FROM {table}"  # noqa: S608 - quoted by the server
        for table, column, _ in columns
    )
    query = f"""WITH named AS MATERIALIZED ({named})
        SELECT count(*) FILTER (WHERE o.is_ours), count(*) FILTER (WHERE NOT o.is_ours)
        FROM (SELECT m.oid, pg_get_userbyid(m.lomowner) = %s AS is_ours FROM pg_largeobject_metadata m) o
        WHERE NOT EXISTS (SELECT FROM named WHERE named.oid = o.oid)"""  # noqa: S608
    ours, others = db.row(conn, query, owner) or (0, 0)
    return ours, others, ()
