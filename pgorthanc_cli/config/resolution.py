"""Merge options, environment and Orthanc's configuration into one `db.Target`; libpq decides the rest.

`resolve` also returns the origin of each value. Highest first:

1. options;
2. `PGORTHANC_*`;
3. Orthanc's configuration;
4. libpq's environment, service file and .pgpass: left to libpq by leaving the parameter out;
5. defaults.

A URI and the "PostgreSQL" section each describe a server as a whole, so only the highest of them counts: a
`--uri` for one server never inherits the password or the TLS mode written down for another. Single fields
of a higher level override parts of it, those of a lower level fill what it leaves open.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, files
from pgorthanc_cli.config.options import DISCRETE_KEYS
from pgorthanc_cli.config.orthanc import OrthancConfiguration, load
from pgorthanc_cli.constants import SSLMODES
from pgorthanc_cli.errors import UsageError

# Our options -> libpq's parameters.
_FIELDS = {"host": "host", "port": "port", "dbname": "dbname", "username": "user", "sslmode": "sslmode"}
# Variables that libpq reads itself, if they decide the server or the security of a connection.
_LIBPQ_VARIABLES = {
    "service": "PGSERVICE", "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT",
    "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD", "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL",
    "channel_binding": "PGCHANNELBINDING", "require_auth": "PGREQUIREAUTH", "gssencmode": "PGGSSENCMODE",
    "target_session_attrs": "PGTARGETSESSIONATTRS", "connect_timeout": "PGCONNECT_TIMEOUT",
    "options": "PGOPTIONS", "application_name": "PGAPPNAME",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A value and its origin; passwords are masked."""

    name: str
    value: str
    origin: str

    def __str__(self) -> str:
        """Return the line that --verbose prints."""
        return f"{self.name} = {self.value} (from {self.origin})"


@dataclass(frozen=True)
class Resolved:
    """The target, merged from all sources.

    Attributes:
        target: The database.
        provenance: Every setting of the connection with its origin.
        orthanc: Orthanc's configuration, if one was named.
        warnings: Warnings that --quiet silences.
    """

    target: db.Target
    provenance: tuple[Setting, ...]
    orthanc: OrthancConfiguration | None
    warnings: tuple[str, ...]

    def at(self, dsn: str, origin: str) -> Resolved:
        """Return the same schema and configuration on another server, such as that of --embedded."""
        own = [s for s in self.provenance if s.name in ("schema", "configuration")]
        server = [_setting(k, v, origin) for k, v in db.parse_dsn(dsn, origin).items()]
        return replace(self, target=replace(self.target, dsn=dsn), provenance=(*server, *own))


def resolve(
    *,
    application: str,
    uri: str | None = None,
    host: str | None = None,
    port: int | str | None = None,
    dbname: str | None = None,
    username: str | None = None,
    sslmode: str | None = None,
    schema: str | None = None,
    config: str | Path | Sequence[str | Path] | None = None,
    password_file: str | Path | None = None,
    orthanc: OrthancConfiguration | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Resolved:
    """Return the target that options (None: not given) and environment mean, with each value's origin.

    `orthanc` is a configuration that is already read, instead of `config`.

    Raises:
        UsageError: Sources of one level that contradict each other, values out of range, an unreadable file.
        ConfigurationError: The same within Orthanc's configuration.
    """
    fields = {"host": host, "port": port, "dbname": dbname, "username": username, "sslmode": sslmode}
    options = {"uri": uri, **fields, "schema": schema, "password_file": password_file}
    # Never an option: other users could read it in the list of processes.
    levels = (_options_level(options), _environment_level((*options, "password"), environ))
    origin = "given" if orthanc else "--config" if config else "PGORTHANC_CONFIG"
    config = config or environ.get("PGORTHANC_CONFIG")
    orthanc = load(config, environ) if config and orthanc is None else orthanc
    path = _Part(str(orthanc.path), origin) if orthanc else None
    sources = [source for level in levels for source in _level_sources(level)]
    warnings = [warning for level in levels for warning in _level_warnings(level)]
    target = db.Target("", application=application)
    others = {"schema": _schema(levels, orthanc)}
    if path and orthanc:
        sources.append(_configuration_source(orthanc, path.value))
        warnings = [*orthanc.warnings, *warnings]
        target = _with_retries(target, orthanc)
        others["configuration"] = path
    parts = _merge(sources)
    # From a password file, say; in C a string ends there.
    for name, part in parts.items():
        if "\0" in part.value:
            raise UsageError(
                f"{part.origin} contains a NUL character, and libpq would ignore what follows it",
                f"correct the {'password' if name in db.SECRETS else name} there",
            )
    dsn = make_dsn(**{name: part.value for name, part in parts.items()})
    given = [_setting(name, part.value, part.origin) for name, part in (parts | others).items()]
    return Resolved(
        replace(target, dsn=dsn, schema=others["schema"].value),
        (*given, *_left_to_libpq(parts, environ)),
        orthanc,
        tuple(warnings),
    )


@dataclass(frozen=True, repr=False)
class _Part:
    """A value, unmasked, and its origin."""

    value: str
    origin: str


@dataclass(frozen=True, repr=False)
class _Source:
    """Parameters of a connection by libpq's names; `whole`: they describe a server as a whole."""

    parts: Mapping[str, _Part]
    whole: bool = False


_Level = Mapping[str, _Part]  # by the name of the option, with _ for -


def _options_level(options: Mapping[str, object]) -> _Level:
    given = {name: str(value) for name, value in options.items() if value not in (None, "")}
    return {name: _Part(value, "--" + name.replace("_", "-")) for name, value in given.items()}


def _environment_level(names: Iterable[str], environ: Mapping[str, str]) -> _Level:
    """Return the variables that are set; an empty one counts as not set, as in compose files."""
    variables = {name: f"PGORTHANC_{name.upper()}" for name in names}
    return {name: _Part(environ[v], v) for name, v in variables.items() if environ.get(v)}


def _first(levels: Iterable[_Level], name: str) -> _Part | None:
    return next((level[name] for level in levels if name in level), None)


def _schema(levels: Iterable[_Level], orthanc: OrthancConfiguration | None) -> _Part:
    """Return the schema. Options and environment name it exactly; the plugin lower-cases its own option."""
    given = _first(levels, "schema")
    if given:
        return given
    if orthanc and orthanc.given("Schema"):
        return _Part(orthanc.schema, f"{orthanc.path}: Schema")
    return _Part("public", "default")


def _level_sources(level: _Level) -> Iterator[_Source]:
    """Yield the sources of one level, the single fields before the URI."""
    _refuse_contradictions(level)
    own = {libpq: level[name] for name, libpq in _FIELDS.items() if name in level}
    if "port" in own and not (own["port"].value.isdecimal() and 1 <= int(own["port"].value) <= 65535):
        raise UsageError(f"{own['port'].origin} is {own['port'].value!r}, wanted a port from 1 to 65535")
    if "sslmode" in own and own["sslmode"].value not in SSLMODES:
        raise UsageError(
            f"{own['sslmode'].origin} is {own['sslmode'].value!r}, wanted one of {', '.join(SSLMODES)}"
        )
    if "password_file" in level:
        file = level["password_file"]
        password = files.read_password(file.value, file.origin)
        own["password"] = _Part(password, f"{file.origin} {file.value}")
    elif "password" in level:
        own["password"] = level["password"]
    yield _Source(own)
    if "uri" in level:
        origin = level["uri"].origin
        parsed = db.parse_dsn(level["uri"].value, origin)
        if "password" in parsed and "password" in own:
            raise UsageError(
                f"{origin} holds a password, and {own['password'].origin} gives another one", "keep one"
            )
        yield _Source({name: _Part(value, origin) for name, value in parsed.items()}, whole=True)


def _refuse_contradictions(level: _Level) -> None:
    for one, others in (("uri", tuple(_FIELDS)), ("password", ("password_file",))):
        clash = [level[name].origin for name in others if one in level and name in level]
        if clash:
            raise UsageError(
                f"{level[one].origin} and {', '.join(clash)} contradict each other",
                "give the connection as one URI or as single fields, and the password once",
            )


def _level_warnings(level: _Level) -> Iterator[str]:
    uri = level.get("uri")
    if uri and uri.origin.startswith("--") and "password" in db.parse_dsn(uri.value, uri.origin):
        yield (
            "the password in --uri can be read in the process list by every user of this machine; "
            "use ~/.pgpass, --password-file or PGORTHANC_URI"
        )
    file = level.get("password_file")
    if file:
        mode = _file_mode(file)
        if stat.S_ISREG(mode) and mode & 0o077:
            yield f"{file.value} can be read by others; run: chmod 600 {shlex.quote(file.value)}"


def _file_mode(file: _Part) -> int:
    try:
        return os.stat(file.value).st_mode
    except OSError as error:
        raise UsageError(f"{file.origin}: {file.value} cannot be read: {error.strerror}") from None


def _configuration_source(orthanc: OrthancConfiguration, path: str) -> _Source:
    """Return the connection that the plugin opens for the "PostgreSQL" section, with its defaults.

    A section without any of `DISCRETE_KEYS` does not describe a connection. ApplicationName is not taken
    over: it is the name of that Orthanc, and the tool shows its own in pg_stat_activity.
    """
    uri = orthanc.postgresql("ConnectionUri")
    if uri:
        origin = f"{path}: ConnectionUri"
        parsed = db.parse_dsn(uri, origin)
        parsed.pop("application_name", None)
        return _Source({name: _Part(value, origin) for name, value in parsed.items()}, whole=True)
    if not any(orthanc.given(key) for key in DISCRETE_KEYS):
        return _Source({})
    names = {"Host": "host", "Port": "port", "Database": "dbname", "Username": "user", "Password": "password"}
    values = {key: str(orthanc.postgresql(key)) for key in names}
    parts = {names[key]: _Part(v, _origin(orthanc, path, key)) for key, v in values.items() if v}
    sslmode = "require" if orthanc.postgresql("EnableSsl") else "disable"
    parts["sslmode"] = _Part(sslmode, _origin(orthanc, path, "EnableSsl"))
    return _Source(parts, whole=True)


def _with_retries(target: db.Target, orthanc: OrthancConfiguration) -> db.Target:
    return replace(
        target,
        retries=orthanc.postgresql("MaximumConnectionRetries"),
        retry_interval_s=float(orthanc.postgresql("ConnectionRetryInterval")),
    )


def _origin(orthanc: OrthancConfiguration, path: str, key: str) -> str:
    return f"{path}: {key}" if orthanc.given(key) else f"{path}: default of {key}"


def _merge(sources: Iterable[_Source]) -> dict[str, _Part]:
    """Merge sources, highest first; of those that describe a whole server only the first one counts."""
    chosen: dict[str, _Part] = {}
    described = False
    for source in sources:
        if source.whole and described:
            continue
        described = described or source.whole
        fitting = {name: part for name, part in source.parts.items() if _fits(name, part, chosen, source)}
        chosen = fitting | chosen
    order = ("service", "host", "hostaddr", "port", "dbname", "user", "password")
    return dict(
        sorted(chosen.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    )


def _fits(name: str, part: _Part, chosen: Mapping[str, _Part], source: _Source) -> bool:
    """Return whether a parameter still makes sense beside those of higher levels."""
    if "service" in chosen and name != "password":
        # A service says what the rest is; only a higher level may override it.
        return False
    if "host" in chosen and (name == "hostaddr" or (name == "port" and "," in part.value)):
        return False  # they belong to the hosts that are overridden
    if source.whole and name == "password" and "user" in chosen and "user" in source.parts:
        # Otherwise it is the password of another role.
        return chosen["user"].value == source.parts["user"].value
    return True


def _left_to_libpq(parts: Mapping[str, _Part], environ: Mapping[str, str]) -> Iterator[Setting]:
    for name, variable in _LIBPQ_VARIABLES.items():
        if name not in parts and environ.get(variable):
            yield _setting(name, environ[variable], f"{variable}, read by libpq")
    for name in ("host", "port", "dbname", "user"):
        served = "service" in parts or environ.get("PGSERVICE")
        if name not in parts and not served and not environ.get(_LIBPQ_VARIABLES[name]):
            yield Setting(name, "(not given)", "libpq's default")
    if "password" not in parts and not environ.get("PGPASSWORD"):
        yield Setting("password", "(not given)", ".pgpass, looked up by libpq")


def _setting(name: str, value: str, origin: str) -> Setting:
    return Setting(name, db.MASK if name in db.SECRETS else value, origin)
