"""What decides about idle connections: socket options of both ends, the server's time limits, a pooler."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.db import pooler
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.keepalive.model import SocketOptions

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_ANSWER_S = 10.0
_TIMEOUTS = (
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "client_connection_check_interval",
)
_SETTINGS = """SELECT name, setting::bigint FROM pg_catalog.pg_settings
    WHERE name LIKE 'tcp\\_keepalives\\_%%' OR name = 'tcp_user_timeout' OR name = ANY(%s)"""


@dataclass(frozen=True)
class Surroundings:
    """Where the connections lead, and what is known to end or keep them.

    Attributes:
        place: The server's end as libpq names it.
        tcp: Whether keep-alive applies: over a UNIX socket it does not.
        role: Who is logged in, as SQL writes it.
        pooler: What stands in between.
        sockets: Both ends as they are without any parameters.
        settings: The server's settings of keep-alive that this version has, as they act on this session.
        timeouts_s: The server's own time limits; those that its version does not know are missing.
        started: When the server was started.
    """

    place: str
    tcp: bool
    role: str
    pooler: str
    sockets: tuple[SocketOptions, ...]
    settings: dict[str, int]
    timeouts_s: dict[str, float]
    started: datetime


def look(target: db.Target) -> Surroundings:
    """Read them; nothing is changed.

    Raises:
        ConnectError: The server cannot be reached.
    """
    found = pooler.detect(target)
    with closing(db.connect_async(target)) as conn:
        tcp = _is_tcp(conn)
        rows = ask(conn, _SETTINGS, list(_TIMEOUTS))
        settings = {name: value for name, value in rows if name.startswith("tcp")}
        return Surroundings(
            place=f"{conn.info.host or 'local socket'}:{conn.info.port}",
            tcp=tcp,
            role=sql.Identifier(conn.info.user).as_string(conn),
            pooler=found.mode,
            sockets=(_client_by_default(), _server_side(settings, found.mode)) if tcp else (),
            settings=settings if tcp else {},
            timeouts_s={name: value / 1000 for name, value in rows if name in _TIMEOUTS},
            started=server_start(conn),
        )


def with_parameters(target: db.Target, parameters: dict[str, str]) -> db.Target:
    """The same target with other connection parameters, tried once."""
    return replace(target, dsn=make_dsn(**{**db.parse_dsn(target.dsn), **parameters}))


def ask(conn: Connection, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """The rows of a query on an asynchronous connection, none for a command.

    Raises:
        ConnectError: The connection is lost, or there is no answer within 10 s.
    """
    with conn.cursor() as cur, db.translate_errors(conn):
        cur.execute(query, arguments or None)
        try:
            db.wait_for_answer(conn, _ANSWER_S)
        except TimeoutError as error:
            raise ConnectError(
                f"the server gives {error}", "with a pooler in between: is its pool (default_pool_size) full?"
            ) from None
        return cur.fetchall() if cur.description else []


def server_start(conn: Connection) -> datetime:
    """When the server was started."""
    [(started,)] = ask(conn, "SELECT pg_catalog.pg_postmaster_start_time()")
    return started  # type: ignore[no-any-return]


def socket_options(conn: Connection, side: str) -> SocketOptions:
    """What the kernel does on our end of a TCP connection."""
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        return _options(sock, side)


def _client_by_default() -> SocketOptions:
    """What libpq gets from this machine's kernel if nobody says more, as with Orthanc's discrete fields."""
    with socket.socket() as sock:
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
    option = getattr(socket, name, None)  # not every system knows all of them
    return None if option is None else sock.getsockopt(socket.IPPROTO_TCP, option)


def _server_side(settings: dict[str, int], pooler_mode: str) -> SocketOptions:
    """PostgreSQL asks its kernel for probes always, and shows the values that act on the socket of the session."""
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
