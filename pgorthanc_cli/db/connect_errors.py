"""Why a connection failed: one clear error, with what to do about it.

psycopg2 carries no SQLSTATE when a connection fails, only libpq's text. What libpq itself says in it is English
whatever the locale, because Python leaves LC_MESSAGES at "C"; `_Cause.pattern` recognises that. What the server says
follows its own lc_messages, which nothing can change before the login. So the server is asked once more over the
start-up protocol (`wire`), for the SQLSTATE and the routine that refused: `_Cause.states`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pgorthanc_cli.db import wire
from pgorthanc_cli.errors import ConnectError

Resolve = Callable[[Mapping[str, str]], Mapping[str, str]]


class PasswordRequired(ConnectError):
    """The server asks for a password and none was given: a command may ask on the terminal."""


class MissingDatabase(ConnectError):
    """The server is there and lets us in, but has no database of that name."""


@dataclass(frozen=True)
class _Cause:
    """A reason for a failed connection.

    Attributes:
        summary: What the user reads first, before libpq's own text.
        hint: What to do; `{role}` and `{database}` are those of the connection, as SQL writes them.
        pattern: What libpq's own text says then.
        states: The SQLSTATEs (or their classes) with which the server refuses then, where it matters with the
            routine that refused.
        heals: Whether the same call may succeed in a few seconds, without any action.
        error: The class raised.
    """

    summary: str
    hint: str
    pattern: str = ""
    states: tuple[str, ...] = ()
    heals: bool = False
    error: type[ConnectError] = ConnectError


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
_UNTOLD = _Cause(
    "login refused",
    "check the password of role {role}, that the role exists and may log in, and that the database exists; "
    "-v tells where each value came from",
)
_GONE = _Cause(
    "the server refused a moment ago, and no longer does",
    "run the same command again",
    heals=True,
)

# The first one that fits any part of the text counts. With several hosts a permanent reason goes before one that
# heals: a wrong password is not tried again because another host was down. A read-only server comes last: the
# writable one may be starting.
_CAUSES = (
    _Cause(
        "the server asks for a password, and none was given",
        "put it into ~/.pgpass, PGORTHANC_PASSWORD or a file for --password-file",
        r"no password supplied",
        error=PasswordRequired,
    ),
    _Cause(
        "login refused",
        "check the password of role {role}, and whether that role exists; -v tells where each came from",
        states=("28P01",),
    ),
    _Cause(
        "login refused",
        "the server decides by pg_hba.conf how {role} logs in; name another role with --username, "
        "or connect with --host localhost to use a password",
        states=(f"28000 {wire.BY_METHOD}",),
    ),
    _Cause(
        "login refused",
        "name a role with --username, or as administrator: CREATE ROLE {role} LOGIN PASSWORD '...'; "
        "if the role exists: ALTER ROLE {role} LOGIN",
        states=(f"28000 {wire.BY_ROLE}",),
    ),
    _Cause(
        "no such database",
        "create it: pgorthanc init --create-database; or name another one with --dbname",
        states=("3D000",),
        error=MissingDatabase,
    ),
    _Cause(
        "login refused",
        "as owner of the database: GRANT CONNECT ON DATABASE {database} TO {role}",
        states=("42501 CheckMyDatabase",),
    ),
    _Cause(
        "login refused",
        "the server's words name the attribute or the privilege that role {role} lacks; as administrator, for "
        "replication: ALTER ROLE {role} REPLICATION",
        states=("42501",),
    ),
    _Cause(
        "the database is closed",
        "as administrator: ALTER DATABASE {database} ALLOW_CONNECTIONS true",
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
    _UNTOLD,
    _Cause(
        "the server refuses a parameter of the connection",
        "check options and client_encoding of the connection, and ALTER ROLE {role} SET ...; "
        "-v tells where each value came from",
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
        "check --host, --port and the URI; -v tells where each value came from",
        r"could not match \d+|invalid (?:integer|port|\S+ value|option)",
    ),
    _Cause(
        "the server cannot be reached",
        "the name service does not answer: try again, or give an address with --host",
        r"Temporary failure in name resolution",
        heals=True,
    ),
    _Cause("unknown host", "check --host; -v tells where it came from", r"could not translate host name"),
    _Cause(
        "the server is not ready",
        "wait until it has started; a standby answers so for ever while hot_standby is off",
        states=("57P03", "57P01", "57P02"),
        heals=True,
    ),
    _Cause(
        "the server has too many connections",
        "close some, or raise max_connections or the limit of the role or database (CONNECTION LIMIT); "
        "an Orthanc holds up to IndexConnectionsCount of them",
        states=("53300",),
        heals=True,
    ),
    _GONE,
    _Cause(
        "the server does not answer",
        "check --host and --port, and the firewalls on the way",
        r"timeout expired|timed out",
        heals=True,
    ),
    _Cause(
        "the server cannot be reached",
        "check --host and --port, and that the server runs and listens there (listen_addresses)",
        r"Connection refused|No such file or directory|No route to host|Network is (?:unreachable|down)"
        r"|Host is down|closed the connection unexpectedly|Connection reset by peer",
        heals=True,
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
_OTHER = _Cause("the connection failed", "-v tells where each value of the connection came from")

# How libpq begins to speak of a server, and how the server's own words begin: severity, colon, two blanks.
_PLACE = re.compile(
    r'connection to server (?:at "(?P<host>[^"]*)"(?: \((?P<address>[^)]*)\))?, port (?P<port>\d+)'
    r'|on socket "(?P<socket>[^"]*)") failed: '
)
_BY_SERVER = re.compile(r"[^\s:]{1,40}:  ")
_VERIFY_EXPIRED, _VERIFY_NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def explain(text: str, resolve: Resolve) -> tuple[ConnectError, bool]:
    """Return the error to raise for a failed connection, and whether it may heal by itself.

    Args:
        text: What libpq says.
        resolve: Gives libpq's effective parameters when some are replaced by others, see `db.effective_parameters`.
    """
    attempts = list(_attempts(text))
    causes: list[tuple[_Cause, Mapping[str, str]]] = [
        (cause, {})
        for words, place in attempts
        for cause in _CAUSES
        if cause.pattern and not _BY_SERVER.match(words) and re.search(cause.pattern, words)
    ]
    refused = [place for words, place in attempts if _BY_SERVER.match(words)]
    for place in {tuple(sorted(place.items())): place for place in refused}.values():
        causes.extend(_asked(resolve, place, again=refused.count(place) > 1))
    cause, parameters = min(causes, key=lambda found: _CAUSES.index(found[0]), default=(_OTHER, {}))
    names = {
        key: _quoted(parameters.get(name, "")) for key, name in {"role": "user", "database": "dbname"}.items()
    }
    summary, hint = cause.summary, cause.hint.format_map(names)
    if cause is _CERTIFICATE:
        summary, hint = _certificate_reason(attempts, resolve, hint)
    return cause.error(f"{summary}: {_one_line(text)}", hint), cause.heals


def _attempts(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What libpq says of each attempt, and the parameters that lead to the same place again."""
    places = list(_PLACE.finditer(text))
    if not places:
        yield text, {}
        return
    for place, following in zip(places, [*places[1:], None], strict=True):
        words = text[place.end() : following.start() if following else None]
        if place["socket"]:
            folder, _, port = place["socket"].rpartition("/.s.PGSQL.")
            yield words, {"host": folder, "hostaddr": "", "port": port}
        else:
            yield words, {"host": place["host"], "hostaddr": place["address"] or "", "port": place["port"]}


def _asked(
    resolve: Resolve, place: Mapping[str, str], *, again: bool
) -> Iterator[tuple[_Cause, Mapping[str, str]]]:
    """Why the server at a place refuses; `again`: libpq has tried it with TLS and without."""
    try:
        parameters = resolve(place)
        who = wire.client(parameters)
    except ConnectError:
        yield _GONE, {}
        return
    for tls in _encryptions(parameters, who)[: 2 if again else None]:
        try:
            refusal = wire.log_in(who, wire.context(who, parameters) if tls else None)
        except wire.NoTls:
            continue
        except wire.Unknown:
            yield _UNTOLD, parameters
            return
        except OSError:
            yield _GONE, parameters
            return
        if refusal is None:
            yield _GONE, parameters
            return
        yield _cause(refusal, who, tls=tls), parameters
        if refusal.sqlstate == "28P01" or not again:
            return  # the password is wrong in any case, and each try may count


def _encryptions(parameters: Mapping[str, str], who: wire.Client) -> list[bool]:
    """In which order libpq tries TLS (True) and plain text."""
    orders = {"disable": [False], "allow": [False, True], "prefer": [True, False]}
    return [False] if who.is_local else orders.get(parameters.get("sslmode", "prefer"), [True])


def _cause(refusal: wire.Refusal, who: wire.Client, *, tls: bool) -> _Cause:
    """The cause that a refusal stands for."""
    state = f"{refusal.sqlstate} {refusal.routine}"
    if state == f"28000 {wire.BY_HBA}":
        if not wire.names_client(refusal, who):
            return _CLIENT_CERTIFICATE
        other = _REFUSES_CLIENT if who.is_local else _NEEDS_PLAIN if tls else _NEEDS_TLS
        return other if not who.is_local and _is_welcome(who, tls=not tls) else _REFUSES_CLIENT
    for wanted in (state, refusal.sqlstate, refusal.sqlstate[:2]):
        found = next((cause for cause in _CAUSES if wanted in cause.states), None)
        if found:
            return found
    return _UNTOLD if refusal.sqlstate.startswith("28") else _OTHER


def _is_welcome(who: wire.Client, *, tls: bool) -> bool:
    """Whether the server lets this client try to log in with or without TLS."""
    try:
        answer = wire.ask(who, tls=tls)
    except (wire.NoTls, OSError):
        return False
    return answer.method not in ("no line", "refused")


def _quoted(name: str) -> str:
    """As SQL writes an identifier."""
    return '"' + name.replace('"', '""') + '"'


def _one_line(text: str) -> str:
    """The text without libpq's own hints, which are indented; each line once (several addresses or TLS modes).

    The text is empty where psycopg2 cannot decode a translated message in another encoding.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    return "; ".join(dict.fromkeys(lines)) or "the server's words cannot be shown, they are not UTF-8"


def _certificate_reason(
    attempts: list[tuple[str, dict[str, str]]], resolve: Resolve, hint: str
) -> tuple[str, str]:
    """What exactly is wrong with the certificate, which libpq does not say: asked with Python's own TLS."""
    place = next((place for words, place in reversed(attempts) if not _BY_SERVER.match(words)), {})
    try:
        parameters = resolve(place)
        who = wire.client(parameters)
        wire.verify(who, parameters)
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
    except (OSError, ConnectError, wire.NoTls):
        pass  # the plain reason must do
    return _CERTIFICATE.summary, hint
