"""What a server asks of a client, from its first answer: without any password, and without libpq.

Speaks just enough of the protocol (PostgreSQL, "Message Flow: Start-up" and "SSL Session Encryption", "Message
Formats"): SSLRequest, StartupMessage, and the first message that the server sends then.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pgorthanc_cli.errors import UsageError

_TIMEOUT_S = 10.0
_LONGEST = 30_000  # bytes of a first message
_SSL_REQUEST = 80877103
_PROTOCOL = 3 << 16
# Authentication requests by their number; 0 means that the server asks for nothing more.
_METHODS = {0: "trust", 2: "krb5", 3: "password", 5: "md5", 7: "gss", 9: "sspi", 10: "scram-sha-256"}
_SASL = 10
# Refusals before any request, by the server's words; another language leaves `refused`.
_REFUSALS = {
    "pg_hba.conf rejects": "reject",
    "no pg_hba.conf entry": "no line",
    "requires a valid client certificate": "cert",
    "certificate authentication failed": "cert",
    "Peer authentication failed": "peer",
    "Ident authentication failed": "ident",
}
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: an expired certificate can be read, too
_SHORT = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "localityName": "L", "stateOrProvinceName": "ST",
}  # fmt: skip

Connected = socket.socket


class NoTls(Exception):
    """The server does not offer TLS, or the handshake fails; the text says which."""


@dataclass(frozen=True)
class Answer:
    """What a server says to a client that has told only its role and database.

    Attributes:
        method: A word of pg_hba.conf: trust (nothing more is asked), password, md5, scram-sha-256,
            scram-sha-256-plus (with channel binding), gss, sspi; of those who are refused: reject, no line, cert,
            peer, ident, refused.
        message: The server's words, if it refuses.
        address: Our own address on that connection; None through a socket of the machine.
    """

    method: str
    message: str = ""
    address: str | None = None

    @property
    def refuses(self) -> bool:
        """Whether it does not even ask for a password."""
        return bool(self.message)


@dataclass(frozen=True)
class Certificate:
    """A server's certificate, as it shows it to everybody; dates in UTC."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class Handshake:
    """What this machine's OpenSSL and the server agree on; `certificate` is None if it cannot be read."""

    protocol: str
    cipher: str
    certificate: Certificate | None


@dataclass(frozen=True)
class Client:
    """Where to ask, for whom, and with which certificate; made from libpq's parameters by `client`."""

    host: str
    port: int
    role: str
    database: str
    certificate: tuple[str, str] | None = None

    @property
    def is_local(self) -> bool:
        """Whether it goes through a socket of the machine, where there is no TLS."""
        return self.host.startswith(("/", "@"))


def client(parameters: Mapping[str, str]) -> Client:
    """The client that libpq's effective parameters describe, see `db.effective`.

    Raises:
        UsageError: They name several servers.
    """
    host = parameters.get("hostaddr") or parameters["host"]
    if "," in host:
        raise UsageError(
            f"the connection names several servers, {host}, and each may ask for something else",
            "name one of them with --host",
        )
    home = Path.home() / ".postgresql"
    pair = (
        parameters.get("sslcert") or str(home / "postgresql.crt"),
        parameters.get("sslkey") or str(home / "postgresql.key"),
    )
    given = all(Path(path).is_file() for path in pair) and "sslpassword" not in parameters
    return Client(
        host, int(parameters["port"]), parameters["user"], parameters["dbname"], pair if given else None
    )


def ask(who: Client, *, tls: bool) -> Answer:
    """The first answer, in plain text or within TLS.

    Raises:
        NoTls: There is no TLS.
        OSError: The server cannot be reached, or does not speak the protocol.
    """
    with _open(who) as plain:
        address = None if who.is_local else plain.getsockname()[0]
        if not tls:
            return _ask(plain, who, address)
        with _encrypted(plain, _context(who)) as sock:
            return _ask(sock, who, address)


def handshake(who: Client) -> Handshake:
    """TLS as everybody gets it, nothing verified.

    Raises:
        NoTls: There is no TLS.
        OSError: The server cannot be reached.
    """
    with _open(who) as plain, _encrypted(plain, _context()) as sock:
        protocol, cipher = sock.version() or "", (sock.cipher() or ("",))[0]
        shown = sock.getpeercert(binary_form=True) or b""
    return Handshake(protocol, cipher, _certificate(who, shown))


def _certificate(who: Client, shown: bytes) -> Certificate | None:
    """Its fields. Python tells only those of a certificate that it trusts: so it trusts this one, whatever its date."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_verify_locations(cadata=shown)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        with _open(who) as plain, _encrypted(plain, context) as sock:
            fields: dict[str, Any] = sock.getpeercert() or {}
        return Certificate(
            _name(fields["subject"]),
            _name(fields["issuer"]),
            tuple(value for _, value in fields.get("subjectAltName", ())),
            _date(fields["notBefore"]),
            _date(fields["notAfter"]),
        )
    except (OSError, NoTls, KeyError):
        return None


def _name(parts: Any) -> str:
    pairs = [pair for part in parts for pair in part]
    return ", ".join(f"{_SHORT.get(key, key)}={value}" for key, value in pairs)


def _date(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), timezone.utc)


def _context(who: Client | None = None) -> ssl.SSLContext:
    """Takes any certificate: here it is only looked at, and nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if who and who.certificate:
        try:
            context.load_cert_chain(*who.certificate, password=lambda: b"")
        except OSError as error:
            raise NoTls(f"the client's certificate {who.certificate[0]} cannot be used: {error}") from None
    return context


@contextmanager
def _open(who: Client) -> Iterator[Connected]:
    if who.is_local:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(f"{who.host.replace('@', chr(0), 1)}/.s.PGSQL.{who.port}")
        except OSError:
            sock.close()
            raise
    else:
        sock = socket.create_connection((who.host, who.port), _TIMEOUT_S)
    with sock:
        yield sock


@contextmanager
def _encrypted(plain: Connected, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    plain.sendall(struct.pack("!II", 8, _SSL_REQUEST))
    if plain.recv(1) != b"S":
        raise NoTls("the server does not offer TLS")
    try:
        with context.wrap_socket(plain) as sock:
            yield sock
    except ssl.SSLError as error:
        raise NoTls(f"the TLS handshake fails: {error.reason or error}") from None


def _ask(sock: Connected, who: Client, address: str | None) -> Answer:
    fields = f"user\0{who.role}\0database\0{who.database}\0\0".encode()
    sock.sendall(struct.pack("!II", len(fields) + 8, _PROTOCOL) + fields)
    with sock.makefile("rb") as stream:
        head = stream.read(5)
        if len(head) < 5:
            raise ConnectionResetError("the server closed the connection without an answer")
        kind, length = struct.unpack("!cI", head)
        if kind not in b"ER" or not 8 <= length <= _LONGEST:
            raise ConnectionError("what answers there is no PostgreSQL server")
        body = stream.read(length - 4)
        if len(body) < length - 4:
            raise ConnectionResetError("the server closed the connection within its answer")
    if kind == b"E":
        return _refusal(body, address)
    (number,) = struct.unpack_from("!I", body)
    method = _METHODS.get(number, f"method {number}")
    if number == _SASL and b"SCRAM-SHA-256-PLUS" in body[4:].split(b"\0"):
        method += "-plus"
    return Answer(method, address=address)


def _refusal(body: bytes, address: str | None) -> Answer:
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    message = fields.get(b"M", "the server refuses")
    method = next((name for words, name in _REFUSALS.items() if words in message), "refused")
    return Answer(method, message, address)
