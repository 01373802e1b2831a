"""Orthanc's own configuration, typed: every option that matters here, with its default and its history."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pgorthanc_cli import orthanc_json
from pgorthanc_cli.orthanc_json import ConfigurationError

SECTION = "PostgreSQL"
LATEST_PLUGIN = "10.3"
ENCODINGS = (
    "Ascii", "Utf8", "Latin1", "Latin2", "Latin3", "Latin4", "Latin5", "Cyrillic", "Windows1251", "Arabic",
    "Greek", "Hebrew", "Thai", "Japanese", "Chinese", "JapaneseKanji", "Korean", "SimplifiedChinese",
)  # fmt: skip
LEVELS = ("Patient", "Study", "Series", "Instance")

_TYPE_NAMES = {str: "a string", int: "an integer", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Key:
    """An option of Orthanc's configuration.

    Attributes:
        name: In its exact case: Orthanc tells `Host` from `host`.
        types: The JSON types that Orthanc accepts.
        default: What holds when the option is absent; None when absent has a meaning of its own.
        since: The first version of the PostgreSQL plugin (of Orthanc itself for root options) that reads it;
            empty: every version described here.
        changed: The plugin version that gave it the present default, and the default before.
        minimum: The least integer allowed.
        maximum: The greatest integer allowed.
        choices: The words allowed, compared without regard to case and returned as written here.
    """

    name: str
    types: tuple[type, ...]
    default: str | int | bool | None
    since: str = ""
    changed: tuple[str, str | int] | None = None
    minimum: int = 0
    maximum: int = 2**32 - 1
    choices: tuple[str, ...] = ()

    def default_for(self, plugin: str) -> str | int | bool | None:
        """The default in a version of the plugin, such as `6.2`."""
        if self.changed and _version(plugin) < _version(self.changed[0]):
            return self.changed[1]
        return self.default


# The "PostgreSQL" section (SCHEMA.md 11).
POSTGRESQL_KEYS = {
    key.name: key
    for key in (
        Key("EnableIndex", (bool,), False),
        Key("EnableStorage", (bool,), False),
        Key("ConnectionUri", (str,), None),
        Key("Host", (str,), "localhost"),
        Key("Port", (int,), 5432, minimum=1, maximum=65534),
        Key("Database", (str,), ""),
        Key("Username", (str,), ""),
        Key("Password", (str,), ""),
        Key("EnableSsl", (bool,), False, since="3.0"),
        Key("Lock", (bool,), True),
        Key("MaximumConnectionRetries", (int,), 10, since="3.3"),
        Key("ConnectionRetryInterval", (int,), 5, since="3.3"),
        Key("IndexConnectionsCount", (int,), 50, since="4.0", changed=("7.0", 1), minimum=1),
        Key("TransactionMode", (str,), "ReadCommitted", since="6.0", changed=("7.0", "Serializable"),
            choices=("ReadCommitted", "Serializable")),
        Key("EnableVerboseLogs", (bool,), False, since="6.0"),
        Key("HousekeepingInterval", (int,), 1, since="7.0", minimum=1),
        Key("AllowInconsistentChildCounts", (bool,), False, since="7.2"),
        Key("UseDynamicConnectionPool", (bool,), False, since="9.0"),
        Key("Schema", (str,), "public", since="10.0"),
        Key("ApplicationName", (str,), "", since="10.0"),
    )
}  # fmt: skip
# What ConnectionUri makes dead; without it, any of the first six means that the section describes a server.
DISCRETE_KEYS = ("Host", "Port", "Database", "Username", "Password", "EnableSsl", "ApplicationName")

# The root options that decide what an import writes, and where (INGEST.md 2, 5, 8, 11, 12).
ROOT_KEYS = {
    key.name: key
    for key in (
        Key("StorageDirectory", (str,), "OrthancStorage"),
        Key("IndexDirectory", (str,), None),
        Key("StorageCompression", (bool,), False),
        Key("StoreMD5ForAttachments", (bool,), True),
        Key("OverwriteInstances", (bool, str), False, choices=("Never", "Always", "IfChanged")),
        Key("ExtraMainDicomTags", (dict,), None, since="1.11.0"),
        Key("DefaultEncoding", (str,), "Latin1", choices=ENCODINGS),
        Key("StoreDicom", (bool,), True),
        Key("IngestTranscoding", (str,), None),
        Key("SyncStorageArea", (bool,), True),
        Key("DatabaseServerIdentifier", (str,), None),
    )
}


@dataclass(frozen=True, repr=False)
class OrthancConfiguration:
    """Orthanc's configuration with Orthanc's defaults; without arguments it is that of an empty file.

    Attributes:
        path: The file or the folder that was read.
        root: Its top-level keys, as they are; may hold the password, so it is never shown.
        warnings: What Orthanc would pass over in silence: unknown keys, dead keys, keys defined twice.
    """

    path: Path = field(default_factory=lambda: Path("orthanc.json"))
    root: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Where it is, and nothing of what it says."""
        return f"OrthancConfiguration({str(self.path)!r})"

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the configuration start from."""
        return (self.path if self.path.is_dir() else self.path.parent).absolute()

    def given(self, key: str) -> bool:
        """Whether the "PostgreSQL" section says something about a key."""
        return key in self.root.get(SECTION, {})

    def postgresql(self, key: str, plugin: str = LATEST_PLUGIN) -> Any:
        """An option of the "PostgreSQL" section, or its default in that version of the plugin."""
        return _value(POSTGRESQL_KEYS[key], self.root.get(SECTION, {}), plugin)

    @property
    def schema(self) -> str:
        """The PostgreSQL namespace, in lower case as the plugin has it."""
        return str(self.postgresql("Schema")).lower() or "public"

    @property
    def enable_storage(self) -> bool:
        """Whether attachments are large objects of PostgreSQL instead of files."""
        return bool(self.postgresql("EnableStorage"))

    @property
    def storage_directory(self) -> Path:
        """The folder of the attachments, absolute."""
        return self.folder / str(self._root("StorageDirectory"))

    @property
    def index_directory(self) -> Path:
        """The folder of the SQLite index, absolute; that of the attachments unless given."""
        given = self._root("IndexDirectory")
        return self.folder / given if given else self.storage_directory

    @property
    def storage_compression(self) -> bool:
        """Whether attachments are compressed."""
        return bool(self._root("StorageCompression"))

    @property
    def store_md5(self) -> bool:
        """Whether Orthanc would write MD5 sums of attachments."""
        return bool(self._root("StoreMD5ForAttachments"))

    @property
    def overwrite_instances(self) -> Literal["never", "always", "if_changed"]:
        """What happens to an instance that is already there (INGEST.md 11)."""
        value = self._root("OverwriteInstances")
        words: dict[object, Literal["never", "always", "if_changed"]] = {
            False: "never", True: "always", "Never": "never", "Always": "always", "IfChanged": "if_changed",
        }  # fmt: skip
        return words[value]

    @property
    def extra_main_dicom_tags(self) -> dict[str, tuple[str, ...]]:
        """Patient, Study, Series, Instance -> further main DICOM tags, names or `gggg,eeee`, in order."""
        tags: dict[str, list[str]] = self._root("ExtraMainDicomTags") or {}
        return {level: tuple(names) for level, names in tags.items()}

    @property
    def default_encoding(self) -> str:
        """The character set of files that name none, one of `ENCODINGS`."""
        return str(self._root("DefaultEncoding"))

    @property
    def store_dicom(self) -> bool:
        """Whether DICOM files are stored at all."""
        return bool(self._root("StoreDicom"))

    @property
    def ingest_transcoding(self) -> str | None:
        """The transfer syntax that Orthanc converts to while receiving, if any."""
        value: str | None = self._root("IngestTranscoding")
        return value or None

    @property
    def sync_storage_area(self) -> bool:
        """Whether each stored file is synchronised to disk."""
        return bool(self._root("SyncStorageArea"))

    @property
    def database_server_identifier(self) -> str | None:
        """The name under which the Orthanc of this configuration keeps its server properties, if given."""
        value: str | None = self._root("DatabaseServerIdentifier")
        return value

    def _root(self, key: str) -> Any:
        return _value(ROOT_KEYS[key], self.root, LATEST_PLUGIN)


def load(path: str | Path, environ: Mapping[str, str] | None = None) -> OrthancConfiguration:
    """Read and check Orthanc's configuration: a JSON file, or a folder of `*.json` files.

    Raises:
        ConfigurationError: Malformed file, a wrong type, a value out of range: with file, key, found, wanted.
    """
    document = orthanc_json.read(Path(path), os.environ if environ is None else environ)
    section = document.values.get(SECTION, {})
    where = str(document.sources.get(SECTION, path))
    _check_type(Key(SECTION, (dict,), None), section, where)
    for name, value in document.values.items():
        if name in ROOT_KEYS:
            _check(ROOT_KEYS[name], value, str(document.sources[name]))
    for name, value in section.items():
        if name in POSTGRESQL_KEYS:
            _check(POSTGRESQL_KEYS[name], value, f'{where}, section "{SECTION}"')
    _check_tags(
        document.values.get("ExtraMainDicomTags", {}), str(document.sources.get("ExtraMainDicomTags"))
    )
    warnings = (*document.warnings, *_section_warnings(section, where), *_root_warnings(document))
    return OrthancConfiguration(Path(path), document.values, warnings)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _value(key: Key, values: Mapping[str, Any], plugin: str) -> Any:
    value = values.get(key.name, key.default_for(plugin))
    canonical = {choice.lower(): choice for choice in key.choices}
    return canonical.get(value.lower(), value) if isinstance(value, str) else value


def _check(key: Key, value: object, where: str) -> None:
    _check_type(key, value, where)
    if isinstance(value, int) and not isinstance(value, bool) and not key.minimum <= value <= key.maximum:
        raise ConfigurationError(f'{where}: "{key.name}" is {value}, wanted {key.minimum} to {key.maximum}')
    if isinstance(value, str) and key.choices and value.lower() not in map(str.lower, key.choices):
        raise ConfigurationError(
            f'{where}: "{key.name}" is "{value}", wanted one of {", ".join(key.choices)}'
        )


def _check_type(key: Key, value: object, where: str) -> None:
    if type(value) in key.types:  # exactly: JSON's true is no integer
        return
    shown = (
        ""
        if isinstance(value, (dict, list)) or key.name in ("Password", "ConnectionUri")
        else f" ({value!r})"
    )
    found = _TYPE_NAMES.get(type(value), "null" if value is None else "a number with a fraction")
    wanted = " or ".join(_TYPE_NAMES[t] for t in key.types)
    raise ConfigurationError(f'{where}: "{key.name}" is {found}{shown}, wanted {wanted}')


def _check_tags(tags: Mapping[str, object], where: str) -> None:
    for level, names in tags.items():
        if level not in LEVELS:
            raise ConfigurationError(
                f'{where}: "ExtraMainDicomTags" has a level "{level}", wanted {", ".join(LEVELS)}'
            )
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(f'{where}: "ExtraMainDicomTags", "{level}": wanted a list of tag names')


def _section_warnings(section: Mapping[str, object], where: str) -> Iterator[str]:
    for name in section:
        if name not in POSTGRESQL_KEYS:
            suggestion = _suggestion(name, POSTGRESQL_KEYS)
            yield f'{where}: the plugin does not know "{name}" in section "{SECTION}"{suggestion}'
    dead = [f'"{name}"' for name in DISCRETE_KEYS if section.get("ConnectionUri") and name in section]
    if dead:
        yield f'{where}: "ConnectionUri" is given, so the plugin ignores {", ".join(dead)}'


def _root_warnings(document: orthanc_json.Document) -> Iterator[str]:
    known = {name.lower(): name for name in (SECTION, *ROOT_KEYS)}
    for name, source in document.sources.items():
        meant = known.get(name.lower(), name)
        if meant != name:
            yield f'{source}: Orthanc does not know "{name}"; did you mean "{meant}"?'


def _suggestion(name: str, known: Mapping[str, Key]) -> str:
    folded = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.7)
    return f'; did you mean "{folded[close[0]]}"?' if close else ""
