"""What there is before anything is done: the real layout, the data, the rights, the others on the database.

Nothing is written, and no big table is counted: the sizes are the server's own estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2.errors
from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.locks import Session, clients
from pgorthanc_cli.schema import catalog, duplicates
from pgorthanc_cli.upgrade import mend
from pgorthanc_cli.upgrade.obstacles import index_tables, obstacles

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SHOWN = 5
_DUPLICATES_WAIT = "20s"

_SIZES = """
    SELECT c.relname, CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 100 END::bigint,
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
    """How big a table of the index is.

    Attributes:
        name: Its name.
        rows: How many rows the server thinks it has.
        size_bytes: Its size, without indexes.
        index_bytes: The size of its indexes.
        tablespace: Where it lies.
    """

    name: str
    rows: int
    size_bytes: int
    index_bytes: int
    tablespace: str | None

    def __str__(self) -> str:
        """A line of the plan."""
        return f"{self.name}: about {self.rows:,} rows, {self.size_bytes:,} bytes, indexes {self.index_bytes:,} bytes"


@dataclass(frozen=True)
class Replica:
    """A standby that follows this server, and how far it is behind."""

    name: str
    state: str | None
    behind_bytes: int | None
    lag: timedelta | None

    def __str__(self) -> str:
        """A line of the plan."""
        behind = "unknown" if self.behind_bytes is None else f"{self.behind_bytes:,} bytes"
        return f"{self.name}: {self.state or 'unknown'}, behind by {behind}" + (
            f", {self.lag}" if self.lag else ""
        )


@dataclass(frozen=True)
class Survey:
    """An index, and what is around it, before a change.

    Attributes:
        schema: PostgreSQL namespace.
        damage: The revision that it really has, what it says itself, and what is wrong with it.
        obstacles: What has to be settled by somebody before anything can be done.
        trigram: State of the trigram index, see `catalog.trigram`.
        tables: Sizes, the biggest table first.
        patients: About how many patients there are, as the counter says.
        sessions: Who else is connected with the database.
        locks: Who holds Orthanc's locks.
        replicas: Standbys.
    """

    schema: str
    damage: mend.Damage
    obstacles: tuple[str, ...]
    trigram: str
    tables: tuple[Table, ...]
    patients: int
    sessions: tuple[Session, ...]
    locks: tuple[db.LockHolder, ...]
    replicas: tuple[Replica, ...]

    def rows(self, table: str) -> int:
        """About how many rows a table has, 0 if it is not there."""
        return next((entry.rows for entry in self.tables if entry.name == table), 0)


def survey(conn: Connection, schema: str, to: int, *, ours: tuple[int, ...] = ()) -> Survey:
    """Look at everything that a change to revision `to` depends on; leaves no transaction open.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or nothing that is like any revision.
    """
    found = catalog.snapshot(conn, schema)
    damage = mend.diagnose(conn, schema)
    names = index_tables(found)
    surveyed = Survey(
        schema=schema,
        damage=damage,
        obstacles=obstacles(conn, schema, found, damage, to),
        trigram=catalog.trigram(conn, found),
        tables=tuple(Table(*row) for row in _rows(conn, _SIZES, names)),
        patients=_patients(conn, found),
        sessions=tuple(clients(conn, ours)),
        locks=tuple(db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)),
        replicas=tuple(Replica(*row) for row in _rows(conn, _REPLICAS)),
    )
    conn.commit()
    return surveyed


def find_duplicates(conn: Connection, found: catalog.Catalog) -> tuple[duplicates.Duplicate, ...] | None:
    """Public ids that occur more than once, one scan; None: the scan would take too long just to look.

    The constraint of revision 2, or a valid index made for it, says that there are none.
    """
    unique = found.get("index pgorthanc_uniquepublicid", " INVALID")
    if "constraint resources.uniquepublicid" in found or not unique.endswith(" INVALID"):
        return ()
    try:
        with conn.cursor() as cur:
            cur.execute("SELECT set_config('statement_timeout', %s, true)", (_DUPLICATES_WAIT,))
        return tuple(duplicates.find(conn))
    except psycopg2.errors.QueryCanceled:
        return None
    finally:
        conn.rollback()


def _patients(conn: Connection, found: catalog.Catalog) -> int:
    if "counter 2" not in found:
        return 0
    ((value,),) = _rows(conn, "SELECT max(value) FROM index.globalintegers WHERE key = 2")
    return int(value or 0)


def _rows(conn: Connection, query: str | sql.Composable, *arguments: object) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(query, arguments or None)
        return cur.fetchall()
