"""Why a connection failed: one clear error with a hint.

psycopg2 has no SQLSTATE for a failed connection, only libpq's text. libpq's own messages in it are always English,
because Python leaves LC_MESSAGES at "C"; `_Cause.pattern` matches them. The server's messages follow its lc_messages,
which nothing can change before the login. So we connect once more with the start-up protocol (`wire`), for the
SQLSTATE and the routine that refused: `_Cause.states`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pgorthanc_cli.db import transport, wire
from pgorthanc_cli.db.safe_session import quote_ident
from pgorthanc_cli.db.transport import Client
from pgorthanc_cli.errors import ConnectError, MissingDatabase, PasswordRequired
from pgorthanc_cli.text import printable

Resolve = Callable[[Mapping[str, str]], Mapping[str, str]]


@dataclass(frozen=True)
class _Cause:
    """A reason for a failed connection.

    Attributes:
        summary: The beginning of the error message, before libpq's own text; `{server}` and `{user}`
            are those of the connection.
        hint: What to do; `{role}` and `{database}` are those of the connection, quoted for SQL.
        pattern: Matches libpq's own text.
        states: The server's SQLSTATEs or their classes, with the routine that refused if that matters.
        transient: Whether the same call may succeed in a few seconds, without any action.
        error: The class to raise.
    """

    summary: str
    hint: str
    pattern: str = ""
    states: tuple[str, ...] = ()
    transient: bool = False
    error: type[ConnectError] = ConnectError


_NO_LOGIN = "cannot log in to {server} as {user}"
_CERTIFICATE = _Cause(
    "the server's certificate cannot be verified",
    "set sslrootcert in the URI to the certificate of the authority that signed the server's",
    r"certificate verify failed",
)
_CLIENT_CERTIFICATE = _Cause(
    "the server wants another client certificate",
    "set sslcert and sslkey in the URI to a certificate that an authority known to the server signed",
    r"alert (?:certificate required|unknown ca|bad certificate)",
)
_NEEDS_TLS = _Cause(
    "the server refuses connections without TLS",
    "try --sslmode verify-full (EnableSsl true in Orthanc is sslmode=require)",
)
_NEEDS_PLAIN = _Cause(
    "the server refuses this client with TLS, and accepts it without",
    "the administrator changes the line of pg_hba.conf for this client to hostssl; "
    "only on a trusted network: --sslmode disable (EnableSsl false)",
)
_REFUSES_CLIENT = _Cause(
    "the server refuses this client",
    "the administrator adds or changes the line for this client, role and database in pg_hba.conf",
)
_LOGIN_REFUSED = _Cause(
    _NO_LOGIN,
    "check the password of role {role}, that the role exists and may log in, and that the database exists; "
    "-v shows where each value came from",
)
_GONE = _Cause(
    "the server refused a moment ago, and no longer does",
    "run the same command again",
    transient=True,
)

# The first one that fits any part of the text counts. With several hosts a permanent reason goes before a
# transient one: a wrong password is not tried again because another host was down. A read-only server comes last: the
# writable one may be starting.
_CAUSES = (
    _Cause(
        "the server asks for a password, and none was given",
        "put it into ~/.pgpass, PGORTHANC_PASSWORD or a file for --password-file",
        r"no password supplied",
        error=PasswordRequired,
    ),
    _Cause(
        _NO_LOGIN,
        "check the password of role {role}, and whether that role exists; -v shows where each came from",
        states=("28P01",),
    ),
    _Cause(
        _NO_LOGIN,
        "the server decides by pg_hba.conf how {role} logs in; name another role with --username, "
        "or connect with --host localhost to use a password",
        states=(f"28000 {wire.BY_METHOD}",),
    ),
    _Cause(
        _NO_LOGIN,
        "name a role with --username, or as administrator: CREATE ROLE {role} LOGIN PASSWORD '...'; "
        "if the role exists: ALTER ROLE {role} LOGIN",
        states=(f"28000 {wire.BY_ROLE}",),
    ),
    _Cause(
        "no such database",
        "name another one with --dbname, or create it: pgorthanc init --create-database",
        states=("3D000",),
        error=MissingDatabase,
    ),
    _Cause(
        _NO_LOGIN,
        "as owner of the database: GRANT CONNECT ON DATABASE {database} TO {role};",
        states=("42501 CheckMyDatabase",),
    ),
    _Cause(
        _NO_LOGIN,
        "the server's words name the attribute or the privilege that role {role} lacks; as administrator, for "
        "replication: ALTER ROLE {role} REPLICATION;",
        states=("42501",),
    ),
    _Cause(
        "the database is closed",
        "as administrator: ALTER DATABASE {database} ALLOW_CONNECTIONS true;",
        states=("55000",),
    ),
    _CLIENT_CERTIFICATE,
    _Cause(
        "TLS refused by the server",
        "switch ssl on in postgresql.conf; only on a trusted network: --sslmode disable (EnableSsl false)",
        r"server does not support SSL, but SSL was required",
    ),
    _NEEDS_TLS,
    _NEEDS_PLAIN,
    _REFUSES_CLIENT,
    _Cause(
        "no way to log in that both sides accept",
        "compare pg_hba.conf and password_encryption of the server with require_auth and channel_binding "
        "of the connection",
        r"authentication method .* not supported|SCRAM authentication requires"
        r"|authentication method requirement|channel binding (?:is )?required",
    ),
    _LOGIN_REFUSED,
    _Cause(
        "the server refuses a parameter of the connection",
        "check options and client_encoding of the connection, and ALTER ROLE {role} SET ...; "
        "-v shows where each value came from",
        states=("22023", "42704", "42602", "0A000", "22P02"),
    ),
    _CERTIFICATE,
    _Cause(
        "the server cannot let anyone in",
        "the server's log says why; check the free space and the health of its disk (df), "
        "then run the same command again",
        states=("53", "58", "XX"),
    ),
    _Cause(
        "the server's certificate is for another host",
        "connect by a name that is in the certificate (--host), or have one made for this name",
        r'server certificate for ".*" (?:\(and \d+ other names?\) )?does not match host name'
        r"|host name must be specified",
    ),
    _Cause(
        "TLS failed",
        "check sslmode, sslrootcert, sslcert and sslkey of the connection",
        r"SSL (?:error|negotiation|connection|context|SYSCALL|protocol)|certificate|private key file|weak sslmode",
    ),
    _Cause(
        "the service file does not help",
        "check the name in PGSERVICE or service=, and the file ~/.pg_service.conf or PGSERVICEFILE",
        r"definition of service|service file|syntax error in service",
    ),
    _Cause(
        "wrong connection parameters",
        "check --host, --port and the URI; -v shows where each value came from",
        r"could not match \d+|invalid (?:integer|port|\S+ value|option)",
    ),
    _Cause(
        "cannot reach {server}",
        "the name service does not answer: try again, or give an address with --host",
        r"Temporary failure in name resolution",
        transient=True,
    ),
    _Cause("unknown host", "check --host; -v shows where it came from", r"could not translate host name"),
    _Cause(
        "the server is not ready",
        "wait until it has started; a standby answers so for ever while hot_standby is off",
        states=("57P03", "57P01", "57P02"),
        transient=True,
    ),
    _Cause(
        "the server has too many connections",
        "close some, or raise max_connections or the limit of the role or database (CONNECTION LIMIT); "
        "an Orthanc holds up to IndexConnectionsCount of them",
        states=("53300",),
        transient=True,
    ),
    _GONE,
    _Cause(
        "the server does not answer",
        "check --host and --port, and the firewalls on the way",
        r"timeout expired|timed out",
        transient=True,
    ),
    _Cause(
        "cannot reach {server}",
        "check --host and --port, and that the server runs and listens there (listen_addresses)",
        r"Connection refused|No such file or directory|No route to host|Network is (?:unreachable|down)"
        r"|Host is down|closed the connection unexpectedly|Connection reset by peer",
        transient=True,
    ),
    _Cause(
        "the server is a standby or read-only, and the DSN asks for one that can be written to",
        "name the primary with --host, or list all hosts in the URI beside target_session_attrs=read-write",
        r"session is read-only|server is in hot standby mode",
    ),
    _Cause(
        "the server is the primary, and target_session_attrs asks for another one",
        "name a standby with --host, or change target_session_attrs",
        r"session is not read-only|server is not in hot standby mode",
    ),
)  # fmt: skip
_OTHER = _Cause("the connection failed", "-v shows where each value of the connection came from")

# How libpq introduces an attempt, and how a message of the server begins: severity, colon, two blanks.
_ENDPOINT = re.compile(
    r'connection to server (?:at "(?P<host>[^"]*)"(?: \((?P<address>[^)]*)\))?, port (?P<port>\d+)'
    r'|on socket "(?P<socket>[^"]*)") failed: '
)
_BY_SERVER = re.compile(r"[^\s:]{1,40}:  ")
_VERIFY_EXPIRED, _VERIFY_NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def explain(text: str, resolve: Resolve) -> tuple[ConnectError, bool]:
    """Return the error to raise for a failed connection, and whether its cause is transient.

    Args:
        text: libpq's text.
        resolve: Returns libpq's effective parameters with some replaced, see `db.effective_parameters`.
    """
    attempts = list(_attempts(text))
    causes: list[tuple[_Cause, Mapping[str, str]]] = [
        (cause, {})
        for message, _ in attempts
        for cause in _CAUSES
        if cause.pattern and not _BY_SERVER.match(message) and re.search(cause.pattern, message)
    ]
    refused = [endpoint for message, endpoint in attempts if _BY_SERVER.match(message)]
    for endpoint in {tuple(sorted(endpoint.items())): endpoint for endpoint in refused}.values():
        causes.extend(_causes_of_refusal(resolve, endpoint, again=refused.count(endpoint) > 1))
    cause, parameters = min(causes, key=lambda each: _CAUSES.index(each[0]), default=(_OTHER, {}))
    user = parameters.get("user", "")
    server = ", ".join(_servers(attempts)) or "the server"
    summary = cause.summary.format(server=server, user=printable(user))
    hint = cause.hint.format(role=quote_ident(user), database=quote_ident(parameters.get("dbname", "")))
    if cause is _CERTIFICATE:
        summary, hint = _certificate_reason(attempts, resolve, hint)
    # A server that the summary names need not be named again in libpq's words.
    named = summary != cause.summary and len(_servers(attempts)) == 1
    words = _one_line("\n".join(message for message, _ in attempts) if named else text)
    if refused:
        return cause.error(summary, hint, server_message=words), cause.transient
    return cause.error(f"{summary}: {words}", hint), cause.transient


def _attempts(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Split libpq's text into the message of each attempt and the parameters of its endpoint."""
    matches = list(_ENDPOINT.finditer(text))
    if not matches:
        yield text, {}
        return
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        message = text[match.end() : following.start() if following else None]
        if match["socket"]:
            folder, _, port = match["socket"].rpartition("/.s.PGSQL.")
            yield message, {"host": folder, "hostaddr": "", "port": port}
        else:
            address = match["address"] or ""
            yield message, {"host": match["host"], "hostaddr": address, "port": match["port"]}


def _servers(attempts: Iterable[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Return the servers that were tried, such as `db1:5432`, each once."""
    names = (f"{printable(endpoint['host'])}:{endpoint['port']}" for _, endpoint in attempts if endpoint)
    return list(dict.fromkeys(names))


def _causes_of_refusal(
    resolve: Resolve, endpoint: Mapping[str, str], *, again: bool
) -> Iterator[tuple[_Cause, Mapping[str, str]]]:
    """Yield why the server at an endpoint refuses; `again`: libpq has tried it with TLS and without."""
    try:
        parameters = resolve(endpoint)
        client = Client.of(parameters)
    except ConnectError:
        yield _GONE, {}
        return
    # libpq's order of TLS (True) and plain text
    orders = {"disable": [False], "allow": [False, True], "prefer": [True, False]}
    order = [False] if client.is_local else orders.get(parameters.get("sslmode", "prefer"), [True])
    for tls in order:
        try:
            context = transport.libpq_context(client, parameters) if tls else None
            refusal = wire.log_in(client, context)
        except transport.TlsUnavailable:
            continue
        except wire.CannotLogIn:
            yield _LOGIN_REFUSED, parameters
            return
        except OSError:
            yield _GONE, parameters
            return
        if refusal is None:
            yield _GONE, parameters
            return
        yield _cause(refusal, client, tls=tls), parameters
        if refusal.sqlstate == "28P01" or not again:
            # The password is wrong in any case, and each try may count.
            return


def _cause(refusal: wire.Refusal, client: Client, *, tls: bool) -> _Cause:
    state = f"{refusal.sqlstate} {refusal.routine}"
    if state == f"28000 {wire.BY_HBA}":
        if not wire.names_client(refusal, client):
            return _CLIENT_CERTIFICATE
        if client.is_local or not _may_try(client, tls=not tls):
            return _REFUSES_CLIENT
        return _NEEDS_PLAIN if tls else _NEEDS_TLS
    for key in (state, refusal.sqlstate, refusal.sqlstate[:2]):
        matches = [cause for cause in _CAUSES if key in cause.states]
        if matches:
            return matches[0]
    return _LOGIN_REFUSED if refusal.sqlstate.startswith("28") else _OTHER


def _may_try(client: Client, *, tls: bool) -> bool:
    """Return whether the server lets this client try to log in, with TLS or without."""
    try:
        answer = wire.first_answer(client, tls=tls)
    except (transport.TlsUnavailable, OSError):
        return False
    return answer.method not in ("no line", "refused")


def _one_line(text: str) -> str:
    """Return libpq's text without its hints, which are indented, and each line once."""
    # Lines repeat for several addresses or TLS modes. psycopg2 leaves the text empty if it cannot decode it.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    return "; ".join(dict.fromkeys(lines)) or "the server's words cannot be shown, they are not UTF-8"


def _certificate_reason(
    attempts: list[tuple[str, dict[str, str]]], resolve: Resolve, hint: str
) -> tuple[str, str]:
    """Return summary and hint for a certificate that fails verification; libpq does not say why, Python does."""
    failed = [endpoint for message, endpoint in attempts if not _BY_SERVER.match(message)]
    try:
        parameters = resolve(failed[-1] if failed else {})
        transport.verify_certificate(Client.of(parameters), parameters)
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
    except (OSError, ConnectError, transport.TlsUnavailable):
        pass  # then libpq's own reason must do
    return _CERTIFICATE.summary, hint
