"""The page about two configurations that were compared."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pgorthanc_cli.config.compare import Compared, Difference
from pgorthanc_cli.text import printable
from pgorthanc_cli.views.page import Block, Note, Page, Status

_LONGEST = 60  # characters of a value; --json has all of them
_STATUSES: dict[str, Status] = {
    "must agree": "problem", "must differ": "problem", "should agree": "warning", "note": "",
}  # fmt: skip
_RULES = {
    "must agree": "must be the same",
    "must differ": "must differ",
    "should agree": "should be the same",
    "note": "is the same",
}


def page(result: Compared) -> Page:
    """Return the verdict, the differences with their consequences, and the options that may differ."""
    blocks: list[Block] = [_finding(each) for each in result.differences if each.verdict != "may differ"]
    free = [printable(each.key) for each in result.differences if each.verdict == "may differ"]
    if free:
        blocks.append(Note(f"Also different, which is fine: {', '.join(free)}"))
    where = (f"A: {printable(result.a)}", f"B: {printable(result.b)}")
    statuses = {block.status for block in blocks if isinstance(block, Note)}
    worst: Status = "problem" if result.forbidding else "warning" if "warning" in statuses else "ok"
    return Page(_headline(result), where, tuple(blocks), status=worst)


def _headline(result: Compared) -> str:
    count = len(result.forbidding)
    if not count:
        return "These two Orthancs can share a database."
    options = "1 option is" if count == 1 else f"{count} options are"
    return f"These two Orthancs must not share a database: {options} wrong."


def _finding(each: Difference) -> Note:
    rule = f"{printable(each.key)} {_RULES[each.verdict]}:"
    status = _STATUSES[each.verdict]
    return Note(each.consequence, status, (rule, *_values(each)))


def _values(each: Difference) -> Iterator[str]:
    for name, value, place in (("A", each.a, each.place_a), ("B", each.b, each.place_b)):
        shown = "not set" if value is None else printable(json.dumps(value, ensure_ascii=False))
        if len(shown) > _LONGEST:
            shown = f"{shown[: _LONGEST - 3]}..."
        origin = place or ("" if value is None else "the default")
        yield f"{name}: {shown}{f'  ({printable(origin)})' if origin else ''}"
