"""A configuration as its readers see it: their plugins, the effective options, each with its origin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.config import conninfo, plugins, validation
from pgorthanc_cli.config.documents import Document
from pgorthanc_cli.config.options import (
    LATEST_PLUGIN,
    POSTGRESQL_KEYS,
    ROOT_KEYS,
    SECRET_KEYS,
    SECTION,
    closest_match,
    value_or_default,
    version,
)
from pgorthanc_cli.config.plugins import Plugin
from pgorthanc_cli.errors import UsageError

# In other plugins' sections, too; RegisteredUsers maps names to passwords, OrthancPeers lists hold them.
_SECRET = re.compile(
    r"password|secret|token|key$|privatekey|credential|connectionstring|connectionuri|^pin$"
    r"|registeredusers|orthancpeers|^url$",
    re.IGNORECASE,
)
_DEFAULT = "default"


@dataclass(frozen=True)
class Deployment:
    """A configuration, and what is known about the Orthancs that will read it.

    Attributes:
        document: The configuration.
        libraries: The plugins that it loads.
        missing: Entries of "Plugins" that do not exist.
        release: Release of the PostgreSQL index plugin, if known.
        containers: How many Orthancs use this configuration.
        in_image: Whether the container image reads it, which loads plugins by itself.
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
        return validation.section(self.document)

    def option(self, name: str) -> Any:
        """Return an option of that section, or its default in the release."""
        return value_or_default(
            POSTGRESQL_KEYS[name], self.section if self.knows(name) else {}, self._release
        )

    def location(self, *keys: str) -> str:
        """Return file and line of an option of that section."""
        return self.document.location(SECTION, *keys)

    @property
    def read_only(self) -> bool:
        """Whether this Orthanc may not write."""
        return self.document.values.get("ReadOnly") is True

    @property
    def _release(self) -> str:
        return self.release or LATEST_PLUGIN

    def knows(self, name: str) -> bool:
        """Return whether this release of the plugin reads an option."""
        since = POSTGRESQL_KEYS[name].since
        return not since or version(since) <= version(self._release)

    @property
    def revision(self) -> int | None:
        """The highest revision that the index plugin can upgrade to, if its release is unknown."""
        return next((library.revision for library in self.libraries if library.is_index), None)

    @classmethod
    def of(
        cls,
        document: Document,
        folder: Path,
        *,
        release: str | None = None,
        containers: int = 1,
        in_image: bool = False,
    ) -> Deployment:
        """Find the plugins of a document; `release` overrides that of a library.

        Raises:
            UsageError: The release is not a version number.
        """
        if release is not None and not re.fullmatch(r"\d+\.\d+", release):
            raise UsageError(f"{release!r} is no release of the plugin", "write it as in --plugin 10.3")
        entries = document.values.get("Plugins")
        libraries, missing = plugins.find(entries if isinstance(entries, list) else [], folder)
        releases = (library.release for library in libraries if library.is_index and library.release)
        return cls(
            document, tuple(libraries), tuple(missing), release or next(releases, None), containers, in_image
        )


def effective(deployment: Deployment) -> dict[str, object]:
    """Return the options that the plugin reads, with the defaults of its release; passwords masked."""
    # The plugin reads one or the other, never both.
    dead = conninfo.FIELDS if "ConnectionUri" in deployment.section else ("ConnectionUri",)
    return {
        name: _without_password(name, deployment.option(name))
        for name in POSTGRESQL_KEYS
        if deployment.knows(name) and name not in dead
    }


def _without_password(name: str, value: Any) -> Any:
    """Return a value of the "PostgreSQL" section, without its password."""
    if name == "Password":
        return db.MASK if value else value
    if name != "ConnectionUri" or not value:
        return value
    try:
        return conninfo.uri(db.parse_dsn(str(value)))
    except UsageError:
        return db.MASK


@dataclass(frozen=True)
class Option:
    """An option, its value with secrets masked, and the file and line or the variable that sets it."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True)
class Shown:
    """The options of a configuration.

    Attributes:
        plugin: Release of the PostgreSQL index plugin, if known; the defaults are its own.
        options: Those of the "PostgreSQL" section with their defaults, then those of Orthanc itself.
    """

    plugin: str | None
    options: tuple[Option, ...]


def show(deployment: Deployment, *, everything: bool = False) -> Shown:
    """Return the options that matter to the index, or all that are set."""
    return Shown(deployment.release, (*_section(deployment), *_root(deployment, everything=everything)))


def _section(deployment: Deployment) -> Iterator[Option]:
    in_force = effective(deployment)
    for name in dict.fromkeys((*in_force, *deployment.section)):
        if name in deployment.section:
            dead = "" if name in in_force or name not in POSTGRESQL_KEYS else "; not read"
            value = masked((SECTION, name), deployment.section[name])
            yield Option(f"{SECTION}.{name}", value, deployment.location(name) + dead)
        else:
            yield Option(f"{SECTION}.{name}", in_force[name], _DEFAULT)


def _root(deployment: Deployment, *, everything: bool) -> Iterator[Option]:
    values = deployment.document.values
    for name in dict.fromkeys((*(ROOT_KEYS if not everything else ()), *(values if everything else ()))):
        if name == SECTION:
            continue
        if name in values:
            yield Option(name, masked((name,), values[name]), deployment.document.location(name))
        elif ROOT_KEYS[name].default is not None:
            yield Option(name, ROOT_KEYS[name].default, _DEFAULT)


def masked(keys: tuple[str, ...], value: Any) -> Any:
    """Return a value with everything that may be a secret replaced."""
    if isinstance(value, dict):
        return {name: masked((*keys, name), member) for name, member in value.items()}
    if keys[0] == SECTION and keys[1:] and keys[-1] in POSTGRESQL_KEYS:
        return _without_password(keys[-1], value)
    # A key above counts, too: below RegisteredUsers every value is a password.
    if any(map(_secret, keys)):
        return db.MASK
    if isinstance(value, list):
        return [masked(keys, element) for element in value]
    return value


@lru_cache(maxsize=10_000)
def _secret(key: str) -> bool:
    # A misspelt `Pasword` holds a password as well.
    return bool(_SECRET.search(key) or closest_match(key, SECRET_KEYS))
