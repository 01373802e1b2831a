"""Whether a server is alive, as far as its port tells: no login is needed."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator

from pgorthanc_cli import db

_TIMEOUT_S = 5.0
_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_PROTOCOL = 3 << 16
_PASSWORDS = (3, 5, 10)  # AuthenticationCleartextPassword, AuthenticationMD5Password, AuthenticationSASL

ANSWERS, REFUSES, SILENT = "answers", "refuses", "silent"


def places(conninfo: str) -> Iterator[tuple[str, int]]:
    """Host and port of each server in a connection string."""
    given = db.parse_dsn(conninfo)
    hosts = given.get("host", "").split(",")
    ports = given.get("port", "5432").split(",")
    yield from zip(hosts, map(int, ports * len(hosts) if len(ports) == 1 else ports), strict=True)


def probe(host: str, port: int) -> str:
    """`answers`: a server is there. `refuses`: the machine is, and no server. `silent`: nobody can tell from here."""
    try:
        with _open(host, port) as sock:
            sock.settimeout(_TIMEOUT_S)
            if host.startswith("/"):
                return ANSWERS  # a socket that nobody listens on refuses
            sock.sendall(_SSL_REQUEST)
            return ANSWERS if sock.recv(1) in (b"S", b"N", b"E") else SILENT
    except (ConnectionRefusedError, FileNotFoundError):
        return REFUSES
    except OSError:
        return SILENT


def asks_for_password(host: str, port: int, role: str) -> bool:
    """Whether a server lets this machine try the password of a role that replicates, with TLS or without.

    In no language: the first answer to a start-up packet is a number (PostgreSQL, "Message Flow: Start-up").
    """
    return any(_first_request(host, port, role, tls=tls) in _PASSWORDS for tls in (True, False))


def _first_request(host: str, port: int, role: str, *, tls: bool) -> int | None:
    fields = f"user\0{role}\0database\0replication\0replication\0true\0\0".encode()
    try:
        with _open(host, port) as plain:
            plain.settimeout(_TIMEOUT_S)
            with _within_tls(plain) if tls else plain as sock:
                sock.sendall(struct.pack("!II", len(fields) + 8, _PROTOCOL) + fields)
                with sock.makefile("rb") as stream:
                    kind, _, number = struct.unpack("!cII", stream.read(9))
    except (OSError, struct.error):
        return None
    return int(number) if kind == b"R" else None


def _within_tls(plain: socket.socket) -> ssl.SSLSocket:
    """Nothing secret is sent, so any certificate will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain.sendall(_SSL_REQUEST)
    if plain.recv(1) != b"S":
        raise ConnectionError("no TLS")
    return context.wrap_socket(plain)


def _open(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host or "localhost", port), _TIMEOUT_S)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        sock.close()
        raise
    return sock
