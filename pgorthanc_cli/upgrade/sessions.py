"""Exclusive access to a database: wait for other sessions, end them, and name those that block."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.locks import (
    Session,
    client_sessions,
    other_sessions,
    owners,
    pooled_sessions,
    terminate_sessions,
)
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.text import shortened

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_POLL_S = 0.2
# With --terminate: how long clients may connect again before locks have to keep them out.
_CALM_S = 1.0
_EXPEL_S = 15.0
# Then those that connected meanwhile are ended, and we queue again.
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
    """Return the sessions that wait for a table which this session has locked: they use the index."""
    pids = {pid for (pid,) in db.rows(conn, _WAITING)}
    return [session for session in other_sessions(conn) if session.pid in pids] if pids else []


def blocking(conn: Connection, tables: Sequence[str]) -> list[Session]:
    """Return the sessions that have some of the tables locked, if only for reading; autovacuum and the like, too."""
    pids = {pid for (pid,) in db.rows(conn, _BLOCKING, list(tables))}
    return sessions_of(conn, pids)


def sessions_of(conn: Connection, pids: Collection[int]) -> list[Session]:
    """Return the processes of the server with these pids: sessions of clients, and those that serve none."""
    return [Session(*row) for row in db.rows(conn, _NAMED, list(pids))] if pids else []


def in_use(
    conn: Connection,
    blockers: Sequence[object],
    what: str = "is in use",
    *,
    terminate: bool = False,
    wait_s: float = 0,
) -> InUseError:
    """Return the error that names who blocks us, and ends an open transaction.

    Args:
        conn: A connection.
        blockers: Sessions, prepared transactions.
        what: The fact about the database.
        terminate: --terminate was given, so it is not suggested.
        wait_s: --wait was given, and was too short.
    """
    conn.rollback()
    sessions = [blocker for blocker in blockers if isinstance(blocker, Session)]
    orthancs, others = owners(conn, sessions)
    others += [str(blocker) for blocker in blockers if not isinstance(blocker, Session)]
    who, it, its = "every program that uses it", "them", "their"
    if orthancs and not others:
        who = "these Orthancs" if len(orthancs) > 1 else "that Orthanc"
        it, its = (it, its) if len(orthancs) > 1 else ("it", "its")
    if terminate:
        hint = f"stop {who}, then run the same command again"
    else:
        wait = max(60, round(2 * wait_s))
        hint = (
            f"stop {who}, or wait for {it} with --wait {wait}; or end {its} sessions with --terminate, "
            "which asks first"
        )
    # A pooler keeps sessions open that no client uses: to stop a client does not end them.
    pooled = pooled_sessions(conn)
    if pids := [str(session.pid) for session in sessions if session.pid in pooled]:
        hint += (
            f". This connection goes through a pooler, which may keep pid {', '.join(pids)} for no client: connect "
            "to the server itself, or close idle sessions on the pooler's console (PgBouncer: RECONNECT)"
        )
    names = shortened([*orthancs, *others], _SHOWN) or "a session that has just ended"
    fact = f"{db.endpoint(conn)} {what}: {names}"
    conn.rollback()
    return InUseError(fact, f"{hint}. To see {its} sessions: pgorthanc check-lock")


def wait_for_exclusive_access(
    conn: Connection,
    report: Report,
    *,
    own_pids: Sequence[int] = (),
    wait_s: float = 0,
    terminate: bool = False,
) -> None:
    """Wait until no other session is connected, or end those that are.

    Args:
        conn: A connection without an open transaction.
        report: Called with the progress.
        own_pids: Pids of further sessions of ours.
        wait_s: How long to wait.
        terminate: End their sessions. A client that connects again and again is not a reason to refuse: locks keep
            it out, see `exclusive_lock`.

    Raises:
        InUseError: Another session is still connected; the message says which.
    """
    started = time.monotonic()
    limit_s = max(wait_s, _CALM_S) if terminate else wait_s
    while True:
        others = client_sessions(conn, own_pids)
        if others and terminate:
            terminate_sessions(conn, others)
        conn.commit()
        if not others:
            return
        if time.monotonic() - started >= limit_s:
            if terminate:
                reconnecting = f"{len(others)} sessions connect again and again; locks keep them out"
                report(Progress("switch", reconnecting))
                return
            raise in_use(conn, others, wait_s=wait_s)
        what = f"waiting for {len(others)} sessions to end, such as pid {others[0].pid}"
        report(Progress("switch", what))
        time.sleep(_POLL_S)


@contextmanager
def exclusive_lock(conn: Connection, lock: int, own_pids: Sequence[int]) -> Iterator[None]:
    """Hold one of Orthanc's advisory locks, even if clients take it again and again: end its holders, and queue.

    A waiting request comes before all later ones, also before those of pg_try_advisory_lock.

    Raises:
        InUseError: It was not free within 15 seconds; the message says who holds it.
    """
    deadline = time.monotonic() + _EXPEL_S
    while True:
        try:
            db.rows(conn, "SELECT pg_catalog.set_config('lock_timeout', %s, true)", _EXPEL_WAIT)
            end_others(conn, own_pids)
            db.rows(conn, "SELECT pg_catalog.pg_advisory_lock(%s)", lock)
            conn.commit()
            break
        except psycopg2.errors.LockNotAvailable:
            conn.rollback()
            holders = db.lock_holders(conn, lock)
            conn.rollback()
            if time.monotonic() >= deadline:
                raise db.held_error(conn, holders) from None
    try:
        yield
    finally:
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            conn.rollback()
            db.rows(conn, "SELECT pg_catalog.pg_advisory_unlock(%s)", lock)
            conn.commit()


def end_others(conn: Connection, own_pids: Sequence[int]) -> None:
    """Ask the server to end all other client sessions on this database, in one statement: others begin meanwhile.

    Raises:
        psycopg2.errors.InsufficientPrivilege: The role may not.
    """
    db.rows(
        conn, "SELECT pg_catalog.pg_stat_clear_snapshot()"
    )  # else it shows the sessions of the transaction's start
    db.rows(conn, _END_OTHERS, list(own_pids))
