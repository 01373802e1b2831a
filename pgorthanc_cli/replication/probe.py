"""Whether a server is up, and asks for a password, as its port shows without a login."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator

from pgorthanc_cli import db

Endpoint = tuple[str, int]  # host and port

ANSWERS, REFUSES, SILENT = "answers", "refuses", "silent"
_PORT_TIMEOUT_S = 5.0
_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_PROTOCOL = 3 << 16
_PASSWORD_REQUESTS = (
    3,
    5,
    10,
)  # AuthenticationCleartextPassword, AuthenticationMD5Password, AuthenticationSASL


def endpoints(conninfo: str) -> Iterator[Endpoint]:
    """Yield host and port of each server in a connection string."""
    parameters = db.parse_dsn(conninfo)
    hosts = parameters.get("host", "").split(",")
    ports = parameters.get("port", "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    yield from zip(hosts, map(int, ports), strict=True)


def probe(host: str, port: int) -> str:
    """Return ANSWERS if a server is up, REFUSES if only its machine is, else SILENT."""
    try:
        with _open(host, port) as sock:
            sock.settimeout(_PORT_TIMEOUT_S)
            if host.startswith("/"):
                return ANSWERS  # a socket on which no process listens refuses
            sock.sendall(_SSL_REQUEST)
            return ANSWERS if sock.recv(1) in (b"S", b"N", b"E") else SILENT
    except (ConnectionRefusedError, FileNotFoundError):
        return REFUSES
    except OSError:
        return SILENT


def asks_for_password(host: str, port: int, role: str) -> bool:
    """Return whether a server asks this machine for the password of a role.

    The first answer to a start-up packet is a number, the same in every language
    (PostgreSQL, "Message Flow: Start-up").
    """
    return any(_first_request(host, port, role, tls=tls) in _PASSWORD_REQUESTS for tls in (True, False))


def _first_request(host: str, port: int, role: str, *, tls: bool) -> int | None:
    fields = f"user\0{role}\0database\0replication\0replication\0true\0\0".encode()
    try:
        with _open(host, port) as plain:
            plain.settimeout(_PORT_TIMEOUT_S)
            with _wrap_in_tls(plain) if tls else plain as sock:
                sock.sendall(struct.pack("!II", len(fields) + 8, _PROTOCOL) + fields)
                with sock.makefile("rb") as stream:
                    kind, _, number = struct.unpack("!cII", stream.read(9))
    except (OSError, struct.error):
        return None
    return int(number) if kind == b"R" else None


def _wrap_in_tls(plain: socket.socket) -> ssl.SSLSocket:
    # Nothing secret is sent, so any certificate is acceptable.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain.sendall(_SSL_REQUEST)
    if plain.recv(1) != b"S":
        raise ConnectionError("no TLS")
    return context.wrap_socket(plain)


def _open(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host or "localhost", port), _PORT_TIMEOUT_S)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_PORT_TIMEOUT_S)
        sock.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        sock.close()
        raise
    return sock


def format_endpoint(endpoint: Endpoint) -> str:
    """Return host and port, as messages name them."""
    return f"{endpoint[0]}:{endpoint[1]}"
