"""End the sessions that hold Orthanc's locks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.locks.orthancs import group_sessions
from pgorthanc_cli.locks.sessions import Session, observe, other_sessions, terminate_sessions
from pgorthanc_cli.locks.usage import KEYS, Usage, Watcher

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_TIMEOUT_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Terminated(Usage):
    """Who still uses the database after sessions were ended.

    Attributes:
        ended: The sessions that have ended.
        remaining: Those that have not ended within 5 seconds.
        freed: Whether no lock of Orthanc is held any more.
    """

    ended: tuple[Session, ...]
    remaining: tuple[Session, ...]
    freed: bool


def choose(conn: Connection, which: int | Literal["all"]) -> list[Session]:
    """Return the sessions to end: one, or those of all Orthancs and holders of locks.

    Commands of this tool are never among all.

    Raises:
        UsageError: No other session of this database has that pid.
    """
    if which != "all":
        if chosen := [session for session in other_sessions(conn) if session.pid == which]:
            return chosen
        raise UsageError(
            f"no other session of database {conn.info.dbname} has pid {which}",
            "see which there are: pgorthanc check-lock",
        )
    observed = observe(conn)
    pids = {member.pid for group in group_sessions(observed, None) for member in group.members}
    pids |= {session.pid for session in observed if set(KEYS) & set(session.locks)}
    pids -= {session.pid for session in observed if session.is_ours}
    return [session for session in other_sessions(conn) if session.pid in pids]


def terminate(conn: Connection, watcher: Watcher, sessions: Sequence[Session]) -> Terminated:
    """End sessions, give them 5 seconds, and return who is left.

    Raises:
        PgOrthancError: The role may not end them.
    """
    try:
        terminate_sessions(conn, sessions)
    except psycopg2.errors.InsufficientPrivilege:
        role = db.value(conn, "SELECT quote_ident(current_user)")
        owners = ", ".join(sorted({str(session.role) for session in sessions}))
        raise PgOrthancError(
            f"role {role} may not end the sessions of role {owners}",
            "log in as that role; only a superuser ends the sessions of superusers. For the others, an administrator "
            f"can run: GRANT pg_signal_backend TO {role};",
        ) from None
    deadline = time.monotonic() + _TIMEOUT_S
    while (remaining := _remaining(conn, sessions)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    usage = watcher.inspect()
    return Terminated(
        **vars(usage),
        ended=tuple(session for session in sessions if session not in remaining),
        remaining=tuple(remaining),
        freed=not usage.held,
    )


def _remaining(conn: Connection, sessions: Sequence[Session]) -> list[Session]:
    # A pid may be used again; with the time of its start it is unique.
    current = {(session.pid, session.since) for session in other_sessions(conn)}
    return [session for session in sessions if (session.pid, session.since) in current]
