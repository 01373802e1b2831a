"""Ending the sessions that keep Orthanc's locks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg2.errors

from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.locks.look import KEYS, Found, Watcher
from pgorthanc_cli.locks.orthancs import groups
from pgorthanc_cli.locks.sessions import Session, end, observe, others

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_PATIENCE_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Terminated(Found):
    """What is left after sessions were ended.

    Attributes:
        ended: The sessions that are gone.
        remaining: Those that have not ended within 5 seconds.
        freed: Nobody holds a lock of Orthanc any more.
    """

    ended: tuple[Session, ...]
    remaining: tuple[Session, ...]
    freed: bool


def choose(conn: Connection, which: int | Literal["all"]) -> list[Session]:
    """The sessions of this database that are to be ended: one, or those of all Orthancs and holders of locks.

    The commands of this tool are never among all.

    Raises:
        UsageError: That pid is no other session of this database.
    """
    if which != "all":
        if chosen := [session for session in others(conn) if session.pid == which]:
            return chosen
        raise UsageError(
            f"pid {which} is no other session of database {conn.info.dbname}",
            "see which there are: pgorthanc check-lock",
        )
    sessions = observe(conn)
    of_orthanc = {member for group in groups(sessions, None) for member in group.members}
    wanted = {s.pid for s in sessions if not s.is_ours and (s in of_orthanc or set(KEYS) & set(s.locks))}
    return [session for session in others(conn) if session.pid in wanted]


def terminate(conn: Connection, watcher: Watcher, chosen: Sequence[Session]) -> Terminated:
    """End sessions, give them 5 seconds, and look who is left.

    Raises:
        PgOrthancError: The role may not end them.
    """
    try:
        end(conn, chosen)
    except psycopg2.errors.InsufficientPrivilege:
        with conn.cursor() as cur:
            cur.execute("SELECT quote_ident(current_user)")
            [(role,)] = cur.fetchall()
        raise PgOrthancError(
            f"role {role} may not end the sessions of role {', '.join(sorted({str(s.role) for s in chosen}))}",
            f"log in as that role, or: GRANT pg_signal_backend TO {role}; sessions of superusers need a superuser",
        ) from None
    deadline = time.monotonic() + _PATIENCE_S
    while (left := _left(conn, chosen)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    found = watcher.look()
    return Terminated(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(found)},
        ended=tuple(session for session in chosen if session not in left),
        remaining=tuple(left),
        freed=not found.held,
    )


def _left(conn: Connection, chosen: Sequence[Session]) -> list[Session]:
    there = {(session.pid, session.since) for session in others(conn)}
    return [session for session in chosen if (session.pid, session.since) in there]
