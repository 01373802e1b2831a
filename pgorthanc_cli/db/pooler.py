"""Whether a connection pooler such as PgBouncer stands between this client and the server, found from outside.

Orthanc needs sessions of its own: advisory locks, prepared statements and search_path belong to a session. A
pooler in transaction mode gives each transaction to whatever session is free.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Two clients ask in this order. Whether free sessions are reused at once or in turn, and however many there are,
# clients that share them meet: one sees two sessions, or both see the same one.
_TURNS = (0, 1, 1, 0, 0, 1)
_ANSWER_S = 5.0
_SERVER = """SELECT pg_catalog.host(pg_catalog.inet_server_addr()), pg_catalog.inet_server_port(),
    pg_catalog.current_setting('port')"""


@dataclass(frozen=True)
class Pooler:
    """What stands between client and server.

    Attributes:
        mode: `none`: no pooler is seen; `session`: each client has a session of its own; `transaction`: clients
            share sessions (PgBouncer's modes transaction and statement).
        evidence: What was seen.
    """

    mode: Literal["none", "session", "transaction"]
    evidence: str


def detect(target: db.Target) -> Pooler:
    """Ask through two connections at once which session of the server answers; nothing is changed.

    Raises:
        ConnectError: The server cannot be reached.
    """
    with closing(db.connect_async(target)) as first, closing(db.connect_async(target)) as second:
        return _judge((first, second))


def require_own_session(conn: db.Session) -> None:
    """Make sure that a connection which goes through a pooler has a session of its own.

    What writes needs one: advisory locks, temporary tables and search_path would be another client's next.

    Raises:
        ConnectError: The pooler gives each transaction, or each statement, to another session.
    """
    seen = detect(conn.target)
    if seen.mode != "transaction":
        return
    host, port, listening = db.row(conn, _SERVER) or (None, None, None)
    place = f"at {host}:{port}" if host else f"that listens on port {listening}"
    info = conn.info
    raise ConnectError(
        f"a connection pooler such as PgBouncer answers at {info.host or 'the local socket'}:{info.port}, and clients "
        f"share its sessions (pool_mode = transaction or statement: {seen.evidence}); this command writes, and needs "
        "a session of its own for its locks, temporary tables and settings",
        f"connect to the server itself, {place} as the pooler sees it (--host, --port)",
    )


def _judge(clients: tuple[Connection, Connection]) -> Pooler:
    promised = {client.info.backend_pid for client in clients}
    seen: tuple[set[int], set[int]] = (set(), set())
    for turn in _TURNS:
        try:
            seen[turn].add(_session(clients[turn]))
        except TimeoutError as error:
            if seen[0] <= promised:  # nobody stands between: it is the server that is silent
                raise ConnectError(f"the server gives {error}", "see whether it still works") from None
            return Pooler("session", "a second client gets no answer while a first one is connected")
    if seen[0] & seen[1] or len(seen[0]) > 1 or len(seen[1]) > 1:
        shown = " and ".join(", ".join(map(str, sorted(pids))) for pids in seen)
        return Pooler("transaction", f"two clients at once were served by sessions {shown}")
    served = seen[0] | seen[1]
    if promised != served:
        return Pooler("session", f"another session than the one promised at the login answers: {min(served)}")
    return Pooler("none", "the session promised at the login answers")


def _session(client: Connection) -> int:
    """The process of the server that serves this client now."""
    with client.cursor() as cur, db.translate_errors(client):
        cur.execute("SELECT pg_catalog.pg_backend_pid()")
        db.wait_for_answer(client, _ANSWER_S)
        [(pid,)] = cur.fetchall()
        return int(pid)
