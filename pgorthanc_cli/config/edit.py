"""Change one option of a configuration file and nothing else: comments and layout stay.

Longer than other modules, because setting, removing and renaming share one way to find
an option in the text, and to prove that nothing else has changed.
"""

from __future__ import annotations

import copy
import json
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.config import deployment, documents, jsontext, plugins
from pgorthanc_cli.config.documents import Paths, Source
from pgorthanc_cli.config.jsontext import Node
from pgorthanc_cli.config.options import (
    POSTGRESQL_KEYS,
    ROOT_KEYS,
    ROOT_NAMES,
    SECTION,
    Key,
    closest_match,
    validation_error,
)
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.text import printable

NOT_GIVEN = "not given"
# Of the advanced-storage plugin only what `storage move` asks to change.
_SECTIONS = {SECTION: POSTGRESQL_KEYS, plugins.ADVANCED: {"Enable": Key("Enable", (bool,), False)}}
# What may follow on the line of a member so that a new one can begin the next line.
_REST_OF_LINE = re.compile(r"[ \t]*(?:/\*(?:[^*\n]|\*(?!/))*\*/[ \t]*)*(?://[^\r\n]*)?(?=\r?\n)")


@dataclass(frozen=True)
class Edited:
    """A change, made or (with `dry_run`) planned.

    Attributes:
        file: The file.
        key: The option, as in `PostgreSQL.Host`.
        before: Its value as JSON, passwords masked; `not given` if it was not there.
        after: Its new value in the same way.
        backup: Where the file as it was is kept; `none` if nothing was written.
        changed: Whether the file was written.
        dry_run: Whether this only says what would be changed.
    """

    file: str
    key: str
    before: str
    after: str
    backup: str
    changed: bool
    dry_run: bool = False


def key_of(name: str) -> tuple[str, ...]:
    """Return the keys that lead to an option.

    `Host` and `PostgreSQL.Host` -> PostgreSQL, Host; `StorageDirectory` -> itself.

    Raises:
        UsageError: Neither Orthanc nor the plugin knows it; the hint names the closest one.
    """
    section, dot, inner = name.partition(".")
    if dot and inner in _SECTIONS.get(section, {}):
        return section, inner
    if not dot and name in POSTGRESQL_KEYS:
        return SECTION, name
    if not dot and name in ROOT_NAMES:
        return (name,)
    meant = closest_match(inner or name, (*POSTGRESQL_KEYS, *ROOT_NAMES))
    raise UsageError(
        f'neither Orthanc nor its PostgreSQL plugin knows an option "{name}"',
        f'did you mean "{meant}"?' if meant else "see the options of the plugin: pgorthanc config show",
    )


def value_of(keys: tuple[str, ...], text: str) -> Any:
    """Return the value of a text: the text itself for options of type string, else JSON.

    Raises:
        UsageError: Orthanc would not start with it.
    """
    known = _SECTIONS[keys[0]] if len(keys) > 1 else ROOT_KEYS
    key = known.get(keys[-1])
    value: Any = text
    # OverwriteInstances is true, false or a word.
    if key is None or str not in key.types or (bool in key.types and text in ("true", "false")):
        try:
            value = json.loads(text)
        except ValueError:
            value = text
    said = validation_error(key, value) if key else None
    if said:
        raise UsageError(said, _example(key))
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f'"{keys[-1]}" contains a NUL character', "remove it")
    if keys[-1] == "ConnectionUri":
        db.parse_dsn(value, '"ConnectionUri"')
    return value


def _example(key: Key | None) -> str | None:
    return "write true or false" if key and key.types == (bool,) else None


def set_option(
    path: Path | Paths,
    keys: tuple[str, ...],
    value: Any,
    *,
    environ: Mapping[str, str],
    dry_run: bool = False,
) -> Edited:
    """Give an option a value, or with None remove it, in the file of a configuration that holds it.

    The file is replaced in one step, and what it was is kept beside it.

    Raises:
        ConfigurationError: The configuration cannot be read or understood.
        PgOrthancError: The file or position for the option is ambiguous, or the file cannot be written.
    """
    source, root = _file_of(path, keys, environ)
    section = Key(keys[0], (dict,), None)
    said = validation_error(section, root.value.get(keys[0], {})) if len(keys) > 1 else None
    if said:
        raise documents.ConfigurationError(f"{source.path}: {said}")
    before = _member(root, keys)
    if before is None and value is None:
        return Edited(
            str(source.path), ".".join(keys), NOT_GIVEN, NOT_GIVEN, "none", changed=False, dry_run=dry_run
        )
    raw = _removed(source, root, keys) if value is None else _with_option(source, root, keys, value)
    _require_only_change(source, raw, root, keys, value, environ)
    same = raw == source.raw
    backup = None if dry_run or same else _write(source, raw)
    return Edited(
        file=str(source.path),
        key=".".join(keys),
        before=_masked(keys, before.value) if before else NOT_GIVEN,
        after=NOT_GIVEN if value is None else _masked(keys, value),
        backup=str(backup or "none"),
        changed=backup is not None,
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class Renamed:
    """An option that has got another name, or would get it (with `dry_run`).

    Attributes:
        file: The file.
        key: The name before, as in `PostgreSQL.EnableIndx`.
        renamed_to: The name after.
        value: Its value as JSON, which stays; passwords masked.
        backup: Where the file as it was is kept; `none` if nothing was written.
        changed: Whether the file was written.
        dry_run: Whether this only says what would be changed.
    """

    file: str
    key: str
    renamed_to: str
    value: str
    backup: str
    changed: bool
    dry_run: bool = False


def rename_option(
    path: Path | Paths, old: str, new: str, *, environ: Mapping[str, str], dry_run: bool = False
) -> Renamed:
    """Give a misspelt option its right name; its value, its place and all comments stay.

    Args:
        path: The file or the folder of the configuration.
        old: The name in the file, with or without `PostgreSQL.`.
        new: An option that Orthanc or the plugin knows, of the same section.
        environ: The environment of Orthanc.
        dry_run: Change nothing.

    Raises:
        ConfigurationError: The configuration cannot be read or understood.
        UsageError: No file has the option, or the new name does not fit.
        PgOrthancError: The new name is taken, or the file cannot be written.
    """
    target = (SECTION,) if new == SECTION else key_of(new)
    source, root, keys = _misspelt(path, old, target[:-1], environ)
    parent = root.members[keys[0]] if len(keys) > 1 else root
    node = parent.members[keys[-1]]
    _require_free(parent, keys, target, source)
    start = parent.keys[keys[-1]]
    name = _first_match(r'"(?:[^"\\]|\\.)*"', source.text[start:], 0)
    raw = _spliced(source, (start, start + len(name), json.dumps(target[-1])))
    expected = copy.deepcopy(root.value)
    section = expected[keys[0]] if len(keys) > 1 else expected
    section[target[-1]] = section.pop(keys[-1])
    _require_content(source, raw, expected, keys, environ)
    backup = None if dry_run else _write(source, raw)
    return Renamed(
        file=str(source.path),
        key=".".join(keys),
        renamed_to=".".join(target),
        value=_masked(keys if keys[0] == SECTION else target, node.value),
        backup=str(backup or "none"),
        changed=backup is not None,
        dry_run=dry_run,
    )


def _misspelt(
    path: Path | Paths, old: str, section: tuple[str, ...], environ: Mapping[str, str]
) -> tuple[Source, Node, tuple[str, ...]]:
    """Return the file that has a misspelt option, its root, and the keys that lead to the option.

    Raises:
        UsageError: No file has it in the section of its new name.
    """
    keys = (*section, old.removeprefix(f"{SECTION}.") if section else old)
    for file in documents.files(path):
        source = documents.load(file, environ)
        root = documents.parse(source, [])
        if _member(root, keys):
            return source, root, keys
    place = f'the section "{SECTION}"' if section else "the root"
    raise UsageError(
        f"{path} has no option {printable(old)} in {place}",
        "an option cannot be renamed into another section; to see its options: pgorthanc config show --all",
    )


def _require_free(parent: Node, keys: tuple[str, ...], target: tuple[str, ...], source: Source) -> None:
    """Raise an error if the new name is taken already, or cannot have the value of the option."""
    place = source.location(parent.keys[keys[-1]])
    if target[-1] in parent.members:
        raise PgOrthancError(
            f"{'.'.join(target)} is set already, in {source.location(parent.keys[target[-1]])}",
            f"decide which value counts, and remove the other one by hand ({place})",
        )
    known = _SECTIONS[target[0]] if len(target) > 1 else ROOT_KEYS
    key = known.get(target[-1]) or (Key(SECTION, (dict,), None) if target == (SECTION,) else None)
    problem = validation_error(key, parent.members[keys[-1]].value) if key else None
    if problem:
        raise UsageError(f"{place}: {problem}; Orthanc would not start with it", _example(key))


def _masked(keys: tuple[str, ...], value: Any) -> str:
    return json.dumps(deployment.masked(keys, value), ensure_ascii=False)


def _file_of(path: Path | Paths, keys: tuple[str, ...], environ: Mapping[str, str]) -> tuple[Source, Node]:
    """The file that holds the option, or the section that it belongs to, or the only one there is."""
    read = [
        (source, documents.parse(source, []))
        for source in (documents.load(f, environ) for f in documents.files(path))
    ]
    holding = [pair for pair in read if keys[0] in pair[1].members]
    if not holding and len(keys) == 1:
        holding = [pair for pair in read if SECTION in pair[1].members]
    home = (holding or read)[0]
    if not holding and len(read) > 1:
        raise PgOrthancError(
            f'no file in {path} holds "{keys[0]}", and there are {len(read)} of them',
            f"name the right one, for instance: --config {home[0].path}",
        )
    return home


def _member(root: Node, keys: tuple[str, ...]) -> Node | None:
    node: Node | None = root
    for key in keys:
        node = node.members.get(key) if node else None
    return node


def _with_option(source: Source, root: Node, keys: tuple[str, ...], value: Any) -> str:
    """The raw text with the option changed or added."""
    node = _member(root, keys)
    if node is not None:
        return _spliced(source, (node.start, node.end, _json(value)))
    parent = _member(root, keys[:-1])
    if parent is None:
        return _with_option(source, root, keys[:-1], {keys[-1]: value})
    return _inserted(source, parent, keys[-1], value)


def _inserted(source: Source, parent: Node, key: str, value: Any) -> str:
    """The raw text with a new last member of an object, on a line of its own if the one before has one."""
    text = source.text
    newline = "\r\n" if "\r\n" in text else "\n"
    step = _first_match(r'\n([ \t]+)"', text) or "  "
    if not parent.members:
        outer = _indentation(text, parent.start)
        start, end = parent.start + 1, parent.end - 1
        member = f'{newline}{outer}{step}"{key}" : {_json(value, outer + step, newline)}'
        if text[start:end].strip():  # a comment, which stays
            return _spliced(source, (start, start, member))
        return _spliced(source, (start, end, f"{member}{newline}{outer}"))
    last_key, last = max(parent.members.items(), key=lambda item: item[1].end)
    colon = _first_match(r'"([ \t]*:[ \t]*)$', text[parent.keys[last_key] : last.start]) or " : "
    after = jsontext.skip(text, last.end)
    comma = text[after] == ","
    rest = _REST_OF_LINE.match(text, after + 1 if comma else last.end)
    if rest is None:
        return _spliced(source, (last.end, last.end, f', "{key}"{colon}{_json(value)}'))
    inner = _indentation(text, parent.keys[last_key])
    member = f'{newline}{inner}"{key}"{colon}{_json(value, inner, newline)}'
    edits = [] if comma else [(last.end, last.end, ",")]
    return _spliced(source, *edits, (rest.end(), rest.end(), member))


def _removed(source: Source, root: Node, keys: tuple[str, ...]) -> str:
    """The raw text without the option, its comma, and its line if nothing else stands there."""
    text = source.text
    parent, node = _member(root, keys[:-1]), _member(root, keys)
    if parent is None or node is None:
        return source.raw
    start, end = parent.keys[keys[-1]], node.end
    after = jsontext.skip(text, end)
    edits = []
    if text[after] == ",":
        end = after + 1
    else:
        before = text[:start].rstrip()
        # It was the last member: JSON allows no comma before the brace.
        if before.endswith(","):
            edits.append((len(before) - 1, len(before), ""))
    line = text.rfind("\n", 0, start) + 1
    rest = re.compile(r"[ \t]*\r?\n").match(text, end)
    if not text[line:start].strip() and rest:
        start, end = line, rest.end()
    return _spliced(source, *edits, (start, end, ""))


def _spliced(source: Source, *edits: tuple[int, int, str]) -> str:
    """The raw text with pieces replaced; positions are those of the text with its variables filled in."""
    raw = source.raw
    # From the end: the positions before an edit stay valid.
    for start, end, new in reversed(edits):
        raw_start, raw_end = source.origin(start), source.origin(end)
        if raw_start is None or raw_end is None:
            raise PgOrthancError(
                f"{source.location(start)}: this comes from an environment variable", "change it there"
            )
        raw = raw[:raw_start] + new + raw[raw_end:]
    return raw


def _json(value: Any, indentation: str = "", newline: str = "\n") -> str:
    """JSON in which Orthanc finds no variable."""
    text = json.dumps(value, ensure_ascii=False, indent=2 if isinstance(value, dict) else None)
    # Orthanc replaces ${NAME} in the text of a file, before it reads that as JSON.
    return text.replace("${", "\\u0024{").replace("\n", newline + indentation)


def _indentation(text: str, position: int) -> str:
    return _first_match(r"[ \t]*", text[text.rfind("\n", 0, position) + 1 :], 0)


def _first_match(pattern: str, text: str, group: int = 1) -> str:
    match = re.search(pattern, text)
    return match[group] if match else ""


def _require_only_change(
    source: Source, raw: str, root: Node, keys: tuple[str, ...], value: Any, environ: Mapping[str, str]
) -> None:
    """Make sure that the new text says what the old one says, but for this option.

    Raises:
        PgOrthancError: It does not; nothing is written.
    """
    expected = copy.deepcopy(root.value)
    section = expected
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    if value is None:
        section.pop(keys[-1], None)
    else:
        section[keys[-1]] = value
    _require_content(source, raw, expected, keys, environ)


def _require_content(
    source: Source, raw: str, expected: Any, keys: tuple[str, ...], environ: Mapping[str, str]
) -> None:
    """Make sure that a new text says what is expected.

    Raises:
        PgOrthancError: It does not; nothing is written.
    """
    try:
        # Comments, variables and repeated keys have too many forms to trust the edit.
        actual = documents.parse(documents.filled(source.path, raw, environ), []).value
    except documents.ConfigurationError:
        actual = None
    if actual != expected:
        raise PgOrthancError(
            f"{source.path}: {'.'.join(keys)} cannot be changed without changing something else",
            "change it by hand; nothing was written",
        )


def _write(source: Source, raw: str) -> Path:
    """Replace the file in one step; its owner and mode stay. The path of what it was."""
    path = source.path.resolve()
    backup = path.with_name(f"{path.name}.{datetime.now():%Y%m%dT%H%M%S.%f}.bak")
    try:
        before = path.stat()
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with open(handle, "wb") as stream:
                os.fchmod(stream.fileno(), stat.S_IMODE(before.st_mode))
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(stream.fileno(), before.st_uid, before.st_gid)
                stream.write(raw.encode("utf-8", "surrogateescape"))
                stream.flush()
                os.fsync(stream.fileno())
            # A link, not a rename: the file exists under its own name at every moment.
            os.link(path, backup)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PgOrthancError(
            f"{path}: cannot be changed: {error.strerror}", "run it as the owner of the file and its folder"
        ) from None
    return backup
