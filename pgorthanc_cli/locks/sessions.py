"""The other sessions on a database, and how to end them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# What a role may not see of others (client_addr, backend_type, ...) is NULL; background workers have no role.
_SESSIONS = """
    SELECT pid, application_name, usename, host(client_addr), backend_start, state,
           CASE WHEN state LIKE 'idle%' THEN state_change END,
           CASE WHEN backend_type IS NOT NULL AND state <> 'disabled' THEN query END, coalesce(locks, '{}')
        FROM pg_stat_activity LEFT JOIN (
            SELECT pid, array_agg(objid::bigint ORDER BY objid::bigint) AS locks FROM pg_locks
                WHERE locktype = 'advisory' AND classid = 0 AND objsubid = 1 AND granted
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                GROUP BY pid
        ) held USING (pid)
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
        ORDER BY backend_start, pid
"""
# The temporary tables that the plugin makes in its sessions, from 6.0 on. Everybody may see that they are there.
# Before PostgreSQL 16 the numbers of pg_stat_get_backend_idset were not those in the names of temporary schemas.
_TEMPORARY = """
    SELECT pg_stat_get_backend_pid(number) FROM pg_stat_get_backend_idset() AS ids(number)
        JOIN pg_namespace n ON n.nspname = 'pg_temp_' || number
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname IN ('deletedfiles', 'deletedresources')
"""
_TEMPORARY_SINCE = 160000
# Idle sessions that no client has: their last statement is what PgBouncer (server_reset_query), or a program's own
# pool, sends when a client has given one back. Behind a pooler those from its place, too, in which one of our own
# commands looked last; and for the rest that came from there it cannot be known.
_OF_POOLER = """
    SELECT other.pid, other.query ~* '^ *(DISCARD|RESET|DEALLOCATE) ALL *;? *$' OR (%(pooled)s AND (
               other.query LIKE 'SELECT pg_catalog.pg_backend_pid()%%' OR other.query = 'DISCARD TEMP'
               OR starts_with(other.query, %(reading)s)))
        FROM pg_stat_activity me JOIN pg_stat_activity other ON other.datname = me.datname
        WHERE me.pid = pg_backend_pid() AND other.pid <> me.pid AND other.state = 'idle'
            AND (other.query ~* '^ *(DISCARD|RESET|DEALLOCATE) ALL *;? *$'
                 OR (%(pooled)s AND other.client_addr IS NOT DISTINCT FROM me.client_addr))
"""
_TOOLS = ("psql", "pg_dump", "pg_restore", "pgAdmin", "DBeaver", "DataGrip", "pg_activity")


@dataclass(frozen=True)
class Session:
    """Another session on the database; None is what the role may not see.

    Attributes:
        pid: Process of the server that serves it.
        application: Its application_name.
        role: The role it has logged in with.
        address: Where it comes from; None: the local socket, or hidden.
        since: When it connected.
        state: `active`, `idle`, `idle in transaction`.
    """

    pid: int
    application: str | None
    role: str | None
    address: str | None
    since: datetime | None
    state: str | None

    def __str__(self) -> str:
        """As errors name it."""
        since = f" since {self.since:%Y-%m-%d %H:%M:%S}" if self.since else ""
        state = f", {self.state}" if self.state else ""
        return (
            f"pid {self.pid}, application {self.application or 'without a name'}, "
            f"role {self.role or 'hidden'}, address {self.address or 'local'}{since}{state}"
        )


@dataclass(frozen=True)
class Observed(Session):
    """A session seen closely.

    Attributes:
        idle_since: When it became idle; None: it works, or that is hidden.
        query: Its last statement, which may hold patient data and is never shown; None: hidden.
        locks: The advisory locks that it holds.
        temporary: It has the temporary tables of Orthanc's plugin, as far as the server can tell.
    """

    idle_since: datetime | None
    query: str | None = field(repr=False)
    locks: tuple[int, ...]
    temporary: bool

    __str__ = Session.__str__

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this tool's own commands."""
        return (self.application or "").startswith("pgorthanc")

    @property
    def is_tool(self) -> bool:
        """Whether it is a tool of an administrator, by its name: what it says to the index proves nothing."""
        return (self.application or "").startswith(_TOOLS)


def others(conn: Connection, ours: Sequence[int] = ()) -> list[Session]:
    """All other client sessions on this database, without the pids that are ours."""
    return [Session(*row[:6]) for row in _sessions(conn) if row[0] not in ours]


def clients(conn: Connection, ours: Sequence[int] = ()) -> list[Session]:
    """All other sessions that a client may have: without those that a pooler keeps for the next one, as far as seen."""
    kept = {pid for pid, given_back in of_pooler(conn).items() if given_back}
    return [session for session in others(conn, ours) if session.pid not in kept]


def of_pooler(conn: Connection) -> dict[int, bool]:
    """The idle sessions that may be a pooler's, by process: True if no client has it.

    In session mode a client has its session until it leaves, and the pooler then runs its server_reset_query: a
    session whose last statement that is belongs to no client. Where there is no such query, or the role may not see
    it, an idle session from the place of the pooler through which we came may be either.
    """
    if not isinstance(conn, db.Session):
        return {}
    with conn.cursor() as cur:
        cur.execute(_OF_POOLER, {"pooled": conn.pooled, "reading": db.READ_PREAMBLE})
        return {pid: bool(given_back) for pid, given_back in cur.fetchall()}


def observe(conn: Connection) -> list[Observed]:
    """All other client sessions on this database, with their advisory locks and what they did last."""
    found = _sessions(conn)
    temporary: set[int] = set()
    if conn.server_version >= _TEMPORARY_SINCE:
        with conn.cursor() as cur:
            cur.execute(_TEMPORARY)
            temporary = {pid for (pid,) in cur.fetchall()}
    return [Observed(*(*row[:8], tuple(row[8]), row[0] in temporary)) for row in found]


def _sessions(conn: Connection) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute("SELECT pg_stat_clear_snapshot()")
        cur.execute(_SESSIONS)
        return cur.fetchall()


def end(conn: Connection, found: Sequence[Session]) -> None:
    """Ask the server to end these sessions; those that are gone already do not matter.

    Raises:
        psycopg2.errors.InsufficientPrivilege: The role may not.
    """
    with conn.cursor() as cur:
        for session in found:
            # The pid may be somebody else's by now; when a session began tells them apart.
            cur.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid = %s AND datname = current_database() AND backend_start IS NOT DISTINCT FROM %s""",
                (session.pid, session.since),
            )
