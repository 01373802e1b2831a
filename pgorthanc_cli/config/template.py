"""A complete, commented starting configuration of Orthanc with its PostgreSQL plugin."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.config import conninfo, documents, plugins
from pgorthanc_cli.config.check import check
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.config.documents import Problem
from pgorthanc_cli.config.options import LATEST_PLUGIN, POSTGRESQL_KEYS, SECTION, version
from pgorthanc_cli.errors import UsageError

_LOCAL = ("", "localhost", "127.0.0.1", "::1")
_KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
_FIELDS = {"host", "port", "dbname", "user", "password", "sslmode"}
_WIDTH = 78

_HEAD = """\
Starting configuration of Orthanc with its PostgreSQL plugin, written by
pgorthanc config new. Comments are allowed. After a change, run:
pgorthanc config check --config FILE"""
_NOT_WRITTEN = """\
The password is not in this file. The plugin takes it from the variable PGPASSWORD of
Orthanc's environment, or from .pgpass in the home folder of Orthanc's user (mode 0600, one
line: HOST:PORT:DATABASE:ROLE:PASSWORD)."""
_PASSFILE = """\
The password is in the file that "passfile" names: it must belong to Orthanc's user, with
mode 0600, and its line is HOST:PORT:DATABASE:ROLE:PASSWORD."""


@dataclass(frozen=True)
class Choices:
    """What the caller decides about a starting configuration.

    Attributes:
        schema: PostgreSQL namespace of the index.
        postgresql_storage: Store the DICOM files in PostgreSQL instead of in a folder.
        storage_directory: That folder.
        plugins: The folder with the libraries of Orthanc's plugins.
        release: Release of the PostgreSQL plugin; None: that of the library, else the newest.
        passfile: A file in the format of .pgpass from which the plugin reads the password.
        show_password: Write the password.
    """

    schema: str = "public"
    postgresql_storage: bool = False
    storage_directory: str = "/var/lib/orthanc/db"
    plugins: str = "/usr/share/orthanc/plugins"
    release: str | None = None
    passfile: str | None = None
    show_password: bool = False


@dataclass(frozen=True, repr=False)
class Starting:
    """A starting configuration.

    Attributes:
        text: The file; holds the password if that was asked for.
        has_password: Whether it does.
        release: Release of the PostgreSQL plugin, if it is known.
        withheld: Whether a password is known, and neither written nor named by a passfile.
        problems: What `config check` says about it on this machine.
    """

    text: str
    has_password: bool
    release: str | None
    withheld: bool
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Entry:
    """An option with the comment above it; an example is itself a comment."""

    comment: str
    key: str
    value: Any
    example: bool = False


def create(parameters: Mapping[str, str], choices: Choices, *, name: Path) -> Starting:
    """Return a configuration with which Orthanc uses a database.

    Args:
        parameters: The connection, of `conninfo.complete`.
        choices: Everything else.
        name: The file that the text is meant for.

    Raises:
        UsageError: The plugin of that release cannot use this schema, or libpq these parameters.
    """
    names = [plugins.INDEX, *([plugins.STORAGE] if choices.postgresql_storage else [])]
    libraries = [str(Path(choices.plugins) / f"{library}.so") for library in names]
    known_release = choices.release or plugins.read(Path(libraries[0])).release
    release = known_release or LATEST_PLUGIN
    kept = {word: value for word, value in parameters.items() if value}
    known = "password" in kept
    if choices.passfile or not choices.show_password:
        kept = {word: value for word, value in kept.items() if word not in db.SECRETS}
    if choices.passfile:
        kept["passfile"] = choices.passfile
    section = [*_section(kept, choices, release)]
    text = _document([*_root(choices, libraries)], section)
    return Starting(
        text=text,
        has_password="password" in kept,
        release=known_release,
        withheld=known and "password" not in kept and not choices.passfile,
        problems=_problems(text, name, release),
    )


def _problems(text: str, name: Path, release: str) -> tuple[Problem, ...]:
    document = documents.Document()
    source = documents.filled(name, text, {})
    documents.record(documents.parse(source, document.problems), source, document)
    return check(Deployment.of(document, name.absolute().parent, release=release)).problems


def _root(choices: Choices, libraries: list[str]) -> Iterator[_Entry]:
    """Yield the options of Orthanc itself."""
    shared = "The same in all Orthancs that share this database."
    yield _Entry("The name of this Orthanc, as its web page shows it.", "Name", "Orthanc")
    if not choices.postgresql_storage:
        comment = f"The folder with the DICOM files; it needs a backup of its own. {shared}"
        yield _Entry(comment, "StorageDirectory", choices.storage_directory)
    comment = "Compress new files; files that are stored already stay as they are."
    yield _Entry(comment, "StorageCompression", value=False)
    comment = f"What happens if an instance is sent again: false keeps the stored one. {shared}"
    yield _Entry(comment, "OverwriteInstances", value=False)
    comment = f"The character set of DICOM files that name none. {shared}"
    yield _Entry(comment, "DefaultEncoding", "Latin1")
    comment = (
        "Further tags in the index, by level, as numbers: searches for them are fast. They are stored "
        f"for new studies only. {shared}"
    )
    example = {"Study": ["0008,1010"], "Series": ["0018,1030"]}
    yield _Entry(comment, "ExtraMainDicomTags", example, example=True)
    comment = "Needed if several Orthancs share this database: a different name for each of them."
    yield _Entry(comment, "DatabaseServerIdentifier", "orthanc-1", example=True)
    yield _Entry("How modalities address this Orthanc.", "DicomAet", "ORTHANC")
    yield _Entry("", "DicomPort", 4242)
    yield _Entry("The web page and the REST API.", "HttpPort", 8042)
    comment = "true allows HTTP from other machines; then remove the // before RegisteredUsers, too."
    yield _Entry(comment, "RemoteAccessAllowed", value=False)
    yield _Entry("", "RegisteredUsers", {"NAME": "PASSWORD"}, example=True)
    yield _Entry("The libraries of the PostgreSQL plugin.", "Plugins", libraries)


def _section(parameters: dict[str, str], choices: Choices, release: str) -> Iterator[_Entry]:
    """Yield the options of the "PostgreSQL" section that the release knows."""
    for entry in (*_area(choices), *_connection(parameters, choices), *_behaviour(choices)):
        since = POSTGRESQL_KEYS[entry.key].since
        if not since or version(since) <= version(release):
            value = POSTGRESQL_KEYS[entry.key].default_for(release) if entry.value is None else entry.value
            yield _Entry(entry.comment, entry.key, value, entry.example)
        elif entry.key == "Schema" and choices.schema != "public":
            raise UsageError(
                f"plugin {release} keeps its index in the schema public, not in {choices.schema}",
                f"leave out --schema, or install plugin {since} or later",
            )


def _area(choices: Choices) -> Iterator[_Entry]:
    yield _Entry(
        "true: the index is in PostgreSQL. Otherwise Orthanc starts on SQLite, with an empty archive.",
        "EnableIndex",
        value=True,
    )
    yield _Entry(
        "true: the DICOM files are in PostgreSQL, too. false: they are in the StorageDirectory.",
        "EnableStorage",
        choices.postgresql_storage,
    )


def _connection(parameters: dict[str, str], choices: Choices) -> Iterator[_Entry]:
    """Yield single fields for a server on this machine, else a URI, which has room for keep-alive and TLS."""
    origin = _PASSFILE if choices.passfile else _NOT_WRITTEN
    comment = "The database." if "password" in parameters else f"The database. {origin}"
    fields = _fields(parameters)
    if fields is None:
        hosts = parameters.get("host", "").split(",")
        if any(host not in _LOCAL and not host.startswith(("/", "@")) for host in hosts):
            comment += (
                " Keep-alive packets prevent firewalls from dropping idle connections. Special characters "
                "are percent-encoded: pgorthanc config uri prints such a URI."
            )
            parameters = {**_KEEPALIVE, **parameters}
        yield _Entry(comment, "ConnectionUri", conninfo.uri(parameters, show_password=True))
        return
    for key, value in fields.items():
        yield _Entry(comment, key, value)
        comment = ""


def _fields(parameters: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the single fields for a server on this machine; None if they cannot carry the connection."""
    if parameters.get("host", "") not in _LOCAL[1:] or not parameters.keys() <= _FIELDS:
        return None
    if parameters.get("sslmode", "prefer") not in ("disable", "allow", "prefer", "require"):
        return None
    # The field EnableSsl is true or false, which the plugin passes on as one of these.
    mode = "require" if parameters.get("sslmode") == "require" else "disable"
    fields, problems = conninfo.fields({**parameters, "sslmode": mode})
    return None if problems else fields


def _behaviour(choices: Choices) -> Iterator[_Entry]:
    """Yield how the plugin works with the database; None stands for the default of its release."""
    comment = "The PostgreSQL schema of the index; letters, digits and _ only, in lower case."
    yield _Entry(comment, "Schema", choices.schema)
    yield _Entry(
        "true: only one Orthanc can use this database. Several Orthancs need false in all of them, and "
        "plugin 7.0 or later.",
        "Lock",
        value=True,
    )
    comment = "How often Orthanc tries to connect when it starts, and how many seconds apart."
    yield _Entry(comment, "MaximumConnectionRetries", None)
    yield _Entry("", "ConnectionRetryInterval", None)
    yield _Entry(
        "Connections of this Orthanc. The sum over all Orthancs must stay below max_connections of the "
        "server (100 by default).",
        "IndexConnectionsCount",
        None,
    )
    yield _Entry("ReadCommitted allows several writers; Serializable retries more.", "TransactionMode", None)
    yield _Entry("Seconds between updates of the counters.", "HousekeepingInterval", None)
    yield _Entry("true logs every SQL statement.", "EnableVerboseLogs", None)


def _document(root: list[_Entry], section: list[_Entry]) -> str:
    """Return the file; the section is the last member of the root."""
    inner = "\n".join(_lines(section, "    ", last=True))
    outer = "\n".join(_lines(root, "  ", last=False))
    head = "\n".join(f"// {line}" for line in _HEAD.splitlines())
    return f'{head}\n{{\n{outer}\n\n  "{SECTION}" : {{\n{inner}\n  }}\n}}\n'


def _lines(entries: list[_Entry], margin: str, *, last: bool) -> Iterator[str]:
    """Yield the lines of the members of an object; `last`: no member follows these."""
    final = max(number for number, entry in enumerate(entries) if not entry.example)
    for number, entry in enumerate(entries):
        if entry.comment and number:
            yield ""
        comment = " ".join(entry.comment.split())
        for line in textwrap.wrap(comment, _WIDTH - len(margin) - 3, break_on_hyphens=False):
            yield f"{margin}// {line}"
        comma = "" if last and number == final else ","
        yield f'{margin}{"// " if entry.example else ""}"{entry.key}" : {_value(entry.value, margin)}{comma}'


def _value(value: Any, margin: str) -> str:
    """Return a value as JSON in which Orthanc finds no variable; a list has a line for each element."""
    lines = json.dumps(value, ensure_ascii=False, indent=2 if isinstance(value, list) else None)
    return lines.replace("${", "\\u0024{").replace("\n", f"\n{margin}")
