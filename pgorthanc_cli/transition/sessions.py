"""How to be alone on a database."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.locks import Session, clients, end, of_pooler, others
from pgorthanc_cli.progress import Progress

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_POLL_S = 0.2
_SHOWN = 5

# Not cached for the length of a transaction, as pg_stat_activity is.
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


def waiting(conn: Connection) -> list[Session]:
    """The sessions that wait for a table which this session has locked: they work with the index."""
    with conn.cursor() as cur:
        cur.execute(_WAITING)
        pids = {pid for (pid,) in cur.fetchall()}
    return [session for session in others(conn) if session.pid in pids] if pids else []


def blocking(conn: Connection, tables: Sequence[str]) -> list[Session]:
    """The sessions that have some of the tables locked, if only for reading."""
    with conn.cursor() as cur:
        cur.execute(_BLOCKING, (list(tables),))
        pids = {pid for (pid,) in cur.fetchall()}
    return [session for session in others(conn) if session.pid in pids] if pids else []


def in_use(
    found: Sequence[Session],
    what: str = "is connected with this database",
    *,
    idle: Collection[int] = (),
) -> InUseError:
    """The refusal that names them; `idle` may be a pooler's sessions that no client has."""
    named = "; ".join(map(str, found[:_SHOWN]))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    hint = (
        "stop every Orthanc that uses it, then run the same command again; "
        "or wait for them with --wait SECONDS, or end their sessions with --terminate"
    )
    if kept := [str(session.pid) for session in found if session.pid in idle]:
        hint += (
            f". This connection goes through a pooler, which may keep pid {', '.join(kept)} for no client: connect "
            "to the server itself, or close idle sessions on the pooler's console (PgBouncer: RECONNECT)"
        )
    return InUseError(f"somebody {what}: {named}{more}", hint)


def vacate(
    conn: Connection, *, ours: Sequence[int] = (), wait_s: float = 0, terminate: bool = False
) -> Iterator[Progress]:
    """Wait until nobody else is connected, or end the sessions of those who are.

    Args:
        conn: A connection without an open transaction.
        ours: Pids of further sessions of ours.
        wait_s: How long to wait.
        terminate: End their sessions at once; then at least 5 seconds are theirs to end.

    Raises:
        InUseError: Somebody is still connected; the message says who.
    """
    started = time.monotonic()
    patience = max(wait_s, 5.0) if terminate else wait_s
    while True:
        found = clients(conn, ours)
        if found and terminate:
            end(conn, found)
        conn.commit()
        if not found:
            return
        if time.monotonic() - started >= patience:
            raise in_use(found, idle=of_pooler(conn))
        yield Progress("switch", f"waiting for {len(found)} sessions to end, such as pid {found[0].pid}")
        time.sleep(_POLL_S)
