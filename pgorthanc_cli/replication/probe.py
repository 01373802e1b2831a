"""Whether a server is up, and asks for a password, as its port shows without a login."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli import db
from pgorthanc_cli.db import transport, wire
from pgorthanc_cli.db.transport import Client

Endpoint = tuple[str, int]  # host and port

ANSWERS, REFUSES, SILENT = "answers", "refuses", "silent"
_PORT_TIMEOUT_S = 5.0


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
    client = Client(host or "localhost", port, "", "", timeout_s=_PORT_TIMEOUT_S)
    try:
        with transport.open_socket(client) as sock:
            if client.is_local:
                # A socket on which no process listens refuses.
                return ANSWERS
            return ANSWERS if transport.request_tls(sock) in (b"S", b"N", b"E") else SILENT
    except (ConnectionRefusedError, FileNotFoundError):
        return REFUSES
    except OSError:
        return SILENT


def asks_for_password(host: str, port: int, role: str) -> bool:
    """Return whether a server asks this machine for the password of a role."""
    client = Client(
        host or "localhost", port, role, "replication", replication=True, timeout_s=_PORT_TIMEOUT_S
    )
    for tls in (True, False):
        try:
            answer = wire.first_answer(client, tls=tls)
        except (transport.TlsUnavailable, OSError):
            continue
        if answer.method.removesuffix("-plus") in ("password", "md5", "scram-sha-256"):
            return True
    return False


def format_endpoint(endpoint: Endpoint) -> str:
    """Return host and port, as messages name them."""
    return f"{endpoint[0]}:{endpoint[1]}"
