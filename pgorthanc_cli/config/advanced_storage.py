"""The section "AdvancedStorage": where that plugin keeps files, and which folders its indexer watches.

Facts: STORAGE.md H1 (F1.4, F1.6, F1.8), measured with the plugin 0.3.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgorthanc_cli.config import plugins
from pgorthanc_cli.config.options import version
from pgorthanc_cli.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from pgorthanc_cli.config.orthanc import OrthancConfiguration

_DEFAULT_NAMING = "OrthancDefault"
_LIBRARY = "libAdvancedStorage"
_OLDEST_INDEX_PLUGIN = "8.0"  # the first one with key-value stores
_OLDEST = "0.3"  # of the advanced-storage plugin: the release whose rows are known


@dataclass(frozen=True)
class AdvancedStorage:
    """What the plugin does with the section, with its defaults.

    Attributes:
        storages: The folders of MultipleStorages by their ids, absolute.
        write_storage: The id of the storage of new files; empty: StorageDirectory.
        names_files: Whether files get names other than Orthanc's (NamingScheme).
        prefix: OtherAttachmentsPrefix, which counts with such names only; no slash at its
            ends.
        indexed: The folders that the indexer watches, as it spells them; empty if it is
            off.
        parsed: The only extensions that the indexer reads, if any are given.
        skipped: The extensions that the indexer does not read.
    """

    storages: Mapping[str, Path]
    write_storage: str = ""
    names_files: bool = False
    prefix: str = ""
    indexed: tuple[str, ...] = ()
    parsed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def require(orthanc: OrthancConfiguration) -> AdvancedStorage:
    """Return the section of a configuration whose Orthanc can read adopted files.

    Raises:
        UsageError: The plugin is not enabled, not loaded, or older than what is known; or
            a value has another type than the plugin expects.
    """
    values = orthanc.root.get(plugins.ADVANCED)
    if not isinstance(values, dict) or values.get("Enable") is not True:
        raise UsageError(
            f"{orthanc.path} does not enable the advanced-storage plugin, and Orthanc reads files outside "
            "of its storage with that plugin only",
            'install the plugin and add "AdvancedStorage": {"Enable": true}; or copy the files, without --adopt',
        )
    _require_plugins(orthanc)
    return _parse(orthanc, values)


def section(orthanc: OrthancConfiguration) -> AdvancedStorage | None:
    """Return what the plugin does with the section, enabled or not; None without one.

    Raises:
        UsageError: A value has another type than the plugin expects.
    """
    values = orthanc.root.get(plugins.ADVANCED)
    return _parse(orthanc, values) if isinstance(values, dict) else None


def _require_plugins(orthanc: OrthancConfiguration) -> None:
    """Check the libraries of "Plugins", as far as they are on this machine."""
    entries = orthanc.root.get("Plugins")
    libraries, missing = plugins.find(entries if isinstance(entries, list) else [], orthanc.folder)
    for library in libraries:
        if library.is_index and library.release and version(library.release) < version(_OLDEST_INDEX_PLUGIN):
            raise UsageError(
                f"PostgreSQL plugin {library.release} has no key-value stores, in which the advanced-storage "
                "plugin keeps the paths of adopted files",
                f"install PostgreSQL plugin {_OLDEST_INDEX_PLUGIN} or later",
            )
        release = _release(library) if library.name == _LIBRARY else None
        if release and version(release) < version(_OLDEST):
            raise UsageError(
                f"the advanced-storage plugin is {release}: import --adopt knows the rows of {_OLDEST} and later",
                "install a newer plugin",
            )
    # What is not on this machine may be on that of Orthanc.
    if libraries and not missing and all(library.name != _LIBRARY for library in libraries):
        raise UsageError(
            f'"Plugins" of {orthanc.path} does not load {_LIBRARY}.so, without which Orthanc cannot read '
            "adopted files",
            'add the library to "Plugins"; or copy the files, without --adopt',
        )


def _release(library: plugins.Plugin) -> str | None:
    ending = library.path.resolve().name.partition(".so.")[2]
    return ending if re.fullmatch(r"\d+(\.\d+)+", ending) else None


def _parse(orthanc: OrthancConfiguration, section: Mapping[str, Any]) -> AdvancedStorage:
    several = _value(section, "MultipleStorages", {})
    storages = _value(several, "Storages", {})
    current = _value(several, "CurrentWriteStorage", "")
    # Without one of both, the plugin uses StorageDirectory alone (H1).
    write_storage = current if storages else ""
    if write_storage and write_storage not in storages:
        raise UsageError(
            f'"CurrentWriteStorage" is "{write_storage}", which is not among "Storages"',
            "correct it, and check with: pgorthanc config check",
        )
    indexer = _value(section, "Indexer", {})
    folders = _texts(indexer, "Folders") if indexer.get("Enable") is True else ()
    return AdvancedStorage(
        storages={name: orthanc.folder / str(folder) for name, folder in storages.items()},
        write_storage=write_storage,
        names_files=_value(section, "NamingScheme", _DEFAULT_NAMING) != _DEFAULT_NAMING,
        prefix=_value(section, "OtherAttachmentsPrefix", "").strip("/"),
        indexed=tuple(folder.rstrip("/") or "/" for folder in folders if os.path.isabs(folder)),
        parsed=_texts(indexer, "ParsedExtensions"),
        skipped=_texts(indexer, "SkippedExtensions"),
    )


def _value(section: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return a value that must have the type of its default."""
    value = section.get(key, default)
    if type(value) is not type(default):
        raise UsageError(
            f'"{key}" in the section "AdvancedStorage" is not {"an object" if default == {} else "a string"}',
            "correct it, and check with: pgorthanc config check",
        )
    return value


def _texts(section: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = section.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(
            f'"{key}" of "Indexer" is not a list of strings',
            "correct it, and check with: pgorthanc config check",
        )
    return tuple(values)
