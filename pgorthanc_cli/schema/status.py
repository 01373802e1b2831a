"""What an index is and holds, read without writing anything and without counting big tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Enough to see that housekeeping has fallen behind; counting more takes longer than it tells.
_MOST_MARKS = 100_000

# GlobalIntegers: the names of its keys 0 to 5 (SCHEMA.md 5).
_COUNTERS = ("compressed_size_bytes", "uncompressed_size_bytes", "patients", "studies", "series", "instances")


@dataclass(frozen=True)
class Status:
    """An index at a glance.

    Attributes:
        schema: PostgreSQL namespace.
        revision: Revision recognised from the tables; `unknown` before revision 1.
        recorded_revision: What the index says itself (global property 4), None if nothing.
        schema_version: Version of the database as Orthanc means it (global property 1).
        plugins: Releases of Orthanc's PostgreSQL plugin that work with this revision.
        patients: Number of patients; None where the layout has no counters.
        studies: Number of studies.
        series: Number of series.
        instances: Number of instances.
        compressed_size_bytes: Size of all attachments as they are stored.
        uncompressed_size_bytes: Size of all attachments before compression.
        storage_area: `postgresql` (large objects) or `filesystem`, as far as the database knows.
        trigram: State of the trigram index, see `catalog.trigram`.
        locks: Who holds Orthanc's locks in this database.
        server_version: Version of PostgreSQL.
        pending: What housekeeping has still to do: `statistics_deltas`, and `child_counts` (at most 100000).
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


def status(conn: Connection, schema: str) -> Status:
    """The index in a schema, at any revision.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or one of no known layout.
    """
    found = catalog.snapshot(conn, schema)
    here = catalog.layout(found, schema)
    if here is None:
        raise RevisionError(
            f"schema {schema} of database {conn.info.dbname} holds no Orthanc index",
            "name the right one with --dbname and --schema, or make an index: pgorthanc init",
        )
    counters, deltas = _counters(conn, found)
    return Status(
        schema=schema,
        revision=here.revision or here.name,
        recorded_revision=_number(found.get("property 4")),
        schema_version=_number(found.get("property 1")),
        plugins=here.plugins,
        **{name: counters.get(key) for key, name in enumerate(_COUNTERS)},
        storage_area=_storage_area(conn, found),
        trigram=catalog.trigram(conn, found),
        locks=db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP),
        server_version=str(conn.info.parameter_status("server_version")),
        pending={"statistics_deltas": deltas, "child_counts": _marks(conn, found)},
    )


def _counters(conn: Connection, found: catalog.Catalog) -> tuple[dict[int, int | None], int]:
    """The counters by their key, what is still to be added to them included, and how many such deltas there are."""
    if "table globalintegers" not in found:
        return {}, 0
    query = "SELECT key, value, 0 FROM index.globalintegers"
    if "table globalintegerschanges" in found:
        query = """SELECT counter.key, counter.value + coalesce(delta.total, 0)::bigint, coalesce(delta.number, 0)
                   FROM index.globalintegers counter LEFT JOIN (
                       SELECT key, sum(value) AS total, count(*) AS number FROM index.globalintegerschanges GROUP BY key
                   ) delta USING (key)"""
    with conn.cursor() as cur:
        cur.execute(query)
        rows = cur.fetchall()
    return {key: value for key, value, _ in rows}, sum(number for _, _, number in rows)


def _storage_area(conn: Connection, found: catalog.Catalog) -> str:
    """Where the files are: the table may be there although Orthanc writes to the filesystem."""
    if "table storagearea" not in found:
        return "filesystem"
    with conn.cursor() as cur:
        cur.execute(
            "SELECT EXISTS (SELECT FROM index.storagearea) OR NOT EXISTS (SELECT FROM index.attachedfiles)"
        )
        return "postgresql" if (cur.fetchone() or (False,))[0] else "filesystem"


def _marks(conn: Connection, found: catalog.Catalog) -> int:
    if "table invalidchildcounts" not in found:
        return 0
    with conn.cursor() as cur:
        cur.execute(
            "SELECT count(*) FROM (SELECT FROM index.invalidchildcounts LIMIT %s) AS marks", (_MOST_MARKS,)
        )
        return int((cur.fetchone() or (0,))[0])


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
