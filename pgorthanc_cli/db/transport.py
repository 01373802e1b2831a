"""Sockets and TLS to a PostgreSQL server without libpq: for its certificate, and below the start-up protocol (`wire`).

Facts: PostgreSQL, "SSL Session Encryption"; libpq, "Connection Strings", "SSL Support".
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from pgorthanc_cli.errors import UsageError

_SSL_REQUEST = 80877103  # the code of an SSLRequest message
# X509_V_FLAG_NO_CHECK_TIME: an expired certificate can be read, too.
_NO_CHECK_TIME = 0x200000
_SHORT_NAMES = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "localityName": "L", "stateOrProvinceName": "ST",
}  # fmt: skip


class TlsUnavailable(Exception):
    """The server does not offer TLS, or the handshake fails; the message says which."""


@dataclass(frozen=True)
class Certificate:
    """A server's certificate; dates in UTC."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class Handshake:
    """The TLS parameters that this machine's OpenSSL and the server agree on.

    `certificate` is None if it cannot be read.
    """

    protocol: str
    cipher: str
    certificate: Certificate | None


class Client(NamedTuple):
    """A client of one server.

    Attributes:
        host: Address or host name; the folder of a UNIX socket; with @ an abstract socket.
        certificate: Files of the client certificate and its key.
        name: The server's name for its certificate.
        replication: Whether the client asks for physical replication; its database is `replication`.
        timeout_s: Limit for each step.
    """

    host: str
    port: int
    role: str
    database: str
    certificate: tuple[str, str] | None = None
    name: str = ""
    password: str = field(default="", repr=False)
    replication: bool = False
    timeout_s: float = 10.0

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Client:
        """Return the client that libpq's effective parameters describe, see `db.effective_parameters`.

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
        usable = all(Path(path).is_file() for path in pair) and "sslpassword" not in parameters
        return cls(
            host,
            int(parameters["port"]),
            parameters["user"],
            parameters["dbname"],
            pair if usable else None,
            parameters.get("host", ""),
            parameters.get("password", ""),
        )

    @property
    def is_local(self) -> bool:
        """Whether it uses a UNIX socket, where PostgreSQL has no TLS."""
        return self.host.startswith(("/", "@"))


@contextmanager
def open_socket(client: Client) -> Iterator[socket.socket]:
    """Open a connection to the server, and send nothing.

    Raises:
        OSError: It cannot be reached.
    """
    if client.is_local:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(client.timeout_s)
        try:
            # libpq writes an abstract socket with @, the kernel with a NUL character
            sock.connect(f"{client.host.replace('@', chr(0), 1)}/.s.PGSQL.{client.port}")
        except OSError:
            sock.close()
            raise
    else:
        sock = socket.create_connection((client.host, client.port), client.timeout_s)
    with sock:
        yield sock


@contextmanager
def encrypt(
    plain: socket.socket, context: ssl.SSLContext, name: str | None = None
) -> Iterator[ssl.SSLSocket]:
    """Ask the server for TLS and do the handshake.

    Raises:
        TlsUnavailable: There is no TLS, or the handshake fails.
    """
    _require_tls(plain)
    try:
        with context.wrap_socket(plain, server_hostname=name) as sock:
            yield sock
    except ssl.SSLError as error:
        raise TlsUnavailable(f"the TLS handshake fails: {error.reason or error}") from None


def request_tls(plain: socket.socket) -> bytes:
    """Ask the server for TLS; return its answer: S (yes), N (no), E (an error); empty or else: not PostgreSQL."""
    plain.sendall(struct.pack("!II", 8, _SSL_REQUEST))
    # One byte only: what else came in plain text must not be taken for a part of TLS.
    return plain.recv(1)


def _require_tls(plain: socket.socket) -> None:
    if request_tls(plain) != b"S":
        raise TlsUnavailable("the server does not offer TLS")


def root_certificate(parameters: Mapping[str, str]) -> str:
    """Return the file of the authorities that libpq trusts; it need not exist."""
    return parameters.get("sslrootcert") or str(Path.home() / ".postgresql" / "root.crt")


def unverified_context(client: Client | None = None) -> ssl.SSLContext:
    """Return a TLS context that accepts any certificate: for connections that carry nothing secret.

    Raises:
        TlsUnavailable: The certificate of the client cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if client and client.certificate:
        path = client.certificate[0]
        try:
            # Without this, OpenSSL would ask for the passphrase of a key on the terminal.
            context.load_cert_chain(*client.certificate, password=lambda: b"")
        except OSError as error:
            raise TlsUnavailable(f"the client's certificate {path} cannot be used: {error}") from None
    return context


def libpq_context(client: Client, parameters: Mapping[str, str]) -> ssl.SSLContext:
    """Return a TLS context that trusts the server no more than libpq does with these effective parameters.

    Raises:
        TlsUnavailable: The certificate of the client, or that of the authority, cannot be used.
    """
    context = unverified_context(client)
    sslmode, root = parameters.get("sslmode", "prefer"), root_certificate(parameters)
    # For compatibility libpq treats `require` as `verify-ca` where there is a root certificate.
    if sslmode in ("verify-ca", "verify-full") or (sslmode == "require" and Path(root).is_file()):
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = sslmode == "verify-full"
        try:
            context.load_default_certs() if root == "system" else context.load_verify_locations(root)
        except OSError as error:
            raise TlsUnavailable(f"{root} cannot be used: {error}") from None
    return context


def verify_certificate(client: Client, parameters: Mapping[str, str]) -> None:
    """Verify that an authority named by these parameters signed the server's certificate.

    Raises:
        ssl.SSLCertVerificationError: None did; it says why.
        TlsUnavailable: There is no TLS, or no authority.
        OSError: The server cannot be reached.
    """
    context = libpq_context(client, {**parameters, "sslmode": "verify-ca"})
    with open_socket(client) as plain:
        _require_tls(plain)
        context.wrap_socket(plain).close()


def tls_handshake(client: Client) -> Handshake:
    """Return the TLS parameters of a connection without a client certificate; nothing is verified.

    Raises:
        TlsUnavailable: There is no TLS.
        OSError: The server cannot be reached.
    """
    with open_socket(client) as plain, encrypt(plain, unverified_context()) as sock:
        protocol, cipher = sock.version() or "", (sock.cipher() or ("",))[0]
        encoded = sock.getpeercert(binary_form=True) or b""
    return Handshake(protocol, cipher, _certificate(client, encoded))


def _certificate(client: Client, encoded: bytes) -> Certificate | None:
    """Return the fields of a server's certificate, None if they cannot be read.

    Python decodes only a certificate that it trusts: so a second connection trusts exactly this one, whatever
    its dates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_verify_locations(cadata=encoded)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        with open_socket(client) as plain, encrypt(plain, context) as sock:
            fields: dict[str, Any] = sock.getpeercert() or {}
        return Certificate(
            _distinguished_name(fields["subject"]),
            _distinguished_name(fields["issuer"]),
            tuple(value for _, value in fields.get("subjectAltName", ())),
            _date(fields["notBefore"]),
            _date(fields["notAfter"]),
        )
    except (OSError, TlsUnavailable, KeyError):
        return None


def _distinguished_name(parts: Any) -> str:
    pairs = [pair for part in parts for pair in part]
    return ", ".join(f"{_SHORT_NAMES.get(key, key)}={value}" for key, value in pairs)


def _date(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), timezone.utc)
