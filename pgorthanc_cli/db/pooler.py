"""Detection of a connection pooler such as PgBouncer between this client and the server.

Orthanc needs sessions of its own: advisory locks, prepared statements and search_path belong to a session. A pooler
in transaction mode runs each transaction in any free session.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# The order in which two clients query. Clients that share sessions show it, whether free sessions are reused at once
# or in turn, and however many there are: one client sees two sessions, or both see the same one.
_TURNS = (0, 1, 1, 0, 0, 1)
_ANSWER_S = 5.0
_SERVER_ENDPOINT = """SELECT pg_catalog.host(pg_catalog.inet_server_addr()), pg_catalog.inet_server_port(),
    pg_catalog.current_setting('port')"""


@dataclass(frozen=True)
class Pooler:
    """A pooler between client and server.

    Attributes:
        mode: `none`: no pooler is detected; `session`: each client has a session of its own; `transaction`:
            clients share sessions (PgBouncer's modes transaction and statement).
        evidence: The observation behind it.
    """

    mode: Literal["none", "session", "transaction"]
    evidence: str


def detect(target: db.Target) -> Pooler:
    """Compare the server sessions behind two simultaneous connections; nothing is changed.

    Raises:
        ConnectError: The server cannot be reached.
    """
    with closing(db.connect_async(target)) as first, closing(db.connect_async(target)) as second:
        return _classify((first, second))


def require_own_session(conn: db.Session) -> None:
    """Check that a connection through a pooler has a session of its own.

    Sessions that write need one: another client would get their advisory locks, temporary tables and search_path.

    Raises:
        ConnectError: The pooler shares its sessions between clients.
    """
    if obstacle := shared_sessions(conn):
        raise obstacle


def shared_sessions(conn: db.Session) -> ConnectError | None:
    """Return why a command that writes would refuse this connection; None: it would not."""
    if not conn.pooled:
        return None
    detected = detect(conn.target)
    if detected.mode != "transaction":
        return None
    host, port, listening = db.row(conn, _SERVER_ENDPOINT) or (None, None, None)
    endpoint = f"at {host}:{port}" if host else f"that listens on port {listening}"
    info = conn.info
    return ConnectError(
        f"a connection pooler such as PgBouncer answers at {info.host or 'the local socket'}:{info.port}, "
        "and clients share its sessions "
        f"(pool_mode = transaction or statement: {detected.evidence}); a command that writes "
        "needs a session of its own for its locks, temporary tables and settings",
        f"connect to the server itself, {endpoint} as the pooler sees it (--host, --port)",
    )


def _classify(clients: tuple[Connection, Connection]) -> Pooler:
    promised = {client.info.backend_pid for client in clients}
    seen: tuple[set[int], set[int]] = (set(), set())
    for turn in _TURNS:
        try:
            seen[turn].add(_session(clients[turn]))
        except TimeoutError as error:
            # Only promised sessions answered: no pooler, the server itself is silent.
            if seen[0] <= promised:
                raise ConnectError(f"the server gives {error}", "see whether it still works") from None
            return Pooler("session", "a second client gets no answer while a first one is connected")
    if seen[0] & seen[1] or len(seen[0]) > 1 or len(seen[1]) > 1:
        sessions = " and ".join(", ".join(map(str, sorted(pids))) for pids in seen)
        return Pooler("transaction", f"two clients at once were served by sessions {sessions}")
    served = seen[0] | seen[1]
    if promised != served:
        return Pooler("session", f"another session than the one promised at the login answers: {min(served)}")
    return Pooler("none", "the session promised at the login answers")


def _session(client: Connection) -> int:
    """Return the pid of the server process that serves a client now."""
    with client.cursor() as cur, db.translate_errors(client):
        cur.execute("SELECT pg_catalog.pg_backend_pid()")
        db.wait_for_answer(client, _ANSWER_S)
        [(pid,)] = cur.fetchall()
        return int(pid)
