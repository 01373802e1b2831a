"""Two configurations compared, as text for people."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from pgorthanc_cli.config.compare import Compared, Difference
from pgorthanc_cli.text import printable

_LONGEST = 60  # characters of a value; --json has all of them
_MARKS = {"must agree": "FAIL", "must differ": "FAIL", "should agree": "warn", "note": "note"}
_SYMBOLS = {"must agree": "✗", "must differ": "✗", "should agree": "!", "note": "-"}
_RULES = {
    "must agree": "must be the same",
    "must differ": "must differ",
    "should agree": "should be the same",
    "note": "is the same",
}


def page(result: Compared, *, width: int | None, symbols: bool) -> str:
    """Return the verdict, the differences with their consequences, and the options that may differ.

    Args:
        result: What was compared.
        width: Columns of the terminal; None: do not wrap.
        symbols: Use symbols instead of words.
    """
    lines = [*_wrapped(_headline(result), width)]
    lines += [f"A  {printable(result.a)}", f"B  {printable(result.b)}"]
    for each in result.differences:
        if each.verdict != "may differ":
            lines += ["", *_finding(each, width, (_SYMBOLS if symbols else _MARKS)[each.verdict])]
    free = [printable(each.key) for each in result.differences if each.verdict == "may differ"]
    if free:
        lines += ["", *_wrapped(f"Also different, which is fine: {', '.join(free)}", width)]
    return "\n".join(lines)


def _headline(result: Compared) -> str:
    count = len(result.forbidding)
    if not count:
        return "These two Orthancs can share a database."
    options = "1 option is" if count == 1 else f"{count} options are"
    return f"These two Orthancs must not share a database: {options} wrong."


def _finding(each: Difference, width: int | None, mark: str) -> Iterator[str]:
    margin = " " * (len(mark) + 2)
    yield from _wrapped(each.consequence, width, f"{mark}  ", margin)
    yield f"{margin}{printable(each.key)} {_RULES[each.verdict]}:"
    for name, value, place in (("A", each.a, each.place_a), ("B", each.b, each.place_b)):
        shown = "not set" if value is None else printable(json.dumps(value, ensure_ascii=False))
        if len(shown) > _LONGEST:
            shown = f"{shown[: _LONGEST - 3]}..."
        yield f"{margin}    {name}  {shown}{'' if place or value is None else '  (the default)'}"
        if place:
            yield f"{margin}       {printable(place)}"


def _wrapped(text: str, width: int | None, first: str = "", margin: str = "") -> list[str]:
    if width is None:
        return [first + text]
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=margin, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
