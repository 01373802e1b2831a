"""Orthanc's configuration files as text: comments, environment variables, a folder merged into one.

Read as Orthanc and its JsonCpp do: `//` and `/* */` comments, one trailing comma, control characters within
strings, a byte order mark. Stricter in two ways, because a guess could mean another database: text after the
document is refused, and so is a variable that is not set and has no default. A key written twice in one file
counts with its last value, as in Orthanc, and gives a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pgorthanc_cli.errors import UsageError

_COMMENT = re.compile(r'"(?:\\.|\$\{[^}]*\}|[^"\\])*"|\$\{[^}]*\}|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])')
_VARIABLE = re.compile(r"""\$\{(?P<name>[^}:]*)(?P<default>:-(?:'[^'}]*'|"[^"}]*"|[^}]*))?\}""")


class ConfigurationError(UsageError):
    """A configuration file that cannot be read or understood; the message says where."""


@dataclass
class Document:
    """What a file, or all files of a folder, say.

    Attributes:
        values: The top-level keys of all files.
        sources: The file that each top-level key comes from.
        warnings: What Orthanc would pass over in silence.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """A JSON file, or all `*.json` files of a folder (not of its sub-folders) as one document.

    Raises:
        ConfigurationError: Unreadable or malformed file (with line and column), unknown variable, a key that
            two files of the folder define, a folder without such files.
    """
    document = Document()
    for file in _files(path):
        for key, value in _read_file(file, environ, document.warnings).items():
            if key in document.values:
                _fail(
                    f'{path}: the configuration section "{key}" is defined in 2 different configuration '
                    f"files: {document.sources[key].name} and {file.name}",
                    "keep each section in one file: Orthanc does not start with such a folder, either",
                )
            document.values[key] = value
            document.sources[key] = file
    return document


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        found = sorted(f for f in path.iterdir() if f.suffix.lower() == ".json" and f.is_file())
    except OSError as error:
        _fail(f"{path}: cannot be read: {error.strerror}")
    if not found:
        _fail(
            f"{path}: no *.json file in this folder",
            "name Orthanc's configuration file, or the folder that holds it",
        )
    return found


def _read_file(path: Path, environ: Mapping[str, str], warnings: list[str]) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1})
            warnings.append(f"{path}: defined twice, the last one counts: {', '.join(twice)}")
        return values

    text = _prepare(path, environ)
    try:
        value = json.loads(text, strict=False, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        _fail(f"{_at(path, text, error.pos)}: not valid JSON: {error.msg}")
    except ValueError as error:
        _fail(f"{path}: not valid JSON: {error}")
    if not isinstance(value, dict):
        _fail(f"{path}: found a JSON {type(value).__name__}, wanted an object {{…}} of Orthanc's options")
    return value


def _prepare(path: Path, environ: Mapping[str, str]) -> str:
    """The text with comments and trailing commas blanked, so that positions stay, and variables filled in."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        _fail(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        _fail(f"{path}, line {line}: not UTF-8", "convert the file to UTF-8, as Orthanc needs it")
    text = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]) if m[0][0] == "/" else m[0], text)
    text = _VARIABLE.sub(lambda m: _substitute(m, path, environ), text)
    return _TRAILING_COMMA.sub(lambda m: " " if m[0] == "," else m[0], text)


def _substitute(match: re.Match[str], path: Path, environ: Mapping[str, str]) -> str:
    name, default = match["name"], match["default"]
    if name in environ:
        return environ[name]
    if default is None:
        _fail(
            f"{_at(path, match.string, match.start())}: the environment variable {name} is not set",
            f"set {name}, or give it a default: ${{{name}:-value}}",
        )
    default = default.removeprefix(":-")
    quoted = len(default) > 1 and default[0] == default[-1] and default[0] in "'\""
    return default[1:-1] if quoted else default


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


def _at(path: Path, text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"{path}, line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _fail(message: str, hint: str | None = None) -> NoReturn:
    raise ConfigurationError(message, hint) from None
