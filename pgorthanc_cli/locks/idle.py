"""Refuse to work on a database that an Orthanc uses, even one that holds no lock ("Lock": false)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.locks.sessions import observe
from pgorthanc_cli.locks.usage import hidden_sessions, inspect

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
        users = [f"{_described(orthanc)} is using database {usage.database}" for orthanc in usage.orthancs]
        raise InUseError("; ".join(users), _hint(usage.orthancs) + instead)
    if usage.housekeeping:
        raise InUseError(
            f"an Orthanc is using database {usage.database}: the housekeeping of its index goes on, "
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
        raise InUseError(f"an Orthanc works on this database: {'; '.join(map(str, holders))}", _STOP)
    require_no_orthanc(conn, schema)


def _described(orthanc: Orthanc) -> str:
    """Return the Orthanc, and why it is taken for one."""
    lock = "with its lock" if orthanc.locked else "without a lock"
    name = orthanc.named
    if not orthanc.certain:
        name = f"what looks like {name.replace('the', 'an', 1)}"
    return f"{name}, {lock} ({', '.join(orthanc.evidence)}),"


def _hint(orthancs: tuple[Orthanc, ...]) -> str:
    doubtful = [str(orthanc.pid) for orthanc in orthancs if not orthanc.certain]
    if not doubtful:
        return _STOP
    return (
        f"{_STOP}; if pid {', '.join(doubtful)} is another program, end its session, "
        "or let it set an application_name"
    )
