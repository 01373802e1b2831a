"""The other sessions on a database, and how to end them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.text import moment_with_offset

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# From 6.0 on the plugin creates these temporary tables in its sessions. Every role may see that they exist.
# Before PostgreSQL 16 the numbers of pg_stat_get_backend_idset were not those in the names of temporary schemas.
_WITH_TEMPORARY_TABLES = """
    SELECT pg_stat_get_backend_pid(number) FROM pg_stat_get_backend_idset() AS ids(number)
        JOIN pg_namespace n ON n.nspname = 'pg_temp_' || number
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname IN ('deletedfiles', 'deletedresources')
"""
_BACKEND_NUMBERS_SINCE = 160000
# Idle sessions without a client: the last statement is what PgBouncer (server_reset_query) or a program's own pool
# sends when a client returns one. If we come through a pooler: also those from its address in which one of our own
# commands ran last; for the others from there it cannot be known.
_POOLED = """
    SELECT other.pid, other.query ~* '^ *(DISCARD|RESET|DEALLOCATE) ALL *;? *$' OR (%(pooled)s AND (
               other.query LIKE 'SELECT pg_catalog.pg_backend_pid()%%' OR other.query = 'DISCARD TEMP'
               OR starts_with(other.query, %(reading)s)))
        FROM pg_stat_activity me JOIN pg_stat_activity other ON other.datname = me.datname
        WHERE me.pid = pg_backend_pid() AND other.pid <> me.pid AND other.state = 'idle'
            AND (other.query ~* '^ *(DISCARD|RESET|DEALLOCATE) ALL *;? *$'
                 OR (%(pooled)s AND other.client_addr IS NOT DISTINCT FROM me.client_addr))
"""
_TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid = %s AND datname = current_database() AND backend_start IS NOT DISTINCT FROM %s
"""
_TOOLS = ("psql", "pg_dump", "pg_restore", "pgAdmin", "DBeaver", "DataGrip", "pg_activity")


@dataclass(frozen=True)
class Session:
    """Another session on the database; None where the role may not see it.

    Attributes:
        pid: Its server process.
        application: Its application_name.
        role: Its role.
        address: Client address; None: the local socket, or hidden.
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
        """Return one line for messages."""
        facts = [f"pid {self.pid}"]
        if self.application:
            facts.append(f"application {self.application}")
        if self.role:
            facts.append(f"role {self.role}")
        facts.append(f"address {self.address or ('local socket' if self.since else 'hidden')}")
        if self.state:
            facts.append(self.state)
        if self.since:
            facts.append(f"connected since {moment_with_offset(self.since)}")
        return ", ".join(facts)


@dataclass(frozen=True)
class Observed(Session):
    """A session with what it holds and did last; never shown as a whole.

    Attributes:
        idle_since: When it became idle; None: it is active, or that is hidden.
        query: Its last statement, which may hold patient data and is never shown; None: hidden.
        locks: The advisory locks that it holds.
        temporary: Whether it has the temporary tables of the plugin; False before PostgreSQL 16.
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
        """Whether its name is that of an administration tool, whose statements prove nothing."""
        return (self.application or "").startswith(_TOOLS)


def other_sessions(conn: Connection, ours: Sequence[int] = ()) -> list[Session]:
    """Return the other client sessions on this database, without the pids that are `ours`."""
    return [Session(*row[:6]) for row in _sessions(conn) if row[0] not in ours]


def client_sessions(conn: Connection, ours: Sequence[int] = ()) -> list[Session]:
    """Return the other sessions, without those that a pooler keeps for its next client."""
    idle = {pid for pid, is_free in pooled_sessions(conn).items() if is_free}
    return [session for session in other_sessions(conn, ours) if session.pid not in idle]


def pooled_sessions(conn: Connection) -> dict[int, bool]:
    """Return the idle sessions that may be a pooler's, by pid: True if no client uses it.

    In session mode a client keeps its session until it leaves, and the pooler then runs its
    server_reset_query: a session with that last statement has no client. Without such a query,
    or if the role may not see it, an idle session from the address of the pooler through which
    we came may be either.
    """
    if not isinstance(conn, db.Session):
        return {}
    with conn.cursor() as cur:
        cur.execute(_POOLED, {"pooled": conn.pooled, "reading": db.READ_PREAMBLE})
        return {pid: bool(is_free) for pid, is_free in cur.fetchall()}


def observe(conn: Connection) -> list[Observed]:
    """Return the other client sessions on this database, with their locks and last statements."""
    sessions = _sessions(conn)
    with_temporary: set[int] = set()
    if conn.server_version >= _BACKEND_NUMBERS_SINCE:
        with_temporary = {pid for (pid,) in db.rows(conn, _WITH_TEMPORARY_TABLES)}
    return [Observed(*(*columns, tuple(locks), columns[0] in with_temporary)) for *columns, locks in sessions]


def _sessions(conn: Connection) -> list[tuple[Any, ...]]:
    # Within a transaction the server would return the sessions of the first query again.
    db.rows(conn, "SELECT pg_stat_clear_snapshot()")
    return db.rows(conn, db.statement(__package__, "sessions.sql"))


def terminate_sessions(conn: Connection, sessions: Sequence[Session]) -> None:
    """Ask the server to end these sessions; those that have ended already do not matter.

    Raises:
        psycopg2.errors.InsufficientPrivilege: The role may not.
    """
    with conn.cursor() as cur:
        for session in sessions:
            # Another session may have this pid by now; backend_start tells them apart.
            cur.execute(_TERMINATE, (session.pid, session.since))
