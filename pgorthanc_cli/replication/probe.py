"""Whether a server is alive, as far as its port tells: no login is needed."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from pgorthanc_cli import db

_TIMEOUT_S = 5.0
_SSL_REQUEST = struct.pack("!II", 8, 80877103)

ANSWERS, REFUSES, SILENT = "answers", "refuses", "silent"


def places(conninfo: str) -> Iterator[tuple[str, int]]:
    """Host and port of each server in a connection string."""
    given = db.parse(conninfo)
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
