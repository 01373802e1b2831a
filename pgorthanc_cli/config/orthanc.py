"""Orthanc's own configuration, typed, with Orthanc's defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pgorthanc_cli.config import documents, plugins, validation
from pgorthanc_cli.config.documents import ConfigurationError
from pgorthanc_cli.config.options import (
    LATEST_PLUGIN,
    LEVELS,
    POSTGRESQL_KEYS,
    ROOT_KEYS,
    SECTION,
    value_or_default,
)
from pgorthanc_cli.errors import UsageError


@dataclass(frozen=True, repr=False)
class OrthancConfiguration:
    """Orthanc's configuration with Orthanc's defaults; without arguments that of an empty file.

    Attributes:
        path: The files and folders that were read.
        root: Its top-level keys; may hold the password, so it is never shown.
        warnings: What Orthanc ignores silently: unknown keys, unused keys, keys defined twice.
    """

    path: documents.Paths = field(default_factory=lambda: documents.Paths.of("orthanc.json"))
    root: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return its path, and none of its values."""
        return f"OrthancConfiguration({str(self.path)!r})"

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the configuration start from."""
        return self.path.folder

    def given(self, key: str) -> bool:
        """Return whether the "PostgreSQL" section sets a key."""
        return key in self.root.get(SECTION, {})

    def postgresql(self, key: str, plugin: str = LATEST_PLUGIN) -> Any:
        """Return an option of the "PostgreSQL" section, or its default in that release of the plugin."""
        return value_or_default(POSTGRESQL_KEYS[key], self.root.get(SECTION, {}), plugin)

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

    def require_own_storage(self) -> None:
        """Raise an error if another plugin than PostgreSQL's stores the attachments.

        Raises:
            UsageError: Another plugin stores them; the message names it.
        """
        others = plugins.other_storages(self.root, self.folder, large_objects=self.enable_storage)
        if not others:
            return
        usual = (
            'large objects ("EnableStorage")' if self.enable_storage else f"files in {self.storage_directory}"
        )
        raise UsageError(
            f"{self.path} lets another storage plugin keep the DICOM files ({', '.join(others)}), "
            f"which pgorthanc cannot read or write; Orthanc would not use {usual}",
            "let Orthanc itself receive the files (POST /instances); or, if you know that it reads them there, "
            "name the place with --storage-dir FOLDER",
        )

    @property
    def advanced_storage(self) -> dict[str, Path] | None:
        """The folders of the advanced-storage plugin by their ids; None if it is not in use."""
        section = self.root.get("AdvancedStorage")
        # Loaded and without that option, the plugin leaves the files to Orthanc.
        if not isinstance(section, dict) or section.get("Enable") is not True:
            return None
        several = section.get("MultipleStorages")
        storages = several.get("Storages") if isinstance(several, dict) else None
        if not isinstance(storages, dict):
            return {}
        return {name: self.folder / str(folder) for name, folder in storages.items()}

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
        """What happens to an instance that is already stored (INGEST.md 11)."""
        value = self._root("OverwriteInstances")
        words: dict[object, Literal["never", "always", "if_changed"]] = {
            False: "never", True: "always", "Never": "never", "Always": "always", "IfChanged": "if_changed",
        }  # fmt: skip
        return words[value]

    @property
    def extra_main_dicom_tags(self) -> dict[str, tuple[str, ...]]:
        """Patient, Study, Series, Instance -> further main DICOM tags, names or `gggg,eeee`, in order."""
        tags: dict[str, list[str]] = self._root("ExtraMainDicomTags") or {}
        return {level: tuple(names) for level, names in tags.items() if level in LEVELS}

    @property
    def default_encoding(self) -> str:
        """The character set of files that name none, one of `constants.ENCODINGS`."""
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
        return value_or_default(ROOT_KEYS[key], self.root, LATEST_PLUGIN)


def load(
    path: str | Path | Iterable[str | Path], environ: Mapping[str, str] | None = None
) -> OrthancConfiguration:
    """Return Orthanc's configuration, read and checked: JSON files, and folders of `*.json` files.

    Raises:
        ConfigurationError: Malformed file, a wrong type, a value out of range, a variable that is not set: with
            file, key, actual and expected value.
    """
    paths = documents.Paths.of(path)
    return validate(paths, documents.read(paths, os.environ if environ is None else environ))


def validate(path: documents.Paths, document: documents.Document) -> OrthancConfiguration:
    """Return the configuration of a document, if Orthanc starts with its values.

    Raises:
        ConfigurationError: The first value with which it does not.
    """
    problems = [*document.problems, *validation.values(document)]
    for problem in problems:
        if problem.severity == "error":
            raise ConfigurationError(problem.warning, problem.hint)
    problems += validation.names(document)  # Orthanc starts with any of these
    return OrthancConfiguration(path, document.values, tuple(problem.warning for problem in problems))


def storage_folder(
    storage: str | None, storage_dir: Path | None, orthanc: OrthancConfiguration | None
) -> Path | None:
    """Return the folder of the attachments; None if they are large objects of PostgreSQL.

    Args:
        storage: Of the option --storage: `filesystem`, `postgresql`, or None.
        storage_dir: Of the option --storage-dir.
        orthanc: Orthanc's configuration, for what the options leave open.

    Raises:
        UsageError: The options contradict each other, nothing names the storage, or
            another storage plugin keeps the files.
    """
    if storage == "postgresql":
        if storage_dir:
            raise UsageError(
                "--storage postgresql and --storage-dir contradict each other",
                "give one of them",
            )
        return None
    if storage_dir:
        return storage_dir
    if orthanc is None:
        raise UsageError(
            "no storage given",
            "give --storage-dir FOLDER, --storage postgresql, or Orthanc's configuration with --config",
        )
    # Another plugin (S3, Azure, ...) may keep the files, which pgorthanc cannot reach.
    if storage is None:
        orthanc.require_own_storage()
    return None if orthanc.enable_storage and storage is None else orthanc.storage_directory
