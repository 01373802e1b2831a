"""The schema scripts and the ways between revisions, found by file name.

`PrepareIndex.sql` makes an index at the newest revision, `RevAToRevB.sql` and `UnknownToRev1.sql` are single
steps, `StorageArea.sql` makes the storage area. They lie in `pgorthanc_cli/scripts` once installed, and in
`scripts/` beside the package in a checkout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli.errors import RevisionError

PREPARE_INDEX = "PrepareIndex.sql"
STORAGE_AREA = "StorageArea.sql"

_STEP = re.compile(r"(?:Unknown|Rev(?P<start>\d+))ToRev(?P<end>\d+)\.sql")


@dataclass(frozen=True)
class Step:
    """One script from a revision to a neighbouring one; 0 is the layout before revision 1."""

    start: int
    end: int
    script: str


def folder() -> Path:
    """Where the scripts are."""
    package = Path(__file__).parent.parent
    installed = package / "scripts"
    return installed if installed.is_dir() else package.parent / "scripts"


def text(script: str) -> str:
    """The SQL of a script, to be sent whole."""
    return (folder() / script).read_text(encoding="utf-8")


def found() -> list[Step]:
    """All steps, up and down."""
    matches = (_STEP.fullmatch(entry.name) for entry in folder().iterdir())
    return [Step(int(m["start"] or 0), int(m["end"]), m[0]) for m in matches if m]


def path(start: int, end: int) -> list[Step]:
    """The steps from one revision to another, all in one direction.

    Raises:
        RevisionError: No scripts lead there; says which revisions can be reached.
    """
    way = [
        step
        for step in _walk(start, down=end < start)
        if (step.end >= end if end < start else step.end <= end)
    ]
    if (way[-1].end if way else start) != end:
        raise RevisionError(
            f"no script leads from revision {start} to {end}",
            f"revisions that can be reached: {', '.join(map(str, reachable(start)))}",
        )
    return way


def reachable(start: int, *, down_only: bool = False) -> list[int]:
    """The revisions that the steps lead to from `start`, itself included."""
    up = [] if down_only else _walk(start, down=False)
    return sorted({start, *(step.end for step in (*_walk(start, down=True), *up))})


def _walk(start: int, *, down: bool) -> list[Step]:
    """All steps in one direction, one after the other."""
    following = {step.start: step for step in found() if (step.end < step.start) is down}
    way: list[Step] = []
    while start in following:
        way.append(following[start])
        start = following[start].end
    return way
