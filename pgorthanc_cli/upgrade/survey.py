"""The state of an index and its server before a change: drift, obstacles, sizes, sessions, standbys.

Writes nothing, and counts no big table: the sizes are the server's own estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.db import pooler
from pgorthanc_cli.locks import Session, client_sessions
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.schema import catalog, duplicates
from pgorthanc_cli.upgrade.drift import SchemaDrift, index_tables, inspect, obstacles
from pgorthanc_cli.upgrade.model import Obstacle

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_DUPLICATES_WAIT = "20s"

# A table without pages in the statistics was never analyzed, or was empty at that time. Before PostgreSQL 14
# both read as 0 rows, so that its size tells instead.
_SIZES = """
    SELECT c.relname, CASE WHEN c.relpages > 0 AND c.reltuples >= 0 THEN c.reltuples
                           ELSE pg_relation_size(c.oid) / 100 END::bigint,
           pg_table_size(c.oid), pg_indexes_size(c.oid),
           coalesce(t.spcname, (SELECT spcname FROM pg_database d JOIN pg_tablespace s ON s.oid = d.dattablespace
                                    WHERE d.datname = current_database()))
        FROM pg_class c LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
        WHERE c.relnamespace = quote_ident(index_schema())::regnamespace AND c.relkind = 'r' AND c.relname = ANY (%s)
        ORDER BY pg_table_size(c.oid) DESC, 1
"""
_REPLICAS = """
    SELECT coalesce(nullif(application_name, ''), client_addr::text, 'pid ' || pid), state,
           pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint, replay_lag
        FROM pg_stat_replication ORDER BY 1
"""


@dataclass(frozen=True)
class Table:
    """The size of a table of the index.

    Attributes:
        name: Its name.
        rows: The server's estimate of its rows.
        size_bytes: Its size, without indexes.
        index_bytes: The size of its indexes.
        tablespace: Its tablespace.
    """

    name: str
    rows: int
    size_bytes: int
    index_bytes: int
    tablespace: str | None


@dataclass(frozen=True)
class Replica:
    """A standby that follows this server, and its lag."""

    name: str
    state: str | None
    behind_bytes: int | None
    lag: timedelta | None


@dataclass(frozen=True)
class Survey:
    """An index and its surroundings before a change.

    Attributes:
        schema: PostgreSQL namespace.
        drift: Its actual revision, and how the schema differs from that.
        obstacles: What an administrator must fix first.
        trigram: State of the trigram index, see `catalog.trigram`.
        tables: Sizes, the biggest table first.
        patients: The number of patients, by the counter.
        sessions: The other sessions on the database.
        locks: The holders of Orthanc's locks.
        replicas: Standbys.
    """

    schema: str
    drift: SchemaDrift
    obstacles: tuple[Obstacle, ...]
    trigram: str
    tables: tuple[Table, ...]
    patients: int
    sessions: tuple[Session, ...]
    locks: tuple[db.LockHolder, ...]
    replicas: tuple[Replica, ...]

    def rows(self, table: str) -> int:
        """Return about how many rows a table has, 0 if there is no such table."""
        return next((entry.rows for entry in self.tables if entry.name == table), 0)


def survey(conn: Connection, schema: str, to: int) -> Survey:
    """Return everything that a change to revision `to` depends on; leaves no transaction open.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or nothing that is like any revision.
    """
    objects = catalog.snapshot(conn, schema)
    drift = inspect(conn, schema)
    patients = 0
    if "counter 2" in objects:
        patients = db.value(conn, "SELECT max(value) FROM index.globalintegers WHERE key = 2")
    result = Survey(
        schema=schema,
        drift=drift,
        obstacles=(*_shared_sessions(conn), *obstacles(conn, schema, objects, drift, to)),
        trigram=catalog.trigram(conn, objects),
        tables=tuple(Table(*row) for row in db.rows(conn, _SIZES, index_tables(objects))),
        patients=int(patients or 0),
        sessions=tuple(client_sessions(conn, ())),
        locks=tuple(db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)),
        replicas=tuple(Replica(*row) for row in db.rows(conn, _REPLICAS)),
    )
    conn.commit()
    return result


def _shared_sessions(conn: Connection) -> list[Obstacle]:
    """Return that a pooler shares its sessions between clients, if it does."""
    obstacle = pooler.shared_sessions(conn) if isinstance(conn, db.Session) else None
    return [Obstacle(obstacle.message, obstacle.hint or "")] if obstacle else []


def find_duplicates(
    conn: Connection, objects: catalog.Catalog, report: Report
) -> tuple[duplicates.Duplicate, ...] | None:
    """Return the public ids that occur more than once, by one scan; None: the scan would take too long for a plan.

    The constraint of revision 2, or a valid index built for it, proves that there are none.
    """
    unique = objects.get("index pgorthanc_uniquepublicid", " INVALID")
    if "constraint resources.uniquepublicid" in objects or not unique.endswith(" INVALID"):
        return ()
    report = db.announce_scans(conn, ["resources"], report)
    report(Progress("", "looking for duplicate public ids", 1, 1))
    try:
        db.rows(conn, "SELECT set_config('statement_timeout', %s, true)", _DUPLICATES_WAIT)
        return tuple(duplicates.find(conn))
    except psycopg2.errors.QueryCanceled:
        return None
    finally:
        conn.rollback()
