"""The start-up protocol without libpq: how a server asks a client to authenticate, and why it refuses one.

libpq passes on only the text of a refusal, in whatever language the server writes. The protocol also carries the
SQLSTATE and the routine of the server that refused, which mean the same everywhere. `first_answer` ends at the
server's first answer, before any password; `log_in` goes on until the server accepts the client or refuses it.

Facts: PostgreSQL, "Message Flow: Start-up", "Message Formats", "Error and Notice Message Fields".
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from pgorthanc_cli.db import scram, transport
from pgorthanc_cli.db.transport import Client

# libpq's own limit for an error during the start-up.
_MAX_MESSAGE_BYTES = 30_000
_PROTOCOL = 3 << 16  # 3.0
# Authentication requests by number; 0 (AuthenticationOk) means that the server asks for nothing more.
_METHODS = {0: "trust", 2: "krb5", 3: "password", 5: "md5", 7: "gss", 9: "sspi", 10: "scram-sha-256"}
_MD5, _SASL = 5, 10
_SCRAM = b"SCRAM-SHA-256"
# The routines of the server that refuse a login, see `Refusal.routine`.
BY_HBA, BY_METHOD, BY_ROLE = "ClientAuthentication", "auth_failed", "InitializeSessionUserId"


class CannotLogIn(Exception):
    """The server asks for a credential that we do not send, so the outcome stays open."""


@dataclass(frozen=True)
class Refusal:
    """Why a server refuses a client.

    Attributes:
        sqlstate: Such as 28P01; empty if the server sends none.
        routine: The function of PostgreSQL's source that refused; empty if something else answers (PgBouncer).
        message: The server's message, in its own language.
    """

    sqlstate: str
    routine: str
    message: str


@dataclass(frozen=True)
class Answer:
    """The server's first answer to a client that has sent only its role and database.

    Attributes:
        method: A method of pg_hba.conf: trust (nothing more is asked), password, md5, scram-sha-256,
            scram-sha-256-plus (with channel binding), gss, sspi. With a refusal: cert, peer, ident, `no line` (or
            a line that rejects: the protocol does not distinguish them), refused.
        refusal: Why the server refuses; None if it does not, at least before a password.
        address: Our own address on that connection; None on a UNIX socket.
    """

    method: str
    refusal: Refusal | None = None
    address: str | None = None

    @property
    def refuses(self) -> bool:
        """Whether the server does not even ask for a password."""
        return self.refusal is not None


def first_answer(client: Client, *, tls: bool) -> Answer:
    """Return the first answer, in plain text or within TLS. No password is sent.

    Raises:
        transport.TlsUnavailable: There is no TLS.
        OSError: The server cannot be reached, or does not speak the protocol.
    """
    context = transport.unverified_context(client) if tls else None
    with _connect(client, context) as (sock, stream, address):
        kind, body = _start(sock, stream, client)
    if kind == b"R":
        return Answer(_method(body), address=address)
    # The server refuses before it asks for anything: the routine and the kind of connection tell which method does.
    refusal = _refusal(body)
    method = "refused"
    if refusal.sqlstate == "28000" and refusal.routine == BY_METHOD:
        method = "peer" if client.is_local else "cert" if tls and client.certificate else "ident"
    elif refusal.sqlstate == "28000" and refusal.routine == BY_HBA:
        method = "no line" if names_client(refusal, client) else "cert"
    return Answer(method, refusal, address)


def names_client(refusal: Refusal, client: Client) -> bool:
    """Return whether a refusal is about a line of pg_hba.conf; the others are about a client certificate.

    Messages in all languages quote the names of the file and of the role.
    """
    return "pg_hba.conf" in refusal.message or client.role in refusal.message


def log_in(client: Client, context: ssl.SSLContext | None) -> Refusal | None:
    """Log in by md5 or SCRAM if the server asks for it; return why it refuses, None if it does not.

    Raises:
        CannotLogIn: The server asks for the password itself, which is not sent a second time, or for a ticket.
        transport.TlsUnavailable: There is no TLS, or the server's certificate does not satisfy the context.
        OSError: The server cannot be reached, or does not speak the protocol.
    """
    with _connect(client, context) as (sock, stream, _):
        kind, body = _start(sock, stream, client)
        if kind == b"R":
            (number,) = struct.unpack_from("!I", body)
            if number == _MD5 and client.password:
                _answer(sock, scram.md5_answer(client.role, client.password, body[4:8]) + b"\0")
            elif number == _SASL and client.password and _SCRAM in body[4:].split(b"\0"):
                kind, body = _scram(sock, stream, client.password)
            elif number:
                raise CannotLogIn(_method(body))
        while kind not in (b"E", b"Z"):  # ErrorResponse, ReadyForQuery
            kind, body = _receive(stream)
        return _refusal(body) if kind == b"E" else None


def sqlstate(received: bytes) -> str:
    """Return the SQLSTATE if the bytes begin with an ErrorResponse, else an empty text."""
    if received[:1] != b"E" or len(received) < 5:
        return ""
    (length,) = struct.unpack_from("!I", received, 1)
    return _refusal(received[5 : length + 1]).sqlstate


@contextmanager
def _connect(
    client: Client, context: ssl.SSLContext | None
) -> Iterator[tuple[socket.socket, IO[bytes], str | None]]:
    """Open a connection, within TLS if there is a context: socket, stream to read from, our own address."""
    with transport.open_socket(client) as plain:
        address = None if client.is_local else plain.getsockname()[0]
        if context is None:
            with plain.makefile("rb") as stream:
                yield plain, stream, address
            return
        name = client.name or client.host
        with transport.encrypt(plain, context, name) as sock, sock.makefile("rb") as stream:
            yield sock, stream, address


def _start(sock: socket.socket, stream: IO[bytes], client: Client) -> tuple[bytes, bytes]:
    """Send the start-up message; return the answer: an ErrorResponse (E) or an authentication request (R)."""
    replication = "replication\0true\0" if client.replication else ""
    fields = f"user\0{client.role}\0database\0{client.database}\0{replication}\0".encode()
    sock.sendall(struct.pack("!II", len(fields) + 8, _PROTOCOL) + fields)
    return _receive(stream, expected=b"ER")


def _receive(stream: IO[bytes], expected: bytes = b"") -> tuple[bytes, bytes]:
    """Return the kind and the body of the next message."""
    head = stream.read(5)
    if len(head) < 5:
        raise ConnectionResetError("the server closed the connection without an answer")
    kind, length = struct.unpack("!cI", head)
    if (expected and (kind not in expected or length < 8)) or not 4 <= length <= _MAX_MESSAGE_BYTES:
        raise ConnectionError("what answers there is no PostgreSQL server")
    body = stream.read(length - 4)
    if len(body) < length - 4:
        raise ConnectionResetError("the server closed the connection within its answer")
    return kind, body


def _answer(sock: socket.socket, body: bytes) -> None:
    """Answer an authentication request."""
    sock.sendall(b"p" + struct.pack("!I", len(body) + 4) + body)


def _method(body: bytes) -> str:
    (number,) = struct.unpack_from("!I", body)
    method = _METHODS.get(number, f"method {number}")
    offers_binding = number == _SASL and _SCRAM + b"-PLUS" in body[4:].split(b"\0")
    return f"{method}-plus" if offers_binding else method


def _refusal(body: bytes) -> Refusal:
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    message = " ".join(fields.get(b"M", "the server refuses").split())
    return Refusal(fields.get(b"C", ""), fields.get(b"R", ""), message)


def _scram(sock: socket.socket, stream: IO[bytes], password: str) -> tuple[bytes, bytes]:
    """Prove the password; return the server's last message of the exchange."""
    exchange = scram.ScramClient(password)
    first = exchange.first_message()
    _answer(sock, _SCRAM + b"\0" + struct.pack("!I", len(first)) + first)
    kind, body = _receive(stream, expected=b"ER")
    if kind == b"R":
        _answer(sock, exchange.final_message(body[4:].decode("ascii", "replace")))
        kind, body = _receive(stream, expected=b"ER")
    return kind, body
