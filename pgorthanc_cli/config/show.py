"""A configuration as it is merged, each value with its origin; secrets masked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.config import check
from pgorthanc_cli.config.check import Subject
from pgorthanc_cli.config.known import POSTGRESQL_KEYS, ROOT_KEYS, SECRET_KEYS, SECTION, nearest

# In other plugins' sections, too; RegisteredUsers maps names to passwords, OrthancPeers lists hold them.
_SECRET = re.compile(
    r"password|secret|token|key$|privatekey|credential|connectionstring|connectionuri|^pin$"
    r"|registeredusers|orthancpeers|^url$",
    re.IGNORECASE,
)
_DEFAULT = "default"


@dataclass(frozen=True)
class Option:
    """An option, its value as it may be shown, and the file and line or the variable that gives it."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True)
class Shown:
    """The options of a configuration.

    Attributes:
        plugin: Release of the PostgreSQL index plugin, if it is known; its defaults are shown.
        options: Those of the "PostgreSQL" section with their defaults, then those of Orthanc itself.
    """

    plugin: str | None
    options: tuple[Option, ...]

    def readable(self) -> Shown:
        """The same with each value as it is written in the file."""
        options = (replace(o, value=json.dumps(o.value, ensure_ascii=False)) for o in self.options)
        return replace(self, options=tuple(options))


def show(found: Subject, *, everything: bool = False) -> Shown:
    """What Orthanc and its plugin read: the options that matter to the index, or all that are given."""
    return Shown(found.release, (*_section(found), *_root(found, everything=everything)))


def _section(found: Subject) -> Iterator[Option]:
    effective = check.effective(found)
    for name in dict.fromkeys((*effective, *found.section)):
        if name in found.section:
            dead = "" if name in effective or name not in POSTGRESQL_KEYS else "; not read"
            value = masked((SECTION, name), found.section[name])
            yield Option(f"{SECTION}.{name}", value, found.place(name) + dead)
        else:
            yield Option(f"{SECTION}.{name}", effective[name], _DEFAULT)


def _root(found: Subject, *, everything: bool) -> Iterator[Option]:
    values = found.document.values
    for name in dict.fromkeys((*(ROOT_KEYS if not everything else ()), *(values if everything else ()))):
        if name == SECTION:
            continue
        if name in values:
            yield Option(name, masked((name,), values[name]), found.document.place(name))
        elif ROOT_KEYS[name].default is not None:
            yield Option(name, ROOT_KEYS[name].default, _DEFAULT)


def masked(keys: tuple[str, ...], value: Any) -> Any:
    """A value with everything that may be a secret replaced."""
    if isinstance(value, dict):
        return {name: masked((*keys, name), member) for name, member in value.items()}
    if keys[0] == SECTION and keys[1:] and keys[-1] in POSTGRESQL_KEYS:
        return check.shown(keys[-1], value)
    if any(map(_secret, keys)):
        return db.MASK
    if isinstance(value, list):
        return [masked(keys, element) for element in value]
    return value


@lru_cache(maxsize=10_000)
def _secret(key: str) -> bool:
    return bool(_SECRET.search(key) or nearest(key, SECRET_KEYS))
