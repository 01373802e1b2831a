"""Why a connection failed: libpq's text made into one clear error, with what to do about it.

psycopg2 carries no SQLSTATE when a connection fails, only text. The client's half of it is English whatever
the locale, because Python leaves LC_MESSAGES at "C". The server's half follows its own lc_messages, which
nothing can change before the login. So a text that no row of `_CAUSES` knows is settled by asking the server
once more, by hand, for the SQLSTATE that the postmaster gives before any login (`_startup_sqlstate`); a refusal
in another language still is a ConnectError that shows the server's words, and is never tried again.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli.errors import ConnectError

_PROBE_TIMEOUT_S = 5.0


class PasswordRequired(ConnectError):
    """The server asks for a password and none was given: a command may ask on the terminal."""


class MissingDatabase(ConnectError):
    """The server is there and lets us in, but has no database of that name."""


@dataclass(frozen=True)
class _Cause:
    """A reason for a failed connection.

    Attributes:
        pattern: What libpq's text says then.
        summary: What the user reads first, before libpq's own text.
        hint: What to do; `{name}` stands for a group of the pattern.
        heals: Whether the same call may succeed in a few seconds, without anybody doing anything.
        error: The class raised.
    """

    pattern: str
    summary: str
    hint: str
    heals: bool = False
    error: type[ConnectError] = ConnectError


_STARTING = _Cause(
    r"FATAL:  the database system is (?:starting up|shutting down|in recovery mode"
    r"|not (?:yet )?accepting connections)",
    "the server is not ready",
    "wait until it has started; a standby answers so for ever while hot_standby is off",
    heals=True,
)
_FULL = _Cause(
    r"FATAL:  (?:sorry, )?too many (?:clients|connections)|remaining connection slots are reserved",
    "the server has too many connections",
    "close some, or raise max_connections; an Orthanc holds up to IndexConnectionsCount of them",
    heals=True,
)
_CERTIFICATE = _Cause(
    r"certificate verify failed",
    "the server's certificate cannot be verified",
    "set sslrootcert in the URI to the certificate of the authority that signed the server's",
)

# The first row that fits any part of the text counts. With several hosts a permanent reason goes before one
# that heals: a wrong password is not tried again because another host was down. A read-only server comes last:
# the writable one may be starting.
_CAUSES = (
    _Cause(
        r"no password supplied",
        "the server asks for a password, and none was given",
        "put it into ~/.pgpass, PGORTHANC_PASSWORD or a file for --password-file",
        error=PasswordRequired,
    ),
    _Cause(
        r'FATAL:  (?:password|SCRAM|MD5)\S* authentication failed for user "(?P<role>[^"]*)"',
        "login refused",
        'check the password of role "{role}", and whether that role exists; -v tells where each came from',
    ),
    _Cause(
        r'FATAL:  \S+ authentication failed for user "(?P<role>[^"]*)"',
        "login refused",
        'the server decides by pg_hba.conf how "{role}" logs in; name another role with --username, '
        "or connect with --host localhost to use a password",
    ),
    _Cause(
        r'FATAL:  role "(?P<role>[^"]*)" (?:does not exist|is not permitted to log in)',
        "login refused",
        'name a role with --username, or as administrator: CREATE ROLE "{role}" LOGIN PASSWORD \'...\'',
    ),
    _Cause(
        r'FATAL:  database "(?P<database>[^"]*)" does not exist',
        "no such database",
        "create it: pgorthanc init --create-database; or name another one with --dbname",
        error=MissingDatabase,
    ),
    _Cause(
        r'FATAL:  permission denied for database "(?P<database>[^"]*)"',
        "login refused",
        'as owner of the database: GRANT CONNECT ON DATABASE "{database}" TO the role',
    ),
    _Cause(
        r'FATAL:  database "(?P<database>[^"]*)" is not currently accepting connections',
        "the database is closed",
        'as administrator: ALTER DATABASE "{database}" ALLOW_CONNECTIONS true',
    ),
    _Cause(
        r"FATAL:  connection requires a valid client certificate"
        r"|alert (?:certificate required|unknown ca|bad certificate)",
        "the server wants another client certificate",
        "set sslcert and sslkey in the URI to a certificate that an authority known to the server signed",
    ),
    _Cause(
        r"server does not support SSL, but SSL was required",
        "TLS refused by the server",
        "switch ssl on in postgresql.conf; only on a trusted network: --sslmode disable (EnableSsl false)",
    ),
    _Cause(
        r"(?s)\A(?!.*(?:SSL encryption|SSL on|\[local\])).*no pg_hba\.conf entry for .*(?:no encryption|SSL off)",
        "the server refuses connections without TLS, or this client altogether",
        "try --sslmode verify-full (EnableSsl true in Orthanc is sslmode=require); otherwise the "
        "administrator adds a line for this client to pg_hba.conf",
    ),
    _Cause(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects connection",
        "the server refuses this client",
        "the administrator adds or changes the line for this client, role and database in pg_hba.conf",
    ),
    _Cause(
        r"authentication method .* not supported|SCRAM authentication requires"
        r"|authentication method requirement|channel binding (?:is )?required",
        "no way to log in that both sides accept",
        "compare pg_hba.conf and password_encryption of the server with require_auth and channel_binding "
        "of the connection",
    ),
    _CERTIFICATE,
    _Cause(
        r'server certificate for ".*" (?:\(and \d+ other names?\) )?does not match host name'
        r"|host name must be specified",
        "the server's certificate is for another host",
        "connect by a name that is in the certificate (--host), or have one made for this name",
    ),
    _Cause(
        r"SSL (?:error|negotiation|connection|context|SYSCALL|protocol)|certificate|private key file|weak sslmode",
        "TLS failed",
        "check sslmode, sslrootcert, sslcert and sslkey of the connection",
    ),
    _Cause(
        r"definition of service|service file|syntax error in service",
        "the service file does not help",
        "check the name in PGSERVICE or service=, and the file ~/.pg_service.conf or PGSERVICEFILE",
    ),
    _Cause(
        r"could not match \d+|invalid (?:integer|port|\S+ value|option)",
        "wrong connection parameters",
        "check --host, --port and the URI; -v tells where each value came from",
    ),
    _Cause(
        r"Temporary failure in name resolution",
        "the server cannot be reached",
        "the name service does not answer: try again, or give an address with --host",
        heals=True,
    ),
    _Cause(
        r"could not translate host name",
        "unknown host",
        "check --host; -v tells where it came from",
    ),
    _STARTING,
    _FULL,
    _Cause(
        r"timeout expired|timed out",
        "the server does not answer",
        "check --host and --port, and the firewalls on the way",
        heals=True,
    ),
    _Cause(
        r"Connection refused|No such file or directory|No route to host|Network is (?:unreachable|down)"
        r"|Host is down|closed the connection unexpectedly|Connection reset by peer",
        "the server cannot be reached",
        "check --host and --port, and that the server runs and listens there (listen_addresses)",
        heals=True,
    ),
    _Cause(
        r"session is read-only|server is in hot standby mode",
        "the server is a standby or read-only, and the DSN asks for one that can be written to",
        "name the primary with --host, or list all hosts in the URI beside target_session_attrs=read-write",
    ),
    _Cause(
        r"session is not read-only|server is not in hot standby mode",
        "the server is the primary, and target_session_attrs asks for another one",
        "name a standby with --host, or change target_session_attrs",
    ),
)  # fmt: skip
_OTHER = _Cause("", "the connection failed", "-v tells where each value of the connection came from")

_PLACE = re.compile(
    r'connection to server (?:at "(?P<host>[^"]*)"(?: \((?P<address>[^)]*)\))?, port (?P<port>\d+)'
    r'|on socket "(?P<socket>[^"]*)") failed: '
)
_VERIFY_EXPIRED, _VERIFY_NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def explain(text: str, parameters: Mapping[str, str]) -> tuple[ConnectError, bool]:
    """The error to raise for libpq's text about a failed connection, and whether it may heal by itself."""
    cause, groups = _find(text, parameters)
    summary, hint = cause.summary, cause.hint.format_map(groups)
    if cause is _CERTIFICATE:
        summary, hint = _certificate_reason(text, parameters, hint)
    return cause.error(f"{summary}: {_one_line(text)}", hint), cause.heals


def _find(text: str, parameters: Mapping[str, str]) -> tuple[_Cause, dict[str, str]]:
    for cause in _CAUSES:
        match = re.search(cause.pattern, text)
        if match:
            return cause, match.groupdict()
    sqlstate = _startup_sqlstate(text, parameters)
    return {"57P03": _STARTING, "53300": _FULL}.get(sqlstate, _OTHER), {}


def _one_line(text: str) -> str:
    """The text without libpq's own hints, which are indented; each line once (several addresses or TLS modes).

    The text is empty where psycopg2 cannot decode a translated message in another encoding.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    return "; ".join(dict.fromkeys(lines)) or "the server's words cannot be shown, they are not UTF-8"


def _startup_sqlstate(text: str, parameters: Mapping[str, str]) -> str:
    """The SQLSTATE of the server's answer to a start-up packet; empty if it goes on to the login.

    A server that starts, stops or is full says so before TLS, pg_hba.conf and passwords come into play
    (PostgreSQL, "Message Flow: Start-up").
    """
    fields = (
        f"user\0{parameters.get('user', 'pgorthanc')}\0database\0{parameters.get('dbname', 'postgres')}\0\0"
    )
    body = struct.pack("!I", 3 << 16) + fields.encode()
    try:
        with _open(text) as sock:
            sock.sendall(struct.pack("!I", len(body) + 4) + body)
            with sock.makefile("rb") as stream:
                kind, length = struct.unpack("!cI", stream.read(5))
                answer = stream.read(length - 4) if kind == b"E" else b""
    except (OSError, struct.error):
        return ""
    codes = [part[1:] for part in answer.split(b"\0") if part.startswith(b"C")]
    return codes[0].decode("ascii", "replace") if codes else ""


def _certificate_reason(text: str, parameters: Mapping[str, str], hint: str) -> tuple[str, str]:
    """What exactly is wrong with the certificate, which libpq does not say: asked with Python's own TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    default = Path.home() / ".postgresql" / "root.crt"
    root = parameters.get("sslrootcert") or os.environ.get("PGSSLROOTCERT") or str(default)
    try:
        if root == "system":
            context.load_default_certs()
        else:
            context.load_verify_locations(root)
        with _open(text) as sock:
            sock.sendall(struct.pack("!II", 8, 80877103))  # SSLRequest
            if sock.recv(1) == b"S":
                context.wrap_socket(sock).close()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _VERIFY_EXPIRED:
            return (
                "the server's certificate has expired",
                "have the server's certificate renewed; then reload the server",
            )
        if error.verify_code == _VERIFY_NOT_YET_VALID:
            return (
                "the server's certificate is not valid yet",
                "compare the clocks of this machine and the server",
            )
        return f"{_CERTIFICATE.summary} ({error.verify_message})", hint
    except OSError:
        pass  # the plain reason must do
    return _CERTIFICATE.summary, hint


def _open(text: str) -> socket.socket:
    """A socket to the last server that libpq's text speaks of."""
    places = list(_PLACE.finditer(text))
    if not places:
        raise OSError("no server named")
    place = places[-1]
    if place["socket"] is None:
        return socket.create_connection(
            (place["address"] or place["host"], int(place["port"])), _PROBE_TIMEOUT_S
        )
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_PROBE_TIMEOUT_S)
        sock.connect(place["socket"])
    except OSError:
        sock.close()
        raise
    return sock
