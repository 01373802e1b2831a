"""Orthanc's configuration files: environment variables filled in, a folder merged into one document.

Read as Orthanc does it, with two exceptions, because a guess could mean another database: a string that is not
UTF-8 is refused, and so is, unless the caller asks for what Orthanc would see, a variable that is not set.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from pgorthanc_cli import files as disk
from pgorthanc_cli.config import jsontext
from pgorthanc_cli.errors import UsageError

Severity = Literal["error", "warning", "info"]
Keys = tuple[str, ...]

# A default may be in quotes; a bare one holds no quote. Anything else is no variable to Orthanc and stays as it is.
_QUOTED = re.compile(r""":-(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)")\}""")
MOST = 100  # problems of one kind that are listed one by one
_LONGEST_NAME = 100  # characters of a variable's name that a message repeats


class ConfigurationError(UsageError):
    """A configuration file that cannot be read or understood; the message says where."""


@dataclass(frozen=True)
class Problem:
    """Something in a configuration that an operator should know.

    Attributes:
        key: The option, as in `PostgreSQL.Host`; empty if there is none in particular.
        severity: `error`: Orthanc does not start, or uses something other than what is written;
            `warning`: it starts, but probably not as intended; `info`: worth knowing.
        message: The actual and the expected value; never a password.
        hint: The fix.
        place: File and line, or variable.
        command: The command that fixes it, without --config; empty if there is none.
    """

    key: str
    severity: Severity
    message: str
    hint: str | None = None
    place: str = ""
    command: str = ""

    @property
    def warning(self) -> str:
        """The problem in one line, with its place."""
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass(frozen=True, repr=False)
class Source:
    """A file as Orthanc reads it.

    Attributes:
        path: The file.
        raw: Its text; bytes that are not UTF-8 as with `surrogateescape`.
        text: The text with all variables filled in.
        filled: For each variable its start and end in `text`, and its start and end in `raw`, in ascending order.
        unset: Names of variables without value and default, each with its position in `text`.
    """

    path: Path
    raw: str
    text: str
    filled: tuple[tuple[int, int, int, int], ...]
    unset: tuple[tuple[str, int], ...]

    def origin(self, position: int) -> int | None:
        """Return the position in `raw` for one in `text`; None within the value of a variable."""
        before = bisect.bisect_right(self.filled, (position, len(self.text) + 1)) - 1
        if before < 0:
            return position
        start, end, raw_start, raw_end = self.filled[before]
        if position == start:
            return raw_start
        return raw_end + position - end if position >= end else None

    def line(self, position: int) -> int:
        """Return the line in the file, counted from 1, for a position in `text`."""
        shift = self.origin(position)
        if shift is None:
            shift = self.filled[bisect.bisect_right(self.filled, (position, len(self.text) + 1)) - 1][2]
        return bisect.bisect_left(self._line_ends, shift) + 1

    @cached_property
    def _line_ends(self) -> list[int]:
        return [match.start() for match in re.finditer("\n", self.raw)]

    def location(self, position: int) -> str:
        """Return file and line for a position in `text`."""
        return f"{self.path}, line {self.line(position)}"


@dataclass(repr=False)
class Document:
    """The contents of a file, or of all files of a folder; may hold passwords, so it is never shown.

    Attributes:
        values: The top-level keys of all files.
        places: File and line of each key, by the keys that lead to it.
        problems: What Orthanc ignores silently.
        sources: The files.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    def location(self, *keys: str) -> str:
        """Return file and line of a key, or of the nearest one above it; empty if unknown."""
        return next((self.places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.places), "")


@dataclass(frozen=True)
class Paths:
    """Files and folders that Orthanc reads as one configuration, several since 1.13.0."""

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, given: str | Path | Paths | Iterable[str | Path]) -> Paths:
        """Return one path, or several, as paths."""
        if isinstance(given, Paths):
            return given
        return cls(tuple(map(Path, (given,) if isinstance(given, (str, Path)) else given)))

    def __str__(self) -> str:
        """Return the paths for a message."""
        return ", ".join(map(str, self.paths))

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the configuration start from, absolute."""
        first = self.paths[0]
        return (first if first.is_dir() else first.parent).absolute()


def read(path: str | Path | Paths, environ: Mapping[str, str]) -> Document:
    """Return JSON files, and all `*.json` files of folders (without sub-folders), as one document.

    A variable that is not set counts as empty, as in Orthanc, and is a problem of severity `error`.

    Raises:
        ConfigurationError: Unreadable or malformed file (with line and column), a key that two files
            define.
    """
    document = Document()
    for file in files(path):
        source = load(file, environ)
        document.sources.append(source)
        root = parse(source, document.problems)
        for key in root.members:
            if key in document.values:
                first = document.location(key)
                _fail(
                    f'{path}: the configuration section "{key}" is defined in 2 different configuration '
                    f"files: {Path(first.partition(', line')[0]).name} and {file.name}",
                    "keep each section in one file: Orthanc does not start with it twice, either",
                )
        record(root, source, document)
    return document


def record(root: jsontext.Node, source: Source, document: Document) -> None:
    """Add the members of a root, and file and line of each, to a document."""
    document.values.update(root.value)
    for keys, node in root.walk():
        for name, position in node.keys.items():
            document.places[keys + (name,)] = source.location(position)  # noqa: RUF005 - Python 3.10 has no * here


def files(path: str | Path | Paths) -> list[Path]:
    """Return the files that Orthanc reads: each file, and the `*.json` files of each folder by name.

    Raises:
        ConfigurationError: A folder cannot be read, or holds no such file.
    """
    return [file for one in Paths.of(path).paths for file in _files(one)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        paths = sorted(path.iterdir())
    except OSError as error:
        _fail(f"{path}: cannot be read: {error.strerror}")
    json_files = [file for file in paths if file.name.lower().endswith(".json") and not file.is_dir()]
    if not json_files:
        _fail(
            f"{path}: no *.json file in this folder",
            "name Orthanc's configuration file, or the folder that holds it",
        )
    return json_files


def load(path: Path, environ: Mapping[str, str]) -> Source:
    """Return a file with its variables filled in.

    Raises:
        ConfigurationError: It cannot be read, or holds a variable without a name.
    """
    try:
        raw = disk.read(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        _fail(f"{path}: cannot be read: {error.strerror}")
    except UsageError as error:
        _fail(error.message, error.hint)
    return filled(path, raw, environ)


def filled(path: Path, raw: str, environ: Mapping[str, str]) -> Source:
    """Return a text with its variables filled in.

    Raises:
        ConfigurationError: It holds a variable without a name.
    """
    parts, places, unset = [], [], []
    done = length = 0
    for start, end, name, default in _variables(raw):
        if not name:
            _fail(f"{_at(path, raw, start)}: ${{}} names no variable; Orthanc does not start with it")
        value = environ.get(name, default)
        kept = raw[done:start]
        # Its position in the text after filling: comments are known only there.
        if value is None:
            unset.append((name, length + len(kept)))
        parts += [kept, value or ""]
        begin = length + len(kept)
        length = begin + len(value or "")
        places.append((begin, length, start, end))
        done = end
    return Source(path, raw, "".join([*parts, raw[done:]]), tuple(places), tuple(unset))


def _variables(raw: str) -> Iterator[tuple[int, int, str, str | None]]:
    """Yield start, end, name and default (or None) of each variable, in linear time for any text."""
    # A regular expression would take quadratic time for many `${` without an end.
    stop, closes = _NextOf(raw, ":}"), _NextOf(raw, "'\"}")
    at = raw.find("${")
    while at >= 0:
        name_end, end = stop.after(at + 2), -1
        default = None
        if raw[name_end : name_end + 1] == "}":
            end = name_end + 1
        elif raw.startswith(":-", name_end):
            quoted = _QUOTED.match(raw, name_end)
            bare_end = closes.after(name_end + 2)
            if quoted:
                end, default = (
                    quoted.end(),
                    quoted["single"] if quoted["single"] is not None else quoted["double"],
                )
            elif raw[bare_end : bare_end + 1] == "}":
                end, default = bare_end + 1, raw[name_end + 2 : bare_end]
        if end >= 0:
            yield at, end, raw[at + 2 : name_end], default
        at = raw.find("${", end if end >= 0 else at + 2)


class _NextOf:
    """Finds the next one of some characters, for ascending positions; no part of the text is read twice."""

    def __init__(self, text: str, characters: str) -> None:
        self._text = text
        self._pattern = re.compile(f"[{re.escape(characters)}]")
        self._next = -1

    def after(self, position: int) -> int:
        """Return the first one at or after a position; the length of the text if there is none."""
        if self._next < position:
            match = self._pattern.search(self._text, position)
            self._next = match.start() if match else len(self._text)
        return self._next


def parse(source: Source, problems: list[Problem]) -> jsontext.Node:
    """Return the root object of a file; add what Orthanc ignores silently to `problems`.

    Raises:
        ConfigurationError: It is not JSON as JsonCpp reads it, or no object.
    """
    unset = _unset(source)
    try:
        document = jsontext.parse(source.text)
    except jsontext.JsonError as error:
        # The text without the value is the likely reason why this is not JSON.
        if unset:
            _fail(unset[0].warning, unset[0].hint)
        _fail(f"{_at(source.path, source.text, error.position)}: not valid JSON: {error.reason}")
    root = document.root
    if not isinstance(root.value, dict):
        _fail(
            f"{source.path}: found a JSON {type(root.value).__name__}, wanted an object {{…}} of Orthanc's options"
        )
    problems.extend((*unset, *_remarks(source, document)))
    return root


def _unset(source: Source) -> list[Problem]:
    """Return a problem for each variable without a value outside of comments, at most `MOST` in detail."""
    comments = jsontext.comments(source.text) if source.unset else []
    starts = [start for start, _ in comments]

    def commented(position: int) -> bool:
        before = bisect.bisect_left(starts, position) - 1
        return before >= 0 and position <= comments[before][1]

    missing = [
        (name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...", position)
        for name, position in source.unset
        if not commented(position)
    ]
    problems = [
        Problem(
            "", "error", f"the environment variable {name} is not set, and Orthanc puts nothing in its place",
            f"set {name}, or give it a default: ${{{name}:-value}}", source.location(position),
        )
        for name, position in missing[:MOST]
    ]  # fmt: skip
    return [*problems, *further(len(missing) - MOST, "error", "variables are not set", str(source.path))]


def further(count: int, severity: Severity, what: str, location: str = "") -> Iterator[Problem]:
    """Yield one problem for those that are not listed, if there are any."""
    if count > 0:
        yield Problem("", severity, f"{count:,} more {what}", None, location)


def _remarks(source: Source, document: jsontext.Text) -> list[Problem]:
    remarks, repeated = [], 0
    for keys, node in document.root.walk():
        for name in sorted(set(node.repeated)):
            repeated += 1
            if repeated > MOST:
                continue
            dotted = ".".join((*keys, name))
            location = source.location(node.keys[name])
            remarks.append(
                Problem(
                    dotted, "warning", f"defined twice, the last one counts: {name}", "keep one", location
                )
            )
    remarks += further(repeated - MOST, "warning", "keys are defined twice", str(source.path))
    if document.rest is not None:
        text = "Orthanc passes over everything after the closing brace"
        remarks.append(Problem("", "warning", text, "remove what follows", source.location(document.rest)))
    if document.control is not None:
        text = "a control character within a string: Orthanc with JsonCpp 1.9.6 or later does not start"
        remarks.append(
            Problem("", "warning", text, "write \\n, \\t or \\u00XX", source.location(document.control))
        )
    return remarks


def _at(path: Path, text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"{path}, line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _fail(message: str, hint: str | None = None) -> NoReturn:
    raise ConfigurationError(message, hint) from None
