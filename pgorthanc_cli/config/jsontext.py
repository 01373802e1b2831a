"""JSON as Orthanc's JsonCpp reads it, with the location of every value in the text.

Beyond the standard it takes `//` and `/* */` comments, one trailing comma, text after the document, leading zeros
and a leading `+`. Stricter than JsonCpp: strings are Unicode, and the stray character that JsonCpp swallows after a
comment in an object is an error. Found by experiment with Orthanc 1.10.1 (JsonCpp 1.9.5), 1.12.7 and 1.13.0 (JsonCpp
1.9.6), and held against the real programs by tests/interop/test_config_oracle.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_SPACES = frozenset(" \t\r\n")
_COMMENT = re.compile(r"//[^\r\n]*|/\*.*?\*/", re.DOTALL)
_STRING_OR_COMMENT = re.compile(rf'"(?:[^"\\]|\\.)*"|{_COMMENT.pattern}', re.DOTALL)
_MARK = re.compile('["/]')
_NUMBER = re.compile(r"[-+]?[0-9]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]*)?")
_DOUBLE = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.?))", re.DOTALL)
_ESCAPED = {'"': '"', "/": "/", "\\": "\\", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS = {"true": True, "false": False, "null": None}
_DEEPEST = 200  # no configuration is, and Python's stack has an end
_LONGEST = 309  # digits of the largest whole number that a double can hold


class JsonError(ValueError):
    """Text that JsonCpp cannot read, either; `position` counts characters from 0."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


@dataclass(repr=False)
class Node:
    """A value and its position in the text.

    Attributes:
        value: As Python has it.
        start: Position of its first character.
        end: Position after its last one.
        members: The members of an object, each key with its last value.
        keys: Where the keys of these members start.
        repeated: Keys of the object that are written more than once.
    """

    value: Any
    start: int
    end: int = 0
    members: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
        """Yield this value and all members of objects below it, each with the keys that lead to it."""
        waiting = [(path, self)]
        while waiting:
            above, node = waiting.pop()
            yield above, node
            waiting += [((*above, key), member) for key, member in reversed(node.members.items())]


@dataclass(repr=False)
class Text:
    """A document that was read.

    Attributes:
        root: The value.
        rest: Position of what stands after it and is no comment, and so is passed over; None if there is nothing.
        control: Position of a control character within a string: Orthanc refuses it since JsonCpp 1.9.6.
    """

    root: Node
    rest: int | None = None
    control: int | None = None


def parse(text: str) -> Text:
    """Return the document at the start of a text.

    Raises:
        JsonError: Where and why JsonCpp would stop.
    """
    return _Parser(text).document()


def comments(text: str) -> list[tuple[int, int]]:
    """Return start and end of all comments in order; none after a string or comment without end."""
    spans = []
    at = _next_mark(text, 0)
    while at < len(text):
        match = _STRING_OR_COMMENT.match(text, at)
        if match is None and (text[at] == '"' or text.startswith("/*", at)):
            break
        if match and text[at] == "/":
            spans.append(match.span())
        at = _next_mark(text, match.end() if match else at + 1)
    return spans


def _next_mark(text: str, at: int) -> int:
    mark = _MARK.search(text, at)
    return mark.start() if mark else len(text)


def skip(text: str, at: int) -> int:
    """Return the position after spaces and comments."""
    while True:
        at = _space(text, at)
        comment = _COMMENT.match(text, at) if text[at : at + 1] == "/" else None
        if not comment:
            return at
        at = comment.end()


def _space(text: str, at: int) -> int:
    if text[at : at + 1] not in _SPACES:
        return at
    match = _SPACE.match(text, at)
    return match.end() if match else at


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.control: int | None = None

    def document(self) -> Text:
        start = 1 if self.text.startswith("\ufeff") else 0
        root = self._value(skip(self.text, start), 0)
        rest = skip(self.text, root.end)
        return Text(root, rest if rest < len(self.text) else None, self.control)

    def _value(self, at: int, depth: int) -> Node:
        first = self.text[at : at + 1]
        if depth > _DEEPEST:
            raise JsonError("nested too deeply", at)
        if first == "{":
            return self._object(at, depth)
        if first == "[":
            return self._array(at, depth)
        if first == '"':
            text, end = self._string(at)
            return Node(text, at, end)
        if first and first in "-+0123456789":
            return self._number(at)
        for word, value in _LITERALS.items():
            if self.text.startswith(word, at):
                return Node(value, at, at + len(word))
        raise JsonError("a value is expected here", at)

    def _object(self, start: int, depth: int) -> Node:
        node = Node({}, start)
        at = skip(self.text, start + 1)
        while self.text[at : at + 1] != "}":
            if self.text[at : at + 1] != '"':
                raise JsonError("a key in double quotes, or }, is expected here", at)
            key, end = self._string(at)
            # JsonCpp allows no comment before the colon.
            colon = _space(self.text, end)
            if self.text[colon : colon + 1] != ":":
                raise JsonError("a colon is missing after the key", colon)
            member = self._value(skip(self.text, colon + 1), depth + 1)
            if key in node.members:
                node.repeated.append(key)
            node.value[key], node.members[key], node.keys[key] = member.value, member, at
            at = self._next(member.end, "}")
        node.end = at + 1
        return node

    def _array(self, start: int, depth: int) -> Node:
        node = Node([], start)
        at = _space(self.text, start + 1)
        while self.text[at : at + 1] != "]":
            element = self._value(skip(self.text, at), depth + 1)
            node.value.append(element.value)
            at = self._next(element.end, "]")
        node.end = at + 1
        return node

    def _next(self, end: int, closing: str) -> int:
        """Return the position of the next element, or of the closing bracket, after an element."""
        at = skip(self.text, end)
        character = self.text[at : at + 1]
        # JsonCpp accepts {"a": 1, /* comment */} but not [1, /* comment */].
        if character == ",":
            return skip(self.text, at + 1) if closing == "}" else _space(self.text, at + 1)
        if character != closing:
            raise JsonError(f"a comma or {closing} is missing", at)
        return at

    def _string(self, start: int) -> tuple[str, int]:
        match = _STRING.match(self.text, start)
        if match is None:
            raise JsonError("the string does not end", start)
        control = re.search(r"[\x00-\x1f]", match[1])
        if control and self.control is None:
            self.control = match.start(1) + control.start()
        text = (
            _ESCAPE.sub(lambda m: self._escape(m, match.start(1)), match[1]) if "\\" in match[1] else match[1]
        )
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16"), match.end()
        except UnicodeDecodeError:
            raise JsonError("the string is not valid Unicode", start) from None

    def _escape(self, match: re.Match[str], offset: int) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2] not in _ESCAPED:
            raise JsonError(
                "no escape sequence that JSON knows; a backslash is written \\\\", offset + match.start()
            )
        return _ESCAPED[match[2]]

    def _number(self, start: int) -> Node:
        match = _NUMBER.match(self.text, start)
        text = match[0] if match else ""
        end = start + len(text)
        if re.fullmatch(r"-?[0-9]*", text):
            digits = text.lstrip("-").lstrip("0")
            # JsonCpp reads a lone minus as 0.
            whole = int(digits[: _LONGEST + 1] or 0)
            if len(digits) > _LONGEST or whole > sys.float_info.max:
                raise JsonError(f"a number of {len(text):,} digits is too large", start)
            whole = -whole if text.startswith("-") else whole
            # JsonCpp has integers of 64 bits, with and without a sign, and doubles for
            # all others.
            exact = -(2**63) <= whole < 2**64
            return Node(whole if exact else float(whole), start, end)
        if len(text) > 5000 or not _DOUBLE.fullmatch(text) or float(text) in (float("inf"), float("-inf")):
            raise JsonError("this is not a number", start)
        return Node(float(text), start, end)
