"""The state of an index, read without writing and without counting big tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Enough to see that housekeeping is behind; an exact count of more takes too long.
_MOST_MARKS = 100_000

# GlobalIntegers: the names of its keys 0 to 5 (SCHEMA.md 5).
_COUNTERS = ("compressed_size_bytes", "uncompressed_size_bytes", "patients", "studies", "series", "instances")

# The reception date of the instance that was stored last, as text in UTC: backwards over two primary keys.
_NEWEST = """
    SELECT metadata.value FROM index.resources resource JOIN index.metadata metadata
        ON metadata.id = resource.internalid AND metadata.type = 2
        WHERE resource.resourcetype = 3 ORDER BY resource.internalid DESC LIMIT 1
"""
_SIZE = """
    SELECT coalesce(sum(pg_table_size(c.oid) + pg_indexes_size(c.oid)), 0)::bigint
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = index_schema() AND c.relkind = 'r'
"""
# The numbers of connections are visible to every role. Background workers have no role.
_SESSIONS = """
    SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'),
           (SELECT sum(numbackends) FROM pg_stat_database)::integer,
           current_setting('max_connections')::integer, clock_timestamp()
"""
_OTHER_SCHEMAS = """
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relname IN ('resources', 'globalproperties') AND n.nspname <> %s
        GROUP BY n.nspname HAVING count(*) = 2 ORDER BY n.nspname
"""


@dataclass(frozen=True)
class NoIndex:
    """A schema without an Orthanc index.

    Attributes:
        endpoint: Where we looked.
        schema: PostgreSQL namespace.
        revision: None, as there is no index.
        objects: Number of other objects in the schema.
        other_schemas: Schemas of this database that may contain an index.
    """

    endpoint: db.Endpoint
    schema: str
    revision: None
    objects: int
    other_schemas: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """An index at a glance.

    Attributes:
        schema: PostgreSQL namespace.
        revision: Revision recognised from the tables; `unknown` before revision 1.
        recorded_revision: Global property 4, None if it is missing.
        schema_version: Version of the database as Orthanc understands it (global property 1).
        plugins: Releases of Orthanc's PostgreSQL plugin that work with this revision.
        patients: Number of patients; None where the layout has no counters.
        studies: Number of studies.
        series: Number of series.
        instances: Number of instances.
        compressed_size_bytes: Size of all attachments as they are stored.
        uncompressed_size_bytes: Size of all attachments before compression.
        storage_area: `postgresql` (large objects) or `filesystem`, as far as the database knows.
        trigram: State of the trigram index, see `catalog.trigram`.
        locks: The holders of Orthanc's locks in this database.
        server_version: Version of PostgreSQL.
        pending: The pending work of housekeeping: `statistics_deltas`, and `child_counts` (at most 100000).
        endpoint: Where we looked.
        newest: When the newest instance was stored, in local time; None without instances.
        index_bytes: Size of the tables and their indexes on disk, without large objects.
        sessions: Number of other sessions in this database.
        connections: Number of connections to the server, in all databases.
        max_connections: The server's limit for these.
        time: The server's clock, in local time.
        areas: Where the newest and the oldest attachments are, as `storage show` names the
            areas; whoever reads them adds this and the following.
        areas_not_found: Those that an Orthanc with the given configuration does not read.
        kept_customdata: Attachments whose customdata a downgrade has put aside.
    """

    schema: str
    revision: int | str
    recorded_revision: int | None
    schema_version: int | None
    plugins: str
    patients: int | None
    studies: int | None
    series: int | None
    instances: int | None
    compressed_size_bytes: int | None
    uncompressed_size_bytes: int | None
    storage_area: str
    trigram: str
    locks: list[db.LockHolder]
    server_version: str
    pending: dict[str, int]
    endpoint: db.Endpoint
    newest: datetime | None
    index_bytes: int
    sessions: int
    connections: int
    max_connections: int
    time: datetime
    areas: tuple[str, ...] = ()
    areas_not_found: tuple[str, ...] = ()
    kept_customdata: int = 0


def find(conn: Connection, schema: str) -> Status | NoIndex:
    """Return the state of the index in a schema, or what the schema contains instead of one.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: Its tables have no known layout.
    """
    objects = catalog.snapshot(conn, schema)
    layout = catalog.layout(objects, schema)
    if layout is not None:
        return _status(conn, schema, objects, layout)
    others = tuple(name for (name,) in db.rows(conn, _OTHER_SCHEMAS, schema))
    return NoIndex(db.endpoint(conn), schema, None, len(objects), others)


def status(conn: Connection, schema: str) -> Status:
    """Return the state of the index in a schema, at any revision.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or one of no known layout.
    """
    objects = catalog.snapshot(conn, schema)
    return _status(conn, schema, objects, catalog.require_index(conn, schema, objects))


def _status(conn: Connection, schema: str, objects: catalog.Catalog, layout: catalog.Layout) -> Status:
    counters, deltas = _counters(conn, objects)
    counts: dict[str, Any] = {name: counters.get(key) for key, name in enumerate(_COUNTERS)}
    [(sessions, connections, max_connections, now)] = db.rows(conn, _SESSIONS)
    return Status(
        schema=schema,
        revision=layout.revision or layout.name,
        recorded_revision=_number(objects.get("property 4")),
        schema_version=_number(objects.get("property 1")),
        plugins=layout.plugins,
        **counts,
        storage_area=_storage_area(conn, objects),
        trigram=catalog.trigram(conn, objects),
        locks=db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP),
        server_version=str(conn.info.parameter_status("server_version")),
        pending={"statistics_deltas": deltas, "child_counts": _marks(conn, objects)},
        endpoint=db.endpoint(conn),
        newest=_newest(conn, objects),
        index_bytes=db.value(conn, _SIZE),
        sessions=sessions,
        connections=connections,
        max_connections=max_connections,
        time=now.astimezone(),
    )


def _counters(conn: Connection, objects: catalog.Catalog) -> tuple[dict[int, int | None], int]:
    """Return the counters by their key, pending deltas included, and the number of these deltas."""
    if "table globalintegers" not in objects:
        return {}, 0
    query = "SELECT key, value, 0 FROM index.globalintegers"
    if "table globalintegerschanges" in objects:
        query = """SELECT counter.key, counter.value + coalesce(delta.total, 0)::bigint, coalesce(delta.number, 0)
                   FROM index.globalintegers counter LEFT JOIN (
                       SELECT key, sum(value) AS total, count(*) AS number FROM index.globalintegerschanges GROUP BY key
                   ) delta USING (key)"""
    rows = db.rows(conn, query)
    return {key: value for key, value, _ in rows}, sum(number for _, _, number in rows)


def _storage_area(conn: Connection, objects: catalog.Catalog) -> str:
    """Return where the files are: the table may exist although Orthanc writes to the filesystem."""
    if "table storagearea" not in objects:
        return "filesystem"
    used = "SELECT EXISTS (SELECT FROM index.storagearea) OR NOT EXISTS (SELECT FROM index.attachedfiles)"
    return "postgresql" if db.value(conn, used) else "filesystem"


def _marks(conn: Connection, objects: catalog.Catalog) -> int:
    if "table invalidchildcounts" not in objects:
        return 0
    query = "SELECT count(*) FROM (SELECT FROM index.invalidchildcounts LIMIT %s) AS marks"
    return int(db.value(conn, query, _MOST_MARKS))


def _newest(conn: Connection, objects: catalog.Catalog) -> datetime | None:
    if not {"column metadata.type", "column resources.resourcetype"} <= objects.keys():
        return None
    # Not strptime, whose import takes as long as all statements.
    received = re.fullmatch(
        r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", db.value(conn, _NEWEST) or "", re.ASCII
    )
    if not received:
        # No instance, or whatever a program has written there.
        return None
    try:
        year, month, day, hour, minute, second = map(int, received.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).astimezone()
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
