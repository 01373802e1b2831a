"""The environment of a test: socket options of both ends, the server's limits for idle sessions, a pooler."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.db import pooler
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.keepalive.model import SocketOptions

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_TIMEOUTS = (
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "client_connection_check_interval",
)
_SETTINGS = """SELECT name, setting::bigint FROM pg_catalog.pg_settings
    WHERE name LIKE 'tcp\\_keepalives\\_%%' OR name = 'tcp_user_timeout' OR name = ANY(%s)"""


@dataclass(frozen=True)
class Environment:
    """The endpoint of the connections, and what is known to end them or to keep them alive.

    Attributes:
        endpoint: The server's endpoint, `host:port`.
        tcp: Whether keep-alive applies; it does not on a UNIX socket.
        role: The session's role, quoted for SQL.
        pooler: The mode of a pooler in between, see `pooler.detect`.
        sockets: Options of both ends without any parameters.
        settings: The server's keep-alive settings that act on this session; older versions lack some.
        timeouts_s: The server's limits for idle sessions; older versions lack some.
        started: When the server was started.
        server: The database, server and role.
    """

    endpoint: str
    tcp: bool
    role: str
    pooler: str
    sockets: tuple[SocketOptions, ...]
    settings: dict[str, int]
    timeouts_s: dict[str, float]
    started: datetime
    server: db.Endpoint | None = None


def inspect(target: db.Target) -> Environment:
    """Read the environment of a target; nothing is changed.

    Raises:
        ConnectError: The server cannot be reached.
    """
    pooler_mode = pooler.detect(target).mode
    with closing(db.connect_async(target)) as conn:
        tcp = _is_tcp(conn)
        rows = async_rows(conn, _SETTINGS, list(_TIMEOUTS))
        settings = {name: value for name, value in rows if name.startswith("tcp")}
        return Environment(
            endpoint=f"{conn.info.host or 'local socket'}:{conn.info.port}",
            tcp=tcp,
            role=db.quote_ident(conn.info.user),
            pooler=pooler_mode,
            sockets=(_client_by_default(), _server_side(settings, pooler_mode)) if tcp else (),
            settings=settings if tcp else {},
            timeouts_s={name: value / 1000 for name, value in rows if name in _TIMEOUTS},
            started=server_start(conn),
            server=db.endpoint(conn),
        )


def with_parameters(target: db.Target, parameters: dict[str, str]) -> db.Target:
    """Return the target with other connection parameters."""
    return replace(target, dsn=make_dsn(**{**db.parse_dsn(target.dsn), **parameters}))


def async_rows(
    conn: Connection, query: str, *arguments: object, answer_s: float = 10.0
) -> list[tuple[Any, ...]]:
    """Return the rows of a query on an asynchronous connection, none for a command.

    Raises:
        ConnectError: The connection is lost, or there is no answer within `answer_s` seconds.
    """
    with conn.cursor() as cur, db.translate_errors(conn):
        cur.execute(query, arguments or None)
        try:
            db.wait_for_answer(conn, answer_s)
        except TimeoutError as error:
            raise ConnectError(
                f"the server gives {error}", "with a pooler in between: is its pool (default_pool_size) full?"
            ) from None
        return cur.fetchall() if cur.description else []


def server_start(conn: Connection) -> datetime:
    """Return when the server was started."""
    [(started,)] = async_rows(conn, "SELECT pg_catalog.pg_postmaster_start_time()")
    return started  # type: ignore[no-any-return]


def socket_options(conn: Connection, side: str) -> SocketOptions:
    """Return the kernel's options of our end of a TCP connection."""
    # A socket object closes its descriptor, and the original one is libpq's.
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        return _options(sock, side)


def _client_by_default() -> SocketOptions:
    """Return the options of a connection without parameters, as Orthanc's discrete fields make it."""
    with socket.socket() as sock:
        # As libpq does it: keep-alive is on, and the times are those of the kernel.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return _options(sock, "client by default")


def _options(sock: socket.socket, side: str) -> SocketOptions:
    return SocketOptions(
        side=side,
        keepalive=bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
        idle_s=_tcp_option(sock, "TCP_KEEPIDLE"),
        interval_s=_tcp_option(sock, "TCP_KEEPINTVL"),
        count=_tcp_option(sock, "TCP_KEEPCNT"),
        user_timeout_ms=_tcp_option(sock, "TCP_USER_TIMEOUT"),
    )


def _tcp_option(sock: socket.socket, name: str) -> int | None:
    option = getattr(socket, name, None)  # not all systems have all of them
    return None if option is None else sock.getsockopt(socket.IPPROTO_TCP, option)


def _server_side(settings: dict[str, int], pooler_mode: str) -> SocketOptions:
    # PostgreSQL always asks its kernel for probes, and shows the values of the session's own socket.
    return SocketOptions(
        side="server" if pooler_mode == "none" else "server, towards the pooler",
        keepalive=True,
        idle_s=settings.get("tcp_keepalives_idle"),
        interval_s=settings.get("tcp_keepalives_interval"),
        count=settings.get("tcp_keepalives_count"),
        user_timeout_ms=settings.get("tcp_user_timeout"),
    )


def _is_tcp(conn: Connection) -> bool:
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        return sock.family != socket.AF_UNIX
