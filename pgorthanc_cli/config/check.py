"""Everything that is wrong, or looks wrong, in a configuration, before Orthanc is started with it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.config import conninfo, plugins, review, starting
from pgorthanc_cli.config.files import Document, Problem, Severity
from pgorthanc_cli.config.known import (
    LATEST_PLUGIN,
    POSTGRESQL_KEYS,
    SECTION,
    valued,
    version,
)
from pgorthanc_cli.config.plugins import Plugin
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
# Other plugins that take the index or the attachments -> their section, and the key that switches them on; without
# a key the section alone does. What they do when both are there is left to the order of loading.
_OTHER_INDEXES = {
    "libOrthancMySQLIndex": ("MySQL", "EnableIndex"),
    "libOrthancOdbcIndex": ("Odbc", "EnableIndex"),
}
_OTHER_STORAGES = {**starting.STORAGES, "libOrthancIndexer": ("Indexer", "Enable")}


@dataclass(frozen=True)
class Checked:
    """A configuration and what is wrong with it.

    Attributes:
        problems: The worst first.
        effective: The options of the "PostgreSQL" section as the plugin takes them, defaults included; no password.
        plugin: Release of the PostgreSQL index plugin, if it is known.
        plugins: The libraries that Orthanc would load, each with its release as far as it can be told.
    """

    problems: tuple[Problem, ...]
    effective: Mapping[str, object]
    plugin: str | None
    plugins: tuple[str, ...]

    @property
    def wrong(self) -> tuple[Problem, ...]:
        """The problems that are more than remarks."""
        return tuple(problem for problem in self.problems if problem.severity != "info")

    @property
    def status(self) -> str:
        """The word of a monitoring plugin for the worst of them."""
        return _STATUS[self.wrong[0].severity] if self.wrong else "OK"


@dataclass(frozen=True)
class Subject:
    """What is examined: a document with all that is known about who will read it.

    Attributes:
        document: The configuration.
        libraries: The plugins that it loads.
        missing: Entries of "Plugins" that lead nowhere.
        release: Of the PostgreSQL index plugin; None if it is not known.
        containers: How many Orthancs work with this configuration.
        in_image: Whether the container image reads it, which loads its plugins by itself.
    """

    document: Document
    libraries: tuple[Plugin, ...]
    missing: tuple[str, ...]
    release: str | None
    containers: int = 1
    in_image: bool = False

    @property
    def section(self) -> Mapping[str, Any]:
        """The "PostgreSQL" section."""
        return review.section(self.document)

    def option(self, name: str) -> Any:
        """An option of that section, with the default of the release."""
        return valued(POSTGRESQL_KEYS[name], self.section if self.knows(name) else {}, self._release)

    def place(self, *keys: str) -> str:
        """Where an option of that section stands."""
        return self.document.place(SECTION, *keys)

    @property
    def read_only(self) -> bool:
        """Whether this Orthanc may not write."""
        return self.document.values.get("ReadOnly") is True

    @property
    def _release(self) -> str:
        return self.release or LATEST_PLUGIN

    def knows(self, name: str) -> bool:
        """Whether this release of the plugin looks at an option."""
        since = POSTGRESQL_KEYS[name].since
        return not since or version(since) <= version(self._release)

    @property
    def revision(self) -> int | None:
        """The highest revision that an index plugin of no numbered release speaks of."""
        return next((library.revision for library in self.libraries if library.is_index), None)


def subject(
    document: Document,
    folder: Path,
    *,
    release: str | None = None,
    containers: int = 1,
    in_image: bool = False,
) -> Subject:
    """Resolve the plugins of a document; a release given counts more than the one of a library.

    Raises:
        UsageError: The release is no version number.
    """
    if release is not None and not re.fullmatch(r"\d+\.\d+", release):
        raise UsageError(f"{release!r} is no release of the plugin", "write it as in --plugin 10.3")
    entries = document.values.get("Plugins")
    libraries, missing = plugins.resolve(entries if isinstance(entries, list) else [], folder)
    read = next((p.release for p in libraries if p.is_index and p.release and p.release[0].isdigit()), None)
    return Subject(document, tuple(libraries), tuple(missing), release or read, containers, in_image)


def check(found: Subject, further: tuple[Problem, ...] = ()) -> Checked:
    """All problems of a configuration, those found elsewhere included."""
    document = found.document
    problems = [*document.problems, *review.values(document), *review.names(document)]
    # With a value of a wrong type Orthanc does not start, and what would come after that is idle talk.
    if not any(problem.key.startswith(SECTION) and problem.severity == "error" for problem in problems):
        for rule in _RULES:
            problems.extend(rule(found))
    for rule in starting.RULES:
        problems.extend(rule(found))
    problems.extend(further)
    return Checked(
        problems=tuple(sorted(problems, key=lambda problem: _ORDER[problem.severity])),
        effective=effective(found),
        plugin=found.release,
        plugins=tuple(_named(library) for library in found.libraries),
    )


def effective(found: Subject) -> dict[str, object]:
    """The options that the release of the plugin knows and looks at, with its defaults; passwords masked."""
    dead = conninfo.FIELDS if "ConnectionUri" in found.section else ("ConnectionUri",)
    return {
        name: shown(name, found.option(name))
        for name in POSTGRESQL_KEYS
        if found.knows(name) and name not in dead
    }


def shown(name: str, value: Any) -> Any:
    """A value of the "PostgreSQL" section as it may be shown."""
    if name == "Password":
        return db.MASK if value else value
    if name != "ConnectionUri" or not value:
        return value
    try:
        return conninfo.uri(db.parse_dsn(str(value)))
    except UsageError:
        return db.MASK


def _named(library: Plugin) -> str:
    return f"{library.path} {library.release or ''}".strip()


def _switches(found: Subject) -> Iterator[Problem]:
    """Whether the plugin works at all; Orthanc says nothing and takes SQLite and files."""
    if SECTION not in found.document.values:
        yield Problem(SECTION, "error", f'there is no section "{SECTION}": Orthanc uses SQLite', "add it")
        return
    if not found.option("EnableIndex"):
        said = '"EnableIndex" is not true: the index plugin stays off, and Orthanc uses SQLite'
        yield Problem(
            f"{SECTION}.EnableIndex", "warning", said, 'set "EnableIndex" to true', found.place("EnableIndex")
        )
    yield from _loaded(found)


def _loaded(found: Subject) -> Iterator[Problem]:
    """Whether the libraries that are switched on are loaded at all."""
    place = found.document.place("Plugins")
    for enabled, library in _LIBRARIES.items():
        if not found.option(enabled) or any(loaded.name == library for loaded in found.libraries):
            continue
        if "Plugins" in found.document.values:
            said = f'"{enabled}" is true, but "Plugins" does not load {library}.so'
            yield Problem("Plugins", "error", said, "add the library, or the folder it is in", place)
        elif not found.in_image:
            said = f'"{enabled}" is true, but there are no "Plugins", and nothing else loads {library}.so'
            yield Problem(
                "Plugins", "warning", said, 'name the library, or the folder it is in, in "Plugins"'
            )


def _libraries(found: Subject) -> Iterator[Problem]:
    place = found.document.place("Plugins")
    for entry in found.missing:
        said = f"there is no {entry}: Orthanc starts without it, or not at all (from 1.13 on, if it is a library)"
        yield Problem("Plugins", "error", said, "correct the path", place)
    releases = {p.release for p in found.libraries if (p.is_index or p.is_storage) and p.release}
    if len(releases) > 1:
        said = f"the PostgreSQL plugins are of different releases: {', '.join(sorted(releases))}"
        yield Problem("Plugins", "warning", said, "install both from one release", place)
    for others, enabled in ((_OTHER_INDEXES, "EnableIndex"), (_OTHER_STORAGES, "EnableStorage")):
        rivals = [name for name, switch in others.items() if starting.is_active(found, name, *switch)]
        if rivals and found.option(enabled):
            kind = "index" if enabled == "EnableIndex" else "storage"
            said = f'two {kind} plugins are on: PostgreSQL ("{enabled}") and {", ".join(rivals)}; only one will be used'
            yield Problem(
                f"{SECTION}.{enabled}", "error", said, "switch the other one off", found.place(enabled)
            )


def _releases(found: Subject) -> Iterator[Problem]:
    """Options that came later than this release of the plugin."""
    for name in found.section:
        if name in POSTGRESQL_KEYS and not found.knows(name):
            since = POSTGRESQL_KEYS[name].since
            said = f'plugin {found.release} does not know "{name}" (new in {since}) and ignores it'
            hint = f"remove it, or install plugin {since} or later"
            yield Problem(f"{SECTION}.{name}", "warning", said, hint, found.place(name))


def _connection(found: Subject) -> Iterator[Problem]:
    if not (found.option("EnableIndex") or found.option("EnableStorage")):
        return
    if "ConnectionUri" in found.section:
        yield from conninfo.connection_uri(found.option("ConnectionUri"), found.place("ConnectionUri"))
    else:
        yield from conninfo.mangled(found.section, found.place)
    parameters = _parameters(found)
    yield from _passwords(found, parameters)
    yield from _encryption(found, parameters)
    if not parameters.get("dbname") and "ConnectionUri" not in found.section:
        said = 'no "Database" is named: libpq takes the one named like the role'
        yield Problem(f"{SECTION}.Database", "warning", said, 'set "Database"', found.place())
    if not any(word.startswith(("keepalives", "tcp_user_timeout")) for word in parameters):
        said = "no keep-alive is set: firewalls and load balancers drop silent connections after some minutes"
        hint = 'add keepalives_idle=30&keepalives_interval=10&keepalives_count=3 to the "ConnectionUri"'
        if parameters.get("host", "") not in _LOCAL and not parameters.get("host", "").startswith("/"):
            yield Problem(f"{SECTION}.ConnectionUri", "info", said, hint, found.place())


def _parameters(found: Subject) -> dict[str, str]:
    """What the connection is meant to be; nothing if that cannot be told."""
    if "ConnectionUri" not in found.section:
        return conninfo.intended(found.section)
    try:
        return db.parse_dsn(str(found.option("ConnectionUri")))
    except UsageError:
        return {}


def _passwords(found: Subject, parameters: Mapping[str, str]) -> Iterator[Problem]:
    key = "ConnectionUri" if "ConnectionUri" in found.section else "Password"
    password = parameters.get("password")
    if password is None:
        return
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
        yield Problem(f"{SECTION}.{key}", "warning", f"the password {reason}", hint, found.place(key))
    for source in found.document.sources:
        if source.path.is_file() and found.place(key).startswith(f"{source.path}, "):
            mode = source.path.stat().st_mode
            if mode & stat.S_IROTH:
                said = "every user of this machine can read the password in this file"
                yield Problem(
                    f"{SECTION}.{key}", "warning", said, f"run: chmod o-r {source.path}", str(source.path)
                )


def _encryption(found: Subject, parameters: Mapping[str, str]) -> Iterator[Problem]:
    host, mode = parameters.get("host", ""), parameters.get("sslmode", "prefer")
    key = "ConnectionUri" if "ConnectionUri" in found.section else "EnableSsl"
    if not parameters or host in _LOCAL or host.startswith("/") or mode in VERIFYING_SSLMODES:
        return
    severity: Severity
    if mode == "require":
        said, severity = "sslmode=require encrypts, but does not make sure of the server", "info"
    else:
        said, severity = f"sslmode={mode}: patient data may cross the network unencrypted", "warning"
    hint = 'use sslmode=verify-full with sslrootcert=FILE in "ConnectionUri"'
    yield Problem(f"{SECTION}.{key}", severity, said, hint, found.place(key))


def _locks(found: Subject) -> Iterator[Problem]:
    """Options that contradict each other, or the way in which the Orthancs are run."""
    if not (found.option("EnableIndex") or found.option("EnableStorage")):
        return
    key, place = f"{SECTION}.Lock", found.place("Lock")
    locked = found.option("Lock")
    if found.read_only and locked and (found.release is None or version(found.release) >= (7, 0)):
        said = '"ReadOnly" with "Lock" true (its default): the plugin does not start'
        yield Problem(key, "error", said, 'set "Lock" to false', place)
    if locked and found.containers > 1:
        said = f'"Lock" is true: only the first of {found.containers} Orthancs starts'
        yield Problem(key, "error", said, 'set "Lock" to false for all of them', place)
    if locked and found.option("UseDynamicConnectionPool"):
        said = (
            '"UseDynamicConnectionPool" closes idle connections, and the lock goes with the one that has it'
        )
        yield Problem(key, "warning", said, "use one of the two", place)
    if found.containers > 1 and found.option("TransactionMode") == "Serializable":
        said = f"Serializable with {found.containers} Orthancs: expect transactions that are refused and tried again"
        yield Problem(
            f"{SECTION}.TransactionMode", "warning", said, 'set it to "ReadCommitted" (plugin 7.0 or later)'
        )


def _schema(found: Subject) -> Iterator[Problem]:
    """The plugin writes the name into `SET search_path` in lower case and without quotes."""
    name, key, place = str(found.option("Schema")), f"{SECTION}.Schema", found.place("Schema")
    if "Schema" not in found.section or not found.knows("Schema"):
        return
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", name):
        said = f'"Schema" is "{name}": PostgreSQL wants quotes around this, and the plugin writes none'
        yield Problem(key, "error", said, "rename the schema: letters, digits and _ only", place)
    elif name != name.lower():
        said = f'"Schema" is "{name}", and the plugin looks for {name.lower()}'
        yield Problem(key, "warning", said, "write it in lower case", place)


_RULES = (_switches, _libraries, _releases, _connection, _locks, _schema)
