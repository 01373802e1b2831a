"""What libpq understands of the "PostgreSQL" section: the plugin joins its values without quotes.

Found with the plugins 4.0 and 5.0 of Debian: `sslmode user host port password dbname`, in this order, separated by
spaces; password and dbname are left out when empty, user and host are not. The ApplicationName of plugin 10.0 and
later comes last here; its location was not seen.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.config.documents import Problem
from pgorthanc_cli.config.options import POSTGRESQL_KEYS, SECTION
from pgorthanc_cli.errors import ConnectError, UsageError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# The plugin's keys in the order in which it joins them -> libpq's words.
FIELDS = {
    "EnableSsl": "sslmode", "Username": "user", "Host": "host", "Port": "port", "Password": "password",
    "Database": "dbname", "ApplicationName": "application_name",
}  # fmt: skip
_LEFT_OUT_WHEN_EMPTY = ("Password", "Database", "ApplicationName")
_CHARACTERS = {" ": "a space", "\t": "a tab", "\n": "a line end", "\r": "a line end", "\\": "a backslash"}
_TEXTS = ("user", "host", "password", "dbname", "application_name")
# Parameters of libpq that are worth printing, with their defaults. Others, such as those of the
# newest libpq, are printed only if the user has set them: an older libpq refuses unknown ones.
_DEFAULTS = {
    "host": "", "hostaddr": "", "port": "", "dbname": "", "user": "", "password": "", "sslmode": "prefer",
    "sslrootcert": "", "sslcert": "", "sslkey": "", "sslpassword": "", "sslcrl": "", "sslcrldir": "",
    "target_session_attrs": "any", "load_balance_hosts": "disable", "connect_timeout": "", "options": "",
    "application_name": "", "channel_binding": "prefer", "require_auth": "",
    "krbsrvname": "postgres", "keepalives": "", "keepalives_idle": "", "keepalives_interval": "",
    "keepalives_count": "", "tcp_user_timeout": "", "sslnegotiation": "postgres",
}  # fmt: skip
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def intended(section: Mapping[str, Any]) -> dict[str, str]:
    """Return libpq's parameters that the single fields mean, with the plugin's defaults."""
    given = {key: section.get(key, POSTGRESQL_KEYS[key].default) for key in FIELDS}
    given["EnableSsl"] = "require" if given["EnableSsl"] else "disable"
    return {FIELDS[key]: str(value) for key, value in given.items() if value != ""}


def joined(section: Mapping[str, Any]) -> str:
    """Return the connection string that the plugin builds from the single fields, with the password."""
    values = intended(section)
    kept = {
        word: values.get(word, "")
        for key, word in FIELDS.items()
        if word in values or key not in _LEFT_OUT_WHEN_EMPTY
    }
    return " ".join(f"{word}={value}" for word, value in kept.items())


def mangled(section: Mapping[str, Any], location: Callable[[str], str]) -> Iterator[Problem]:
    """Yield the single fields that libpq will misunderstand, and what it will understand."""
    expected = intended(section)
    reasons = {word: _reason(word, expected.get(word, "")) for word in _TEXTS}
    keys = {word: key for key, word in FIELDS.items()}
    mangled_keys = {keys[word]: reason for word, reason in reasons.items() if reason}
    if not mangled_keys:
        return
    outcome = _outcome(section, expected)
    if outcome is None:
        return
    causes = ", ".join(f'"{key}" {reason}' for key, reason in mangled_keys.items())
    first = next(iter(mangled_keys))
    message = f"{causes}; the plugin joins its fields without quotes, so {outcome}"
    yield Problem(
        f"{SECTION}.{first}",
        "error",
        message,
        "use ConnectionUri instead; run: pgorthanc config uri",
        location(first),
    )


def _reason(word: str, value: str) -> str | None:
    if not value and word in ("user", "host"):
        return "is empty and swallows what follows"
    causes = [name for character, name in _CHARACTERS.items() if character in value]
    if value.startswith("'"):
        causes.append("a quote at its start")
    return "holds " + " and ".join(dict.fromkeys(causes)) if causes else None


def _outcome(section: Mapping[str, Any], expected: Mapping[str, str]) -> str | None:
    """Return what libpq understands instead; None if it understands the fields all the same."""
    try:
        actual = db.parse_dsn(joined(section), "the string")
    except UsageError as error:
        return f"libpq cannot read them: {error.message.partition(': ')[2]}"
    differing = [word for word in (*expected, *actual) if expected.get(word) != actual.get(word)]
    safe = _reason("password", expected.get("password", "")) is None
    changes = [_change(word, actual.get(word), safe=safe) for word in dict.fromkeys(differing)]
    return f"libpq understands {', '.join(changes)}" if changes else None


def _change(word: str, value: str | None, *, safe: bool) -> str:
    """Return what a parameter has become; its text may be a piece of a mangled password."""
    if value is None:
        return f"no {word}"
    return f"{word} = {value}" if safe and "password" not in f"{word}{value}" else f"another {word}"


def configured(target: db.Target) -> dict[str, str]:
    """Return the same as `db.effective_parameters`, if possible without the server and the name service.

    Raises:
        ConnectError: libpq does not understand the parameters, or there is no such service.
    """
    given = db.parse_dsn(target.dsn)
    served = "service" in given or os.environ.get("PGSERVICE")
    methods = [_without_server, db.effective_parameters]
    if served:
        methods.reverse()  # a service may set an address of its own
    for method in methods:
        try:
            parameters = method(target)
        except ConnectError as error:
            failure = error
        else:
            if parameters.get("host"):
                return parameters
    if parameters := _without_server(target):
        return parameters
    raise failure


def _without_server(target: db.Target) -> dict[str, str]:
    """Return the parameters as libpq has them while it tries an address of this machine instead."""
    given = db.parse_dsn(target.dsn)
    address = given.get("hostaddr") or os.environ.get("PGHOSTADDR")
    # libpq requires as many addresses as hosts, and a service file or PGHOST may list
    # several.
    for hosts in range(1, 33):
        # The loopback, in a spelling that no user has set.
        here = ",".join(["127.1"] * hosts)
        try:
            actual = db.effective_parameters(replace(target, dsn=make_dsn(**{**given, "hostaddr": here})))
        except ConnectError as error:
            if "could not match" not in error.message:
                raise
            failure = error
            continue
        host = "" if actual["host"] == here.partition(",")[0] else actual["host"]
        parameters = {**actual, "host": host, "hostaddr": address or ""}
        return {name: value for name, value in parameters.items() if value}
    raise failure


def in_use(conn: Connection) -> dict[str, str]:
    """Return the parameters of a connection as libpq has them, with its environment, service file and defaults.

    Several hosts and ports are lists, as in a connection string; `password` is empty where none was used.
    """
    info = conn.info
    location = {"host": info.host, "port": str(info.port), "user": info.user, "dbname": info.dbname}
    return {**location, **info.dsn_parameters, "password": info.password or ""}


def complete(parameters: Mapping[str, str], target: db.Target) -> dict[str, str]:
    """Return what another machine or role needs to log in as libpq does here.

    libpq takes some of it from its environment, service file and .pgpass.

    Args:
        parameters: Of `configured` or `in_use`.
        target: Their source. What only we add (keep-alive, names of our sessions) is left out.
    """
    given = db.parse_dsn(target.dsn)
    own = target.parameters().keys() - given.keys()
    # Orthanc is to read the file, too.
    named = "passfile" in given and "password" not in given
    needed = {
        word: value
        for word, value in parameters.items()
        if word not in ("service", "servicefile") and value and not (named and word == "password")
        if word in given or (word not in own and value != _DEFAULTS.get(word, value))
    }
    order = dict.fromkeys(("host", "hostaddr", "port", "dbname", "user", "password", *given))
    others = sorted(needed.keys() - order.keys())
    return {word: needed[word] for word in (*order, *others) if word in needed}


def plugin_options(parameters: Mapping[str, str], *, encrypted: bool) -> dict[str, Any]:
    """Return the options of the "PostgreSQL" section for a connection; the password is masked.

    Single fields where they carry all of it, else `ConnectionUri`.

    Args:
        parameters: Of `complete`.
        encrypted: Whether the session, which may have had the choice, uses TLS.
    """
    # The name and the encoding of our session are not Orthanc's.
    kept = {
        k: v for k, v in parameters.items() if k not in ("application_name", "client_encoding", "password")
    }
    kept["password"] = db.MASK
    simple = {k: v for k, v in kept.items() if k != "sslmode"}
    fits = kept.get("sslmode", "prefer") in ("disable", "allow", "prefer", "require")
    fits = fits and simple.keys() <= {"host", "port", "dbname", "user", "password"}
    fits = fits and simple.get("port", "").isdecimal() and not simple.get("host", "/").startswith(("/", "@"))
    if fits and "," not in simple["host"] and simple.get("user"):
        section, problems = fields({**simple, "sslmode": "require" if encrypted else "disable"})
        if not problems:
            return section
    return {"ConnectionUri": uri(kept)}


def section_to_paste(conn: Connection, target: db.Target, *, storage: bool, role: str | None = None) -> str:
    """Return the "PostgreSQL" section, as JSON, with which Orthanc uses a connection's database.

    The password is REPLACE-ME.

    Args:
        conn: The connection.
        target: Its source.
        storage: Whether the schema has the PostgreSQL storage area.
        role: The role of Orthanc, if it is not that of the connection.
    """
    parameters = complete(in_use(conn), target) | ({"user": role} if role else {})
    options = plugin_options(parameters, encrypted=conn.info.ssl_in_use)
    section: dict[str, Any] = {"EnableIndex": True, "EnableStorage": storage}
    section |= {
        name: value.replace(db.MASK, "REPLACE-ME") if isinstance(value, str) else value
        for name, value in options.items()
    }
    if target.schema != "public":
        section["Schema"] = target.schema
    lines = json.dumps(section, indent=2, ensure_ascii=False)
    return f'"PostgreSQL": {lines}'


def uri(parameters: Mapping[str, str], *, show_password: bool = False) -> str:
    """Return libpq's parameters as a connection URI, percent-encoded; passwords are `***` by default.

    Raises:
        UsageError: libpq would understand something else.
    """
    hidden = () if show_password else db.SECRETS
    given = {word: db.MASK if word in hidden else value for word, value in parameters.items()}
    text = _uri(given)
    if db.parse_dsn(text, "the URI") != given:
        raise UsageError("these parameters cannot be written as a URI", "use keyword/value pairs")
    return text


def _uri(given: Mapping[str, str]) -> str:
    encoded = {word: quote(value, safe="*") for word, value in given.items()}
    login = encoded.get("user", "")
    if "password" in encoded:
        login += ":" + encoded["password"]
    hosts = given.get("host", "")
    listed = "," in hosts or not re.fullmatch(r"[\w.-]*", hosts)
    inline = bool(hosts) and not listed and "," not in given.get("port", "")
    endpoint = encoded.get("host", "") if inline else ""
    if inline and "port" in encoded:
        endpoint += ":" + encoded["port"]
    taken = {"user", "password", "dbname"} | ({"host", "port"} if inline else set())
    rest = "&".join(f"{word}={value}" for word, value in encoded.items() if word not in taken)
    user = f"{login}@" if login else ""
    query = f"?{rest}" if rest else ""
    return f"postgresql://{user}{endpoint}/{encoded.get('dbname', '')}{query}"


def fields(parameters: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the plugin's single fields for libpq's parameters, and what they cannot carry."""
    keys = {word: key for key, word in FIELDS.items()}
    section: dict[str, Any] = {}
    problems = []
    for word, value in parameters.items():
        if word == "sslmode":
            section["EnableSsl"] = value != "disable"
            if value not in ("require", "disable"):
                message = f"sslmode={value} becomes {'require' if section['EnableSsl'] else 'disable'}"
                problems.append(Problem("EnableSsl", "warning", message, "keep the ConnectionUri"))
        elif word == "port" and value.isdecimal():
            section["Port"] = int(value)
        elif word in keys:
            section[keys[word]] = value
        else:
            problems.append(
                Problem("", "warning", f"the fields have no place for {word}", "keep the ConnectionUri")
            )
    if "sslmode" not in parameters:
        section["EnableSsl"] = False
        problems.append(
            Problem("EnableSsl", "info", "no sslmode is given (libpq: prefer); false means no TLS")
        )
    problems.extend(mangled(section, lambda _: ""))
    return section, problems


def connection_uri(value: str, location: str) -> Iterator[Problem]:
    """Yield mistakes in a ConnectionUri: what libpq refuses, and what it probably misunderstands."""
    key = f"{SECTION}.ConnectionUri"
    if not value:
        message = '"ConnectionUri" is empty: libpq connects as the system user through the local socket'
        yield Problem(key, "error", message, "remove it to use the single fields, or fill it", location)
        return
    if value.startswith(("postgresql://", "postgres://")) and _BROKEN_PERCENT.search(value):
        message = "a % in the URI is not followed by two hexadecimal digits"
        yield Problem(key, "error", message, "write %25 for %", location)
        return
    try:
        parameters = db.parse_dsn(value, '"ConnectionUri"')
    except UsageError as error:
        yield Problem(key, "error", error.message, error.hint, location)
        return
    ports = parameters.get("port", "5432").split(",")
    if not all(port == "" or (port.isdecimal() and 1 <= int(port) <= 65535) for port in ports):
        message = "the port in the URI is no number: a /, # or ? in the password ends it too early"
        yield Problem(
            key, "error", message, "write %2F for /, %23 for # and %3F for ? in the password", location
        )
    for word, what in (("host", "a host"), ("dbname", "a database"), ("user", "a role")):
        if word not in parameters and "service" not in parameters:
            message = (
                f'"ConnectionUri" names no {what.split()[1]}: libpq takes its default or PG{word.upper()}'
            )
            yield Problem(key, "warning", message, f"name {what}", location)


_LOCAL = ("localhost", "127.0.0.1", "::1")


def address(section: Mapping[str, Any]) -> str:
    """Return the database and the server that the plugin connects to, as `orthanc at db1:5432`."""
    parameters = intended(section)
    if "ConnectionUri" in section:
        try:
            parameters = db.parse_dsn(str(section["ConnectionUri"]))
        except UsageError:
            return "unreadable ConnectionUri"
    hosts = parameters.get("host", "localhost").lower().split(",")
    ports = parameters.get("port", "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    named = ("localhost" if host in _LOCAL else host for host in hosts)
    servers = ",".join(f"{host}:{port or 5432}" for host, port in zip(named, ports, strict=False))
    return f"{parameters.get('dbname') or parameters.get('user', '')} at {servers}"
