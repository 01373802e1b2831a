"""The start-up protocol, spoken without libpq: what a server asks of a client, and why it refuses one.

libpq passes on the text of a refusal only, in whatever language the server writes. The protocol also carries the
SQLSTATE and the routine of the server that refused, which mean the same everywhere. `ask` ends at the server's first
answer, before any password; `log_in` goes on until the server lets the client in or refuses it.

Facts: PostgreSQL, "Message Flow: Start-up", "SSL Session Encryption", "Message Formats", "Error and Notice Message
Fields"; RFC 5802 and RFC 7677 for SCRAM.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import stringprep
import struct
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from pgorthanc_cli.errors import UsageError

_TIMEOUT_S = 10.0
_LONGEST = 30_000  # bytes of a message
_SSL_REQUEST = 80877103
_PROTOCOL = 3 << 16
# Authentication requests by their number; 0 means that the server asks for nothing more.
_METHODS = {0: "trust", 2: "krb5", 3: "password", 5: "md5", 7: "gss", 9: "sspi", 10: "scram-sha-256"}
_MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 5, 10, 11, 12
_SCRAM = b"SCRAM-SHA-256"
# The routines of the server that refuse a login, see `Refusal.routine`.
BY_HBA, BY_METHOD, BY_ROLE = "ClientAuthentication", "auth_failed", "InitializeSessionUserId"
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: an expired certificate can be read, too
_SHORT = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "localityName": "L", "stateOrProvinceName": "ST",
}  # fmt: skip

Connected = socket.socket


class NoTls(Exception):
    """The server does not offer TLS, or the handshake fails; the text says which."""


class Unknown(Exception):
    """The server asks for what cannot be given here, so nothing more becomes known."""


@dataclass(frozen=True)
class Refusal:
    """Why a server refuses a client.

    Attributes:
        sqlstate: Such as 28P01; empty if the server sends none.
        routine: The function of PostgreSQL's source that refused; empty if something else answers (PgBouncer).
        message: The server's words, in its own language.
    """

    sqlstate: str
    routine: str
    message: str


@dataclass(frozen=True)
class Answer:
    """What a server says to a client that has sent only its role and database.

    Attributes:
        method: A word of pg_hba.conf: trust (nothing more is asked), password, md5, scram-sha-256,
            scram-sha-256-plus (with channel binding), gss, sspi; of those that are refused: cert, peer, ident, `no
            line` (or a line that rejects: the protocol does not tell them apart), refused.
        refusal: Why the server refuses; None if it does not, at least before a password.
        address: Our own address on that connection; None through a socket of the machine.
    """

    method: str
    refusal: Refusal | None = None
    address: str | None = None

    @property
    def refuses(self) -> bool:
        """Whether it does not even ask for a password."""
        return self.refusal is not None

    @property
    def message(self) -> str:
        """The server's words, if it refuses."""
        return self.refusal.message if self.refusal else ""


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
    name: str = ""  # of the server, for its certificate
    password: str = field(default="", repr=False)

    @property
    def is_local(self) -> bool:
        """Whether it goes through a socket of the machine, where there is no TLS."""
        return self.host.startswith(("/", "@"))


def client(parameters: Mapping[str, str]) -> Client:
    """The client that libpq's effective parameters describe, see `db.effective_parameters`.

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
        host,
        int(parameters["port"]),
        parameters["user"],
        parameters["dbname"],
        pair if given else None,
        parameters.get("host", ""),
        parameters.get("password", ""),
    )


def ask(who: Client, *, tls: bool) -> Answer:
    """Return the first answer, in plain text or within TLS. No password is sent.

    Raises:
        NoTls: There is no TLS.
        OSError: The server cannot be reached, or does not speak the protocol.
    """
    with _session(who, _context(who) if tls else None) as (sock, stream, address):
        kind, body = _start(sock, stream, who)
        if kind == b"E":
            return _refused(_refusal(body), who, address, tls=tls)
        return Answer(_method(body), address=address)


def log_in(who: Client, context: ssl.SSLContext | None) -> Refusal | None:
    """Log in by md5 or SCRAM where the server asks for it; return why it refuses, None if it does not.

    Raises:
        Unknown: The server asks for the password itself, which is not sent a second time, or for a ticket.
        NoTls: There is no TLS, or the server's certificate does not satisfy the context.
        OSError: The server cannot be reached, or does not speak the protocol.
    """
    with _session(who, context) as (sock, stream, _):
        kind, body = _start(sock, stream, who)
        if kind == b"R":
            (number,) = struct.unpack_from("!I", body)
            if number == _MD5 and who.password:
                _send(sock, _md5(who, body[4:8]) + b"\0")
            elif number == _SASL and who.password and _SCRAM in body[4:].split(b"\0"):
                body = _scram(sock, stream, who.password)
                if body:
                    return _refusal(body)
            elif number:
                raise Unknown(_method(body))
        while kind not in (b"E", b"Z"):  # ErrorResponse, ReadyForQuery
            kind, body = _receive(stream)
        return _refusal(body) if kind == b"E" else None


def handshake(who: Client) -> Handshake:
    """TLS as everybody gets it, nothing verified.

    Raises:
        NoTls: There is no TLS.
        OSError: The server cannot be reached.
    """
    with opened(who) as plain, _encrypted(plain, _context()) as sock:
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
        with opened(who) as plain, _encrypted(plain, context) as sock:
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


def context(who: Client, parameters: Mapping[str, str]) -> ssl.SSLContext:
    """Return a TLS context that trusts the server no more than libpq does with these effective parameters.

    Raises:
        NoTls: The certificate of the client, or that of the authority, cannot be used.
    """
    made = _context(who)
    sslmode, root = parameters.get("sslmode", "prefer"), root_certificate(parameters)
    if sslmode in ("verify-ca", "verify-full") or (sslmode == "require" and Path(root).is_file()):
        made.verify_mode = ssl.CERT_REQUIRED
        made.check_hostname = sslmode == "verify-full"
        try:
            made.load_default_certs() if root == "system" else made.load_verify_locations(root)
        except OSError as error:
            raise NoTls(f"{root} cannot be used: {error}") from None
    return made


def verify(who: Client, parameters: Mapping[str, str]) -> None:
    """Make sure that an authority which these parameters name signed the server's certificate.

    Raises:
        ssl.SSLCertVerificationError: None did; it says why.
        NoTls: There is no TLS, or no authority.
        OSError: The server cannot be reached.
    """
    made = context(who, {**parameters, "sslmode": "verify-ca"})
    with opened(who) as plain:
        _request_tls(plain)
        made.wrap_socket(plain).close()


def root_certificate(parameters: Mapping[str, str]) -> str:
    """Return the file of the authorities that libpq trusts; it need not exist."""
    return parameters.get("sslrootcert") or str(Path.home() / ".postgresql" / "root.crt")


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
def _session(
    who: Client, context: ssl.SSLContext | None
) -> Iterator[tuple[Connected, IO[bytes], str | None]]:
    """A connection, encrypted if there is a context: its socket, the same to read from, our own address."""
    with opened(who) as plain:
        address = None if who.is_local else plain.getsockname()[0]
        if context is None:
            with plain.makefile("rb") as stream:
                yield plain, stream, address
            return
        with _encrypted(plain, context, who.name or who.host) as sock, sock.makefile("rb") as stream:
            yield sock, stream, address


@contextmanager
def opened(who: Client) -> Iterator[Connected]:
    """Open a connection to the server, and send nothing.

    Raises:
        OSError: It cannot be reached.
    """
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
def _encrypted(plain: Connected, context: ssl.SSLContext, name: str | None = None) -> Iterator[ssl.SSLSocket]:
    _request_tls(plain)
    try:
        with context.wrap_socket(plain, server_hostname=name) as sock:
            yield sock
    except ssl.SSLError as error:
        raise NoTls(f"the TLS handshake fails: {error.reason or error}") from None


def _request_tls(plain: Connected) -> None:
    plain.sendall(struct.pack("!II", 8, _SSL_REQUEST))
    if plain.recv(1) != b"S":
        raise NoTls("the server does not offer TLS")


def _start(sock: Connected, stream: IO[bytes], who: Client) -> tuple[bytes, bytes]:
    """Send the start-up packet; the first answer is an ErrorResponse or an authentication request."""
    fields = f"user\0{who.role}\0database\0{who.database}\0\0".encode()
    sock.sendall(struct.pack("!II", len(fields) + 8, _PROTOCOL) + fields)
    kind, body = _receive(stream, expected=b"ER")
    return kind, body


def _receive(stream: IO[bytes], expected: bytes = b"") -> tuple[bytes, bytes]:
    """Return the kind and the body of the next message."""
    head = stream.read(5)
    if len(head) < 5:
        raise ConnectionResetError("the server closed the connection without an answer")
    kind, length = struct.unpack("!cI", head)
    if (expected and (kind not in expected or length < 8)) or not 4 <= length <= _LONGEST:
        raise ConnectionError("what answers there is no PostgreSQL server")
    body = stream.read(length - 4)
    if len(body) < length - 4:
        raise ConnectionResetError("the server closed the connection within its answer")
    return kind, body


def _send(sock: Connected, body: bytes) -> None:
    """Send an answer to an authentication request."""
    sock.sendall(b"p" + struct.pack("!I", len(body) + 4) + body)


def _method(body: bytes) -> str:
    (number,) = struct.unpack_from("!I", body)
    method = _METHODS.get(number, f"method {number}")
    return f"{method}-plus" if number == _SASL and _SCRAM + b"-PLUS" in body[4:].split(b"\0") else method


def _refusal(body: bytes) -> Refusal:
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    return Refusal(
        fields.get(b"C", ""), fields.get(b"R", ""), " ".join(fields.get(b"M", "the server refuses").split())
    )


def sqlstate(received: bytes) -> str:
    """Return the SQLSTATE of the ErrorResponse that these bytes begin with; empty if they begin with another one."""
    if received[:1] != b"E" or len(received) < 5:
        return ""
    (length,) = struct.unpack_from("!I", received, 1)
    return _refusal(received[5 : length + 1]).sqlstate


def _refused(refusal: Refusal, who: Client, address: str | None, *, tls: bool) -> Answer:
    """Which method refuses before it has asked for anything: the routine tells, and the kind of connection."""
    method = "refused"
    if refusal.sqlstate == "28000" and refusal.routine == BY_METHOD:
        method = "peer" if who.is_local else "cert" if tls and who.certificate else "ident"
    elif refusal.sqlstate == "28000" and refusal.routine == BY_HBA:
        method = "no line" if names_client(refusal, who) else "cert"
    return Answer(method, refusal, address)


def names_client(refusal: Refusal, who: Client) -> bool:
    """Whether it is about a line of pg_hba.conf: these name the client, the others want a client certificate.

    The names are quoted in every language, and so is that of the file.
    """
    return "pg_hba.conf" in refusal.message or f"{who.role}" in refusal.message


def _md5(who: Client, salt: bytes) -> bytes:
    inner = hashlib.md5(who.password.encode() + who.role.encode()).hexdigest()  # noqa: S324 - the protocol
    return b"md5" + hashlib.md5(inner.encode() + salt).hexdigest().encode()  # noqa: S324


def _scram(sock: Connected, stream: IO[bytes], password: str) -> bytes:
    """Prove the password without channel binding; return the ErrorResponse, empty if the proof is accepted."""
    bare = f"n=,r={base64.b64encode(secrets.token_bytes(18)).decode()}"
    first = b"n,," + bare.encode()
    _send(sock, _SCRAM + b"\0" + struct.pack("!I", len(first)) + first)
    kind, body = _receive(stream, expected=b"ER")
    if kind == b"E":
        return body
    challenge = body[4:].decode("ascii", "replace")
    given = dict(part.partition("=")[::2] for part in challenge.split(","))
    try:
        salt, rounds, nonce = base64.b64decode(given["s"]), int(given["i"]), given["r"]
    except (KeyError, ValueError):
        raise ConnectionError("the server's challenge cannot be understood") from None
    final = f"c=biws,r={nonce}"
    salted = hashlib.pbkdf2_hmac("sha256", prepared(password).encode(), salt, rounds)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    signed = hmac.digest(
        hashlib.sha256(client_key).digest(), f"{bare},{challenge},{final}".encode(), "sha256"
    )
    proof = bytes(a ^ b for a, b in zip(client_key, signed, strict=True))
    _send(sock, f"{final},p={base64.b64encode(proof).decode()}".encode())
    kind, body = _receive(stream, expected=b"ER")
    return body if kind == b"E" else b""


_PROHIBITED = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
    stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
    stringprep.in_table_c9, stringprep.in_table_a1,
)  # fmt: skip


def prepared(password: str) -> str:
    """Return the password as SASLprep (RFC 4013) writes it; unchanged if it holds a prohibited character."""
    mapped = (" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    normalized = unicodedata.normalize("NFKC", "".join(mapped))
    return password if any(test(c) for test in _PROHIBITED for c in normalized) else normalized
