"""Problems with a configuration, before Orthanc is started with it."""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pgorthanc_cli import db
from pgorthanc_cli.config import conninfo, plugins, startup, validation
from pgorthanc_cli.config.deployment import Deployment, effective
from pgorthanc_cli.config.documents import Problem, Severity
from pgorthanc_cli.config.options import POSTGRESQL_KEYS, SECTION, version
from pgorthanc_cli.constants import VERIFYING_SSLMODES
from pgorthanc_cli.errors import UsageError

_ORDER = {"error": 0, "warning": 1, "info": 2}
_STATUS = {"error": "CRITICAL", "warning": "WARNING"}
_SHORTEST_PASSWORD = 8
_WEAK = (
    "postgres", "postgresql", "orthanc", "orthancteam", "password", "passw0rd", "admin", "administrator",
    "changeme", "change-me", "secret", "12345678", "123456789", "1234567890", "qwertyui", "docker", "pgorthanc",
)  # fmt: skip
_LOCAL = ("localhost", "127.0.0.1", "::1", "")
_LIBRARIES = {"EnableIndex": plugins.INDEX, "EnableStorage": plugins.STORAGE}
# Other plugins for the index or the attachments -> their section, and the key that enables them; without a key the
# section alone does. If two are enabled, the order of loading decides.
_OTHER_INDEXES = {
    "libOrthancMySQLIndex": ("MySQL", "EnableIndex"),
    "libOrthancOdbcIndex": ("Odbc", "EnableIndex"),
}
_OTHER_STORAGES = {**plugins.STORAGES, "libOrthancIndexer": ("Indexer", "Enable")}


@dataclass(frozen=True)
class Checked:
    """A configuration and the problems with it.

    Attributes:
        problems: The worst first.
        effective: The options of the "PostgreSQL" section with the plugin's defaults; no password.
        plugin: Release of the PostgreSQL index plugin, if known.
        plugins: The libraries that Orthanc would load, with their releases if known.
        files: The files that were read.
        database: Database and server, as in `orthanc at db1:5432`; empty if none is used.
        uses_sqlite: Whether Orthanc would start with its index in SQLite, an empty one.
    """

    problems: tuple[Problem, ...]
    effective: Mapping[str, object]
    plugin: str | None
    plugins: tuple[str, ...]
    files: tuple[str, ...] = ()
    database: str = ""
    uses_sqlite: bool = False

    @property
    def wrong(self) -> tuple[Problem, ...]:
        """The errors and warnings."""
        return tuple(problem for problem in self.problems if problem.severity != "info")

    @property
    def status(self) -> str:
        """The Nagios status of the worst problem."""
        return _STATUS[self.wrong[0].severity] if self.wrong else "OK"


def check(deployment: Deployment, further: tuple[Problem, ...] = ()) -> Checked:
    """Return all problems of a configuration, those of `further` included."""
    document = deployment.document
    problems = [*document.problems, *validation.values(document), *validation.names(document)]
    # With a value of a wrong type Orthanc does not start, so the plugin's rules do not matter.
    starts = not any(validation.values(document))
    if not any(problem.key.startswith(SECTION) and problem.severity == "error" for problem in problems):
        for rule in _RULES:
            problems.extend(rule(deployment))
    for rule in startup.RULES:
        problems.extend(rule(deployment))
    problems.extend(further)
    return Checked(
        problems=tuple(sorted(problems, key=lambda problem: _ORDER[problem.severity])),
        effective=effective(deployment),
        plugin=deployment.release,
        plugins=tuple(f"{library.path} {library.release or ''}".strip() for library in deployment.libraries),
        files=tuple(str(source.path) for source in document.sources),
        database=_database(deployment) if starts else "",
        uses_sqlite=starts and _uses_sqlite(deployment),
    )


def _database(deployment: Deployment) -> str:
    enabled = deployment.option("EnableIndex") or deployment.option("EnableStorage")
    return conninfo.address(deployment.section) if enabled else ""


def _uses_sqlite(deployment: Deployment) -> bool:
    """Return whether no plugin provides the index: then Orthanc uses SQLite, without a warning."""
    if any(startup.is_active(deployment, name, *switch) for name, switch in _OTHER_INDEXES.items()):
        return False
    loads = any(library.name == plugins.INDEX for library in deployment.libraries)
    # Without "Plugins" a package, or a command line, may load it from elsewhere.
    known = "Plugins" in deployment.document.values and not deployment.in_image
    return not deployment.option("EnableIndex") or (known and not loads)


def _switches(deployment: Deployment) -> Iterator[Problem]:
    """Yield why the plugin stays off: Orthanc then uses SQLite and files without a warning."""
    if SECTION not in deployment.document.values:
        yield Problem(SECTION, "error", f'there is no section "{SECTION}": Orthanc uses SQLite', "add it")
        return
    if not deployment.option("EnableIndex"):
        message = '"EnableIndex" is not true: the index plugin stays off, and Orthanc uses SQLite'
        yield Problem(
            f"{SECTION}.EnableIndex",
            "warning",
            message,
            'set "EnableIndex" to true',
            deployment.location("EnableIndex"),
            _set(deployment, "EnableIndex", "true"),
        )
    yield from _loaded(deployment)


def _set(deployment: Deployment, name: str, value: str) -> str:
    """Return the command that sets an option; empty if a variable does."""
    in_file = any(source.path.is_file() for source in deployment.document.sources)
    if deployment.in_image or not in_file or "ORTHANC__" in deployment.location(name):
        return ""
    return f"pgorthanc config set {SECTION}.{name} {value}"


def _loaded(deployment: Deployment) -> Iterator[Problem]:
    """Yield plugins that are enabled but not loaded."""
    location = deployment.document.location("Plugins")
    for enabled, library in _LIBRARIES.items():
        if not deployment.option(enabled) or any(loaded.name == library for loaded in deployment.libraries):
            continue
        if "Plugins" in deployment.document.values:
            message = f'"{enabled}" is true, but "Plugins" does not load {library}.so'
            yield Problem("Plugins", "error", message, "add the library, or the folder it is in", location)
        elif not deployment.in_image:
            message = f'"{enabled}" is true, but there are no "Plugins", and nothing else loads {library}.so'
            yield Problem(
                "Plugins", "warning", message, 'name the library, or the folder it is in, in "Plugins"'
            )


def _libraries(deployment: Deployment) -> Iterator[Problem]:
    location = deployment.document.location("Plugins")
    for entry in deployment.missing:
        message = (
            f"there is no {entry}: Orthanc starts without it, or not at all (from 1.13 on, "
            "if it is a library)"
        )
        yield Problem("Plugins", "error", message, "correct the path", location)
    releases = {p.release for p in deployment.libraries if (p.is_index or p.is_storage) and p.release}
    if len(releases) > 1:
        message = f"the PostgreSQL plugins are of different releases: {', '.join(sorted(releases))}"
        yield Problem("Plugins", "warning", message, "install both from one release", location)
    for others, enabled in ((_OTHER_INDEXES, "EnableIndex"), (_OTHER_STORAGES, "EnableStorage")):
        rivals = [name for name, switch in others.items() if startup.is_active(deployment, name, *switch)]
        if rivals and deployment.option(enabled):
            kind = "index" if enabled == "EnableIndex" else "storage"
            message = (
                f'two {kind} plugins are on: PostgreSQL ("{enabled}") and {", ".join(rivals)}; only one will '
                "be used"
            )
            yield Problem(
                f"{SECTION}.{enabled}",
                "error",
                message,
                "switch the other one off",
                deployment.location(enabled),
            )


def _releases(deployment: Deployment) -> Iterator[Problem]:
    """Yield options that this release of the plugin does not know yet."""
    for name in deployment.section:
        if name in POSTGRESQL_KEYS and not deployment.knows(name):
            since = POSTGRESQL_KEYS[name].since
            message = f'plugin {deployment.release} does not know "{name}" (new in {since}) and ignores it'
            hint = f"remove it, or install plugin {since} or later"
            yield Problem(f"{SECTION}.{name}", "warning", message, hint, deployment.location(name))


def _connection(deployment: Deployment) -> Iterator[Problem]:
    if not (deployment.option("EnableIndex") or deployment.option("EnableStorage")):
        return
    if "ConnectionUri" in deployment.section:
        yield from conninfo.connection_uri(
            deployment.option("ConnectionUri"), deployment.location("ConnectionUri")
        )
    else:
        yield from conninfo.mangled(deployment.section, deployment.location)
    parameters = _parameters(deployment)
    yield from _passwords(deployment, parameters)
    yield from _encryption(deployment, parameters)
    if not parameters.get("dbname") and "ConnectionUri" not in deployment.section:
        message = 'no "Database" is named: libpq takes the one named like the role'
        yield Problem(f"{SECTION}.Database", "warning", message, 'set "Database"', deployment.location())
    if not any(word.startswith(("keepalives", "tcp_user_timeout")) for word in parameters):
        message = (
            "no keep-alive is set: firewalls and load balancers drop silent connections after some minutes"
        )
        hint = 'add keepalives_idle=30&keepalives_interval=10&keepalives_count=3 to the "ConnectionUri"'
        if not _is_local(parameters.get("host", "")):
            yield Problem(f"{SECTION}.ConnectionUri", "info", message, hint, deployment.location())


def _parameters(deployment: Deployment) -> dict[str, str]:
    """Return the parameters of the connection; empty if libpq cannot read them."""
    # What the fields are meant to say, not what the plugin makes of them: that has its own check.
    if "ConnectionUri" not in deployment.section:
        return conninfo.intended(deployment.section)
    try:
        return db.parse_dsn(str(deployment.option("ConnectionUri")))
    except UsageError:
        return {}


def _passwords(deployment: Deployment, parameters: Mapping[str, str]) -> Iterator[Problem]:
    key = "ConnectionUri" if "ConnectionUri" in deployment.section else "Password"
    password = parameters.get("password")
    if password is None:
        return
    # Whoever can see the connection in a list of processes or sessions knows these.
    names = {parameters.get(word, "").lower() for word in ("user", "dbname", "host")}
    reason = None
    if password.lower() in _WEAK:
        reason = "is a well-known one"
    elif password.lower() in names:
        reason = "is a name that the connection shows"
    elif len(password) < _SHORTEST_PASSWORD:
        reason = f"has less than {_SHORTEST_PASSWORD} characters"
    if reason:
        hint = "set another one with \\password in psql, then here"
        yield Problem(f"{SECTION}.{key}", "warning", f"the password {reason}", hint, deployment.location(key))
    for source in deployment.document.sources:
        if source.path.is_file() and deployment.location(key).startswith(f"{source.path}, "):
            mode = source.path.stat().st_mode
            # The group may be Orthanc's own, as in Debian's package.
            if mode & stat.S_IROTH:
                message = "every user of this machine can read the password in this file"
                yield Problem(
                    f"{SECTION}.{key}", "warning", message, "keep other users out", str(source.path),
                    shlex.join(["chmod", "o-r", str(source.path)]),
                )  # fmt: skip


def _is_local(host: str) -> bool:
    return host in _LOCAL or host.startswith(("/", "127."))


def _encryption(deployment: Deployment, parameters: Mapping[str, str]) -> Iterator[Problem]:
    host, mode = parameters.get("host", ""), parameters.get("sslmode", "prefer")
    key = "ConnectionUri" if "ConnectionUri" in deployment.section else "EnableSsl"
    if not parameters or _is_local(host) or mode in VERIFYING_SSLMODES:
        return
    severity: Severity
    if mode == "require":
        message, severity = "sslmode=require encrypts, but does not verify the server", "info"
    else:
        message, severity = f"sslmode={mode}: patient data may cross the network unencrypted", "warning"
    hint = 'use sslmode=verify-full with sslrootcert=FILE in "ConnectionUri"'
    yield Problem(f"{SECTION}.{key}", severity, message, hint, deployment.location(key))


def _locks(deployment: Deployment) -> Iterator[Problem]:
    """Yield options that contradict each other, or the number of Orthancs."""
    if not (deployment.option("EnableIndex") or deployment.option("EnableStorage")):
        return
    key, location = f"{SECTION}.Lock", deployment.location("Lock")
    locked = deployment.option("Lock")
    unlock = _set(deployment, "Lock", "false")
    if (
        deployment.read_only
        and locked
        # The plugin has a read-only mode since 7.0, and refuses to lock in it.
        and (deployment.release is None or version(deployment.release) >= (7, 0))
    ):
        message = '"ReadOnly" with "Lock" true (its default): the plugin does not start'
        yield Problem(key, "error", message, 'set "Lock" to false', location, unlock)
    if locked and deployment.containers > 1:
        message = f'"Lock" is true: only the first of {deployment.containers} Orthancs starts'
        yield Problem(key, "error", message, 'set "Lock" to false for all of them', location, unlock)
    if locked and deployment.option("UseDynamicConnectionPool"):
        message = (
            '"UseDynamicConnectionPool" closes idle connections, and the lock goes with the one that has it'
        )
        yield Problem(key, "warning", message, "use one of the two", location)
    if deployment.containers > 1 and deployment.option("TransactionMode") == "Serializable":
        message = (
            f"Serializable with {deployment.containers} Orthancs: expect transactions that are refused and "
            "tried again"
        )
        yield Problem(
            f"{SECTION}.TransactionMode",
            "warning",
            message,
            'set it to "ReadCommitted" (plugin 7.0 or later)',
        )


def _schema(deployment: Deployment) -> Iterator[Problem]:
    """Yield names of schemas that fail: the plugin puts them into SET search_path unquoted, in lower case."""
    name, key, location = str(deployment.option("Schema")), f"{SECTION}.Schema", deployment.location("Schema")
    if "Schema" not in deployment.section or not deployment.knows("Schema"):
        return
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", name):
        message = f'"Schema" is "{name}": PostgreSQL requires quotes around it, and the plugin writes none'
        yield Problem(key, "error", message, "rename the schema: letters, digits and _ only", location)
    elif name != name.lower():
        message = f'"Schema" is "{name}", and the plugin looks for {name.lower()}'
        yield Problem(
            key,
            "warning",
            message,
            "write it in lower case",
            location,
            _set(deployment, "Schema", name.lower()),
        )


_RULES = (_switches, _libraries, _releases, _connection, _locks, _schema)
