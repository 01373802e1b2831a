"""Escaping of text from outside (file names, DICOM values, server messages) for terminals, logs and lists."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

# Controls, formats (bidirectional overrides, zero-width characters, the byte order mark), lone surrogates and the
# separators of lines and paragraphs: Unicode's categories Cc, Cf, Cs, Zl, Zp.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""Return a text on one line, with control and invisible characters as escape sequences.

    Bytes of a file name that are not UTF-8 (Python's surrogateescape) become ``\xNN``; backslashes are doubled, so
    that two different texts never look the same.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_printable, text))


def shortened(items: Iterable[object], limit: int, separator: str = "; ") -> str:
    """Return the first items as one text, and how many more there are: `a; b; and 3 more`, `a, b and 3 more`."""
    texts = [str(item) for item in items]
    more = len(texts) - limit
    if more <= 0:
        return separator.join(texts)
    last = "; and" if separator == "; " else " and"
    return f"{separator.join(texts[:limit])}{last} {more:,} more"


def printable_lines(text: str) -> str:
    """Return a text as `printable` does, but keep line breaks and backslashes.

    The last line of defence before output; text from outside should be escaped where it is formatted.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\\" else _printable(c) for c in text)


def _printable(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _HIDDEN:
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
