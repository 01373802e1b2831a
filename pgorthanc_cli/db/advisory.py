"""Orthanc's advisory locks, and ours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import psycopg2

from pgorthanc_cli.db.endpoint import endpoint
from pgorthanc_cli.db.safe_session import first_row_alone, rows
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.text import moment_with_offset

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Orthanc's advisory locks: session-level, single-bigint form, one database wide (SCHEMA.md 8).
LOCK_INDEX = 42
LOCK_STORAGE = 43
LOCK_DATABASE_SETUP = 44
LOCK_CREATE_INSTANCE = 45
# Ours: held during all phases of an upgrade or downgrade. Orthanc does not know it.
LOCK_TRANSITION = 0x50474F52
# Ours: held during a phase of `storage move`.
LOCK_MOVE = 0x50474F53
# Ours: held by a `reindex` that writes. Two with other tags would undo each other's rows.
LOCK_REINDEX = 0x50474F54
LOCK_NAMES = {
    LOCK_INDEX: "index",
    LOCK_STORAGE: "storage",
    LOCK_DATABASE_SETUP: "database set-up",
    LOCK_CREATE_INSTANCE: "create instance",
    LOCK_TRANSITION: "upgrade",
    LOCK_MOVE: "storage move",
    LOCK_REINDEX: "reindex",
}
OUR_LOCKS = (LOCK_TRANSITION, LOCK_MOVE, LOCK_REINDEX)


@dataclass(frozen=True)
class LockHolder:
    """A session that holds one of Orthanc's advisory locks."""

    lock: int
    pid: int
    role: str | None
    application: str | None
    address: str | None
    since: datetime | None
    state: str | None

    @property
    def is_ours(self) -> bool:
        """Whether it is a command of this tool."""
        return self.lock in OUR_LOCKS or (self.application or "").startswith("pgorthanc")

    def __str__(self) -> str:
        """`the Orthanc at 10.0.0.5 (pid 9890) holds the index lock, connected since 22:12 +01:00`."""
        facts, who = f"pid {self.pid}", "the Orthanc"
        if self.is_ours:
            who = f"the command {self.application}" if self.application else "a command of pgorthanc"
        elif self.application:
            facts += f", application {self.application}"
        address = self.address or ("the local socket" if self.since else "an address that is hidden")
        since = f", connected since {moment_with_offset(self.since)}" if self.since else ""
        return f"{who} at {address} ({facts}) holds the {LOCK_NAMES[self.lock]} lock{since}"


def lock_holders(conn: Connection, *locks: int) -> list[LockHolder]:
    """Return the holders of these advisory locks in this database, of all if none is given; tries no lock."""
    query = """SELECT l.objid::bigint, l.pid, a.usename, a.application_name, pg_catalog.host(a.client_addr),
                  a.backend_start, a.state
           FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
           WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objsubid = 1 AND l.granted
             AND l.database = (SELECT oid FROM pg_catalog.pg_database
                 WHERE datname = pg_catalog.current_database())
             AND l.objid::bigint = ANY(%s) ORDER BY 1, 2"""
    return [LockHolder(*row) for row in rows(conn, query, list(locks or LOCK_NAMES))]


def held_error(conn: Connection, holders: Sequence[LockHolder], otherwise: str = "") -> InUseError:
    """Return the error that names the holders of locks, and whether to stop them or to wait.

    `otherwise` is what else can be done while an Orthanc is running, for the hint.
    """
    names = "; ".join(map(str, holders)) or "the session that held a lock of Orthanc has just ended"
    hint = "run the same command again"
    if any(holder.is_ours for holder in holders):
        hint = f"wait until that command has finished, then {hint}"
    elif holders:
        hint = f"stop that Orthanc, then {hint}{otherwise and f', or {otherwise}'}"
    return InUseError(f"{endpoint(conn)} is in use: {names}", hint)


@contextmanager
def advisory_lock(conn: Connection, lock: int, *, wait_s: float = 5.0, otherwise: str = "") -> Iterator[None]:
    """Hold one of Orthanc's advisory locks for a block; tried every 0.5 s, as Orthanc does.

    The lock is taken and released in transactions of its own: an open transaction is committed first, and what
    the block leaves uncommitted is rolled back.

    Args:
        conn: A connection.
        lock: Its number.
        wait_s: How long to try.
        otherwise: What else the user can do while an Orthanc is running, for the hint.

    Raises:
        InUseError: Another session still holds it after `wait_s` seconds; the message names it.
    """
    conn.commit()
    deadline = time.monotonic() + wait_s
    while not first_row_alone(conn, "SELECT pg_catalog.pg_try_advisory_lock(%s::bigint)", lock)[0]:
        if time.monotonic() >= deadline:
            error = held_error(conn, lock_holders(conn, lock), otherwise)
            conn.rollback()
            raise error
        time.sleep(0.5)
    try:
        yield
    finally:
        # The server has released the lock of a lost connection; its error is raised by the block already.
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            conn.rollback()
            first_row_alone(conn, "SELECT pg_catalog.pg_advisory_unlock(%s::bigint)", lock)
