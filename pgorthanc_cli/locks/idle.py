"""Refuse to work on a database that an Orthanc uses, even one that holds no lock ("Lock": false)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.locks.orthancs import group_sessions
from pgorthanc_cli.locks.sessions import Session, observe
from pgorthanc_cli.locks.usage import hidden_sessions, inspect
from pgorthanc_cli.text import moment_with_offset

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from pgorthanc_cli.locks.orthancs import Orthanc

_STOP = "stop it, then run the same command again"


def require_no_orthanc(conn: Connection, schema: str, *, otherwise: str = "") -> tuple[str, ...]:
    """Raise an error if an Orthanc uses the database, with a lock or without, as `check-lock` sees it.

    Sessions of this tool's own commands do not count; their locks are up to the caller.

    Args:
        conn: A connection; an open transaction stays open.
        schema: Namespace of the index.
        otherwise: What else the user can do instead of stopping Orthanc, for the hint.

    Returns:
        Warnings: what the role may not see, so that an Orthanc may have been missed.

    Raises:
        InUseError: There is one; the message says which, and why it is taken for an Orthanc.
    """
    usage = inspect(conn, schema)
    instead = f"; {otherwise}" if otherwise else ""
    if usage.orthancs:
        users = "; ".join(map(_described, usage.orthancs))
        raise InUseError(f"{usage.endpoint} is in use: {users}", _hint(usage.orthancs) + instead)
    if usage.housekeeping:
        raise InUseError(
            f"{usage.endpoint} is in use: an Orthanc does the housekeeping of its index, "
            "and this role may not see which session does it",
            f"{_STOP}{instead}; to see it, as a superuser: pgorthanc check-lock",
        )
    return tuple(hidden_sessions(conn, observe(conn)))


def require_idle(conn: Connection, schema: str) -> None:
    """Raise an error if an Orthanc uses the database, with a lock or without.

    Raises:
        InUseError: Another session holds the lock of the index or of the storage area, or an Orthanc without a lock
            was detected (see `require_no_orthanc`).
    """
    holders = db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE)
    if holders:
        raise db.held_error(conn, holders)
    require_no_orthanc(conn, schema)


def owners(conn: Connection, sessions: Sequence[Session]) -> tuple[list[str], list[str]]:
    """Return whose sessions these are, for messages: the Orthancs, and the sessions of other programs."""
    pids = {session.pid for session in sessions}
    groups = group_sessions([session for session in observe(conn) if session.pid in pids], None)
    certain = [group for group in groups if group.orthanc.certain]
    members = {member.pid for group in certain for member in group.members}
    others = [str(session) for session in sessions if session.pid not in members]
    return [_described(group.orthanc) for group in certain], others


def _described(orthanc: Orthanc) -> str:
    """Return the Orthanc, and why it is taken for one."""
    since = f", connected since {moment_with_offset(orthanc.since)}" if orthanc.since else ""
    if orthanc.locks:
        names = " and ".join(db.LOCK_NAMES[lock] for lock in orthanc.locks)
        return f"{orthanc.named} holds the {names} lock{'s' if len(orthanc.locks) > 1 else ''}{since}"
    why = ", ".join(orthanc.evidence)
    if not orthanc.certain:
        return f"what looks like {orthanc.named.replace('the', 'an', 1)} is connected without a lock ({why}{since})"
    return f"{orthanc.named} is connected without a lock ({why}{since})"


def _hint(orthancs: tuple[Orthanc, ...]) -> str:
    doubtful = [str(orthanc.pid) for orthanc in orthancs if not orthanc.certain]
    if not doubtful:
        return _STOP
    return (
        f"{_STOP}; if pid {', '.join(doubtful)} is another program, end its session, "
        "or let it set an application_name"
    )
