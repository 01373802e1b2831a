"""Refuse to work on a database that an Orthanc uses, also one that holds no lock ("Lock": false)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.locks.look import look, unseen
from pgorthanc_cli.locks.sessions import observe

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from pgorthanc_cli.locks.orthancs import Orthanc

_STOP = "stop it, then run the same command again"


def require_no_orthanc(conn: Connection, schema: str, *, otherwise: str = "") -> tuple[str, ...]:
    """Make sure that no Orthanc works on this database, with a lock or without, as `check-lock` sees them.

    The sessions of this tool's own commands do not count; their locks are the caller's affair.

    Args:
        conn: A connection; a transaction that it has open stays open.
        schema: Namespace of the index.
        otherwise: What else the user may do instead of stopping Orthanc, for the hint.

    Returns:
        Warnings: what the role may not see, so that an Orthanc may have been missed.

    Raises:
        InUseError: There is one; the message says which, and why it is taken for an Orthanc.
    """
    found = look(conn, schema)
    instead = f"; {otherwise}" if otherwise else ""
    if found.orthancs:
        raise InUseError(
            "; ".join(f"{_named(orthanc)} is using database {found.database}" for orthanc in found.orthancs),
            _hint(found.orthancs) + instead,
        )
    if found.housekeeping:
        raise InUseError(
            f"an Orthanc is using database {found.database}: the housekeeping of its index goes on, "
            "and this role may not see which session does it",
            f"see it as a superuser with: pgorthanc check-lock; {_STOP}{instead}",
        )
    return tuple(unseen(conn, observe(conn)))


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


def _named(orthanc: Orthanc) -> str:
    """The Orthanc, and why it is taken for one."""
    lock = "with its lock" if orthanc.locked else "without a lock"
    named = orthanc.named if orthanc.certain else f"what looks like {orthanc.named.replace('the', 'an', 1)}"
    return f"{named}, {lock} ({', '.join(orthanc.evidence)}),"


def _hint(orthancs: tuple[Orthanc, ...]) -> str:
    doubtful = [str(orthanc.pid) for orthanc in orthancs if not orthanc.certain]
    if not doubtful:
        return _STOP
    return (
        f"{_STOP}; if pid {', '.join(doubtful)} is another program, end its session, "
        "or let it set an application_name"
    )
