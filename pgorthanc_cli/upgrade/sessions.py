"""How to be alone on a database."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.locks import Session, clients, end, of_pooler, others
from pgorthanc_cli.progress import Progress

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_POLL_S = 0.2
_CALM_S = 1.0
_EXPEL_S = 15.0
_EXPEL_WAIT = "1s"
_SHOWN = 5

# Not cached for the length of a transaction, as pg_stat_activity is.
_END_OTHERS = """
    SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
        WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND pid <> ALL (%s)
            AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
"""
_WAITING = """
    SELECT DISTINCT l.pid FROM pg_locks l
        WHERE NOT l.granted AND l.locktype = 'relation' AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid))
"""
_BLOCKING = """
    SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
        WHERE l.granted AND l.locktype = 'relation' AND l.pid <> pg_backend_pid()
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND c.relnamespace = quote_ident(index_schema())::regnamespace AND c.relname = ANY (%s)
"""


# A process that serves no client is named by its kind, such as autovacuum worker.
_NAMED = """
    SELECT wanted.pid, coalesce(nullif(a.application_name, ''), nullif(a.backend_type, 'client backend'), ''),
           a.usename::text, pg_catalog.host(a.client_addr), a.backend_start, a.state
        FROM pg_catalog.unnest(%s::pg_catalog.int4[]) AS wanted(pid)
        LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = wanted.pid ORDER BY 1
"""


def waiting(conn: Connection) -> list[Session]:
    """The sessions that wait for a table which this session has locked: they work with the index."""
    with conn.cursor() as cur:
        cur.execute(_WAITING)
        pids = {pid for (pid,) in cur.fetchall()}
    return [session for session in others(conn) if session.pid in pids] if pids else []


def blocking(conn: Connection, tables: Sequence[str]) -> list[Session]:
    """Return the sessions that have some of the tables locked, if only for reading; autovacuum and the like, too."""
    with conn.cursor() as cur:
        cur.execute(_BLOCKING, (list(tables),))
        pids = {pid for (pid,) in cur.fetchall()}
    return named(conn, pids)


def named(conn: Connection, pids: Collection[int]) -> list[Session]:
    """Return the processes of the server with these pids: sessions of clients, and those that serve none."""
    return [Session(*row) for row in db.rows(conn, _NAMED, list(pids))] if pids else []


def in_use(
    found: Sequence[object],
    what: str = "is connected to this database",
    *,
    terminate: bool = False,
    idle: Collection[int] = (),
) -> InUseError:
    """Return the refusal that names them; what was tried in vain is not advised again.

    `idle` may be a pooler's sessions that no client has.
    """
    shown = "; ".join(map(str, found[:_SHOWN])) or "it has just ended"
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    hint = "stop every Orthanc that uses it, then run the same command again"
    if not terminate:
        hint += "; or wait for them with --wait SECONDS, or end their sessions with --terminate"
    if kept := [str(s.pid) for s in found if isinstance(s, Session) and s.pid in idle]:
        hint += (
            f". This connection goes through a pooler, which may keep pid {', '.join(kept)} for no client: connect "
            "to the server itself, or close idle sessions on the pooler's console (PgBouncer: RECONNECT)"
        )
    return InUseError(f"another session {what}: {shown}{more}", hint)


def vacate(
    conn: Connection, *, ours: Sequence[int] = (), wait_s: float = 0, terminate: bool = False
) -> Iterator[Progress]:
    """Wait until no other session is connected, or end those that are.

    Args:
        conn: A connection without an open transaction.
        ours: Pids of further sessions of ours.
        wait_s: How long to wait.
        terminate: End their sessions. A client that connects again and again is no reason to refuse: locks keep it
            out, see `expel`.

    Raises:
        InUseError: Another session is still connected; the message says which.
    """
    started = time.monotonic()
    patience = max(wait_s, _CALM_S) if terminate else wait_s
    while True:
        found = clients(conn, ours)
        if found and terminate:
            end(conn, found)
        conn.commit()
        if not found:
            return
        if time.monotonic() - started >= patience:
            if terminate:
                yield Progress(
                    "switch", f"{len(found)} sessions connect again and again; locks keep them out"
                )
                return
            raise in_use(found, idle=of_pooler(conn))
        yield Progress("switch", f"waiting for {len(found)} sessions to end, such as pid {found[0].pid}")
        time.sleep(_POLL_S)


@contextmanager
def expelled(conn: Connection, lock: int, ours: Sequence[int]) -> Iterator[None]:
    """Hold one of Orthanc's advisory locks, whoever takes it again and again: its holders are ended, and we queue.

    A request that waits comes before all later ones, also before those of pg_try_advisory_lock.

    Raises:
        InUseError: It was not free within 15 seconds; the message says who holds it.
    """
    deadline = time.monotonic() + _EXPEL_S
    while True:
        try:
            db.rows(conn, "SELECT pg_catalog.set_config('lock_timeout', %s, true)", _EXPEL_WAIT)
            end_others(conn, ours)
            db.rows(conn, "SELECT pg_catalog.pg_advisory_lock(%s)", lock)
            conn.commit()
            break
        except psycopg2.errors.LockNotAvailable:
            conn.rollback()
            holders = db.lock_holders(conn, lock)
            conn.rollback()
            if time.monotonic() >= deadline:
                raise in_use(holders, "holds a lock of Orthanc", terminate=True) from None
    try:
        yield
    finally:
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            conn.rollback()
            db.rows(conn, "SELECT pg_catalog.pg_advisory_unlock(%s)", lock)
            conn.commit()


def end_others(conn: Connection, ours: Sequence[int]) -> None:
    """Ask the server to end all other client sessions on this database, in one statement: others begin meanwhile.

    Raises:
        psycopg2.errors.InsufficientPrivilege: The role may not.
    """
    db.rows(conn, "SELECT pg_catalog.pg_stat_clear_snapshot()")  # else those of the transaction's beginning
    db.rows(conn, _END_OTHERS, list(ours))
