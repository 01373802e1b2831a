"""Problems with the names and values of options, as far as the configuration alone shows them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pgorthanc_cli.config.documents import MOST, Document, Problem, further
from pgorthanc_cli.config.options import (
    DISCRETE_KEYS,
    LEVELS,
    POSTGRESQL_KEYS,
    ROOT_KEYS,
    ROOT_NAMES,
    SECTION,
    Key,
    closest_match,
    validation_error,
    variable_of,
)

_MOST_COMPARED = 1000  # names of the root that are compared with those that Orthanc knows


def section(document: Document) -> Mapping[str, Any]:
    """Return the "PostgreSQL" section; empty if there is none, or it is not an object."""
    value = document.values.get(SECTION)
    return value if isinstance(value, dict) else {}


def values(document: Document) -> Iterator[Problem]:
    """Yield wrong types and values out of range, with which Orthanc does not start."""
    for name, value in document.values.items():
        key = Key(SECTION, (dict,), None) if name == SECTION else ROOT_KEYS.get(name)
        error = validation_error(key, value) if key else None
        if error:
            yield Problem(name, "error", error, place=document.location(name))
    for name, value in section(document).items():
        error = validation_error(POSTGRESQL_KEYS[name], value) if name in POSTGRESQL_KEYS else None
        if error:
            yield Problem(f"{SECTION}.{name}", "error", error, place=document.location(SECTION, name))
    yield from _nul(document)
    yield from _tags(document)


def _nul(document: Document) -> Iterator[Problem]:
    """Yield texts with a NUL: C programs ignore what follows it, and libpq the rest of the connection."""
    connection = ((f"{SECTION}.{k}", v, document.location(SECTION, k)) for k, v in section(document).items())
    root = ((k, v, document.location(k)) for k, v in document.values.items() if k in ROOT_KEYS)
    for key, value, location in (*connection, *root):
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and "\0" in text for text in texts):
            name = key.rpartition(".")[2]
            message = f'"{name}" contains a NUL character (\\u0000): what follows it would be ignored'
            yield Problem(key, "error", message, "remove it", location)


def _tags(document: Document) -> Iterator[Problem]:
    name = "ExtraMainDicomTags"
    tags = document.values.get(name)
    for level, names in tags.items() if isinstance(tags, dict) else ():
        location = document.location(name, level)
        if level not in LEVELS:
            message = f'"{name}" has a level "{level}", which Orthanc ignores; it knows {", ".join(LEVELS)}'
            yield Problem(f"{name}.{level}", "warning", message, place=location)
        elif not isinstance(names, list) or not all(isinstance(tag, str) for tag in names):
            message = f'"{name}", "{level}": wanted a list of tag names'
            yield Problem(f"{name}.{level}", "error", message, place=location)


def names(document: Document) -> Iterator[Problem]:
    """Yield options that are not read: misspelt ones, and those that `ConnectionUri` replaces."""
    options = section(document)
    unknown = [name for name in options if name not in POSTGRESQL_KEYS]
    for name in unknown[:MOST]:
        meant = closest_match(name, POSTGRESQL_KEYS)
        message = f'the plugin does not know "{name}" in section "{SECTION}"'
        location = document.location(SECTION, name)
        # Both are off unless they are given: a misspelt one switches the plugin off.
        disables = meant in ("EnableIndex", "EnableStorage") and meant not in options
        if disables:
            message += f', so "{meant}" is off'
        yield Problem(
            f"{SECTION}.{name}",
            "error" if disables else "warning",
            message + _question(meant),
            _rename(meant, location, options, SECTION),
            location,
            _rename_command(meant, location, options, SECTION, name),
        )
    yield from further(
        len(unknown) - MOST, "warning", f'options of "{SECTION}" that the plugin does not know'
    )
    ignored = [name for name in DISCRETE_KEYS if "ConnectionUri" in options and name in options]
    if ignored:
        listed = ", ".join(f'"{name}"' for name in ignored)
        yield Problem(
            f"{SECTION}.ConnectionUri", "warning", f'"ConnectionUri" is given, so the plugin ignores {listed}',
            "remove what is ignored, or write it into the URI", document.location(SECTION, "ConnectionUri"),
        )  # fmt: skip
    unknown_roots = [name for name in document.values if name not in ROOT_NAMES and name != SECTION]
    for name in unknown_roots[:_MOST_COMPARED]:
        yield from _root_name(document, name, document.values[name])
    yield from further(len(unknown_roots) - _MOST_COMPARED, "warning", "options that Orthanc does not know")


def _root_name(document: Document, name: str, value: object) -> Iterator[Problem]:
    """Yield a root option that Orthanc does not know; other objects are sections of plugins."""
    location = document.location(name)
    if name in POSTGRESQL_KEYS and name not in ("Host", "Port", "Username", "Password"):
        message = f'"{name}" is outside of section "{SECTION}", where no plugin reads it'
        yield Problem(name, "warning", message, f'move it into "{SECTION}"', location)
        return
    candidates = (SECTION,) if isinstance(value, dict) else (SECTION, *ROOT_NAMES)
    meant = closest_match(name, (*candidates, *(n for n in ROOT_NAMES if n.lower() == name.lower())), 0.8)
    if meant or not isinstance(value, dict):
        message = f'Orthanc does not know "{name}"'
        command = _rename_command(meant, location, document.values, name)
        hint = _rename(meant, location, document.values)
        yield Problem(name, "warning", message + _question(meant), hint, location, command)


def _question(meant: str | None) -> str:
    return f'; did you mean "{meant}"?' if meant else ""


def _rename_command(meant: str | None, location: str, given: Mapping[str, Any], *keys: str) -> str:
    """Return the command that renames an option of a file; empty if there is none."""
    # Only a file has lines: `config set` changes neither variables nor secrets.
    if not meant or meant in given or ", line " not in location:
        return ""
    names = (".".join(keys), ".".join((*keys[:-1], meant)))
    return f"pgorthanc config set --rename {shlex.join(names)}"


def _rename(meant: str | None, location: str, given: Mapping[str, Any], *section: str) -> str | None:
    if not meant:
        return None
    if "ORTHANC__" in location:
        return f"name the variable {variable_of(*section, meant)}"
    if meant in given:
        return f'"{meant}" is set, too: keep the right value under that name, and remove the other'
    return f'write it as "{meant}"'
