"""The libraries that the option "Plugins" loads, and the release of Orthanc's PostgreSQL plugins.

No library is loaded: the release comes from the name of the file, as in
`libOrthancPostgreSQLIndex.so.10.3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgorthanc_cli import files
from pgorthanc_cli.errors import UsageError

INDEX, STORAGE = "libOrthancPostgreSQLIndex", "libOrthancPostgreSQLStorage"
ADVANCED = "AdvancedStorage"
# Storage plugins other than PostgreSQL's: their section of the configuration, and the key that enables them; without
# a key the section alone does.
STORAGES = {
    "libOrthancMySQLStorage": ("MySQL", "EnableStorage"),
    "libOrthancOdbcStorage": ("Odbc", "EnableStorage"),
    "libOrthancAwsS3Storage": ("AwsS3Storage", ""),
    "libOrthancAzureBlobStorage": ("AzureBlobStorage", ""),
    "libOrthancGoogleCloudStorage": ("GoogleCloudStorage", ""),
    "libAdvancedStorage": (ADVANCED, "Enable"),
}
_S3_ZIP = "S3Zip"  # the section of a storage in a script of the Python plugin, which has no library
_LARGEST_SCRIPT = 4 << 20
# Messages of the plugin, one for each upgrade that it can do.
_UPGRADE_STEP = re.compile(rb"from revision \d+ to revision (\d+)")


class Plugin(NamedTuple):
    """A library that Orthanc would load.

    Attributes:
        path: Of the library.
        name: Its name without `.so` and what follows.
        release: Of a PostgreSQL plugin, as in `10.3`; None if the name of the file does not tell it.
        revision: Of a PostgreSQL plugin: the highest revision that it can upgrade to.
    """

    path: Path
    name: str
    release: str | None = None
    revision: int | None = None

    @property
    def is_index(self) -> bool:
        """Whether this is the PostgreSQL plugin for the index."""
        return self.name == INDEX

    @property
    def is_storage(self) -> bool:
        """Whether this is the PostgreSQL plugin for attachments."""
        return self.name == STORAGE


def other_storages(root: Mapping[str, Any], folder: Path, *, large_objects: bool) -> list[str]:
    """Return the plugins that store attachments elsewhere than Orthanc itself would.

    A section counts whether "Plugins" names the library or not: a container image loads it by other means.

    Args:
        root: The top-level keys of the configuration.
        folder: Where relative paths start from.
        large_objects: The PostgreSQL plugin stores attachments; then any other storage plugin is one too many.
    """
    storages = [
        section
        for section, key in (*STORAGES.values(), (_S3_ZIP, ""))
        # Advanced storage reads what lies where Orthanc's own storage puts it.
        if section != ADVANCED or large_objects
        if isinstance(values := root.get(section), dict) and (not key or values.get(key) is True)
    ]
    script = root.get("PythonScript")
    if isinstance(script, str) and script and _S3_ZIP not in storages and _stores(folder / script):
        storages.append(f"PythonScript {script}")
    return storages


def _stores(script: Path) -> bool:
    """Return whether a script of the Python plugin, or one that it imports, registers a storage area."""
    content = _script(script)
    imported = re.findall(rb"^\s*(?:import|from)\s+(\w+)", content, re.MULTILINE)
    beside = [script.with_name(f"{name.decode()}.py") for name in imported if name != b"orthanc"]
    return any(b"RegisterStorageArea" in each for each in (content, *map(_script, beside)))


def _script(path: Path) -> bytes:
    """Return the content of a regular file; empty if it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(_LARGEST_SCRIPT)
    except (OSError, ValueError):
        return b""


def find(entries: list[object], folder: Path) -> tuple[list[Plugin], list[str]]:
    """Return the libraries of the entries of "Plugins", and the entries that do not exist.

    An entry is a library or a folder of libraries, relative to the folder of the configuration.
    """
    libraries: list[Plugin] = []
    missing: list[str] = []
    for entry in entries:
        path = folder / str(entry)
        if path.is_dir():
            files_of_folder = sorted(path.iterdir())
            libraries += [read(file) for file in files_of_folder if file.suffix.lower() == ".so"]
        elif path.is_file():
            libraries.append(read(path))
        else:
            missing.append(str(entry))
    return libraries, missing


def read(library: Path) -> Plugin:
    """Return a library, with its release and revision if it is one of the PostgreSQL plugins."""
    name = library.name.partition(".so")[0]
    if name not in (INDEX, STORAGE):
        return Plugin(library, name)
    # As in Debian: `libOrthancPostgreSQLIndex.so` is a link to `libOrthancPostgreSQLIndex.so.5.0`.
    ending = library.resolve().name.partition(".so.")[2]
    release = ending if re.fullmatch(r"\d+(\.\d+)+", ending) else None
    try:
        content = files.read(library, limit=1_000_000_000)
    except (OSError, UsageError):
        return Plugin(library, name, release)
    steps = [int(step) for step in _UPGRADE_STEP.findall(content)]
    return Plugin(library, name, release, max(steps, default=None))
