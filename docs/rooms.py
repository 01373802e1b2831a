"""Draws the picture of the rooms in docs/architecture.md from the imports of the code: rooms.py FILE (`make docs`)."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pgorthanc_cli"
# Used by nearly every room: drawn as the ground, without arrows.
GROUND = (
    "db",
    "catalogs",
    "files",
    "workers",
    "pacing",
    "signals",
    "text",
    "progress",
    "constants",
    "errors",
)
_PICTURE = re.compile(r"(<!-- rooms -->\n```text\n).*?(```)", re.DOTALL)


@cache
def uses() -> dict[str, set[str]]:
    """Return the rooms that each room imports, without the ground."""
    rooms: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room.startswith("__") or room in GROUND:
            continue
        rooms.setdefault(room, set()).update(_imports(path))
    return {
        room: {other for other in others if other in rooms and other != room}
        for room, others in rooms.items()
    }


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            top, *inner = node.module.split(".")
            if top == PACKAGE.name:
                names |= {inner[0]} if inner else {alias.name for alias in node.names}
    return names


def floor(room: str, above: tuple[str, ...] = ()) -> int:
    """Return the number of rooms on the longest path down from a room."""
    below = [other for other in uses()[room] if other not in above]
    return 1 + max((floor(other, (*above, room)) for other in below), default=0)


def picture() -> str:
    """Return one line for each room, the upper ones first, with the rooms that it uses."""
    floors = {room: floor(room) for room in uses()}
    lines = []
    for number in sorted(set(floors.values()), reverse=True):
        for room in sorted(room for room in floors if floors[room] == number):
            # A room that uses all others is not drawn with its arrows: they would hide
            # those that matter.
            others = sorted(uses()[room], key=lambda other: (-floors[other], other))
            arrows = "all rooms below" if len(others) > 9 else ", ".join(others)
            lines.append(f"{number:2}  {room:<15} {f'-> {arrows}' if others else ''}".rstrip())
        lines.append("")
    return "\n".join([*lines, f" 0  {'  '.join(GROUND)}", ""])


def main(file: str) -> None:
    """Replace the picture in a file."""
    path = Path(file)
    text = path.read_text("utf-8")
    path.write_text(_PICTURE.sub(lambda match: match[1] + picture() + match[2], text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
