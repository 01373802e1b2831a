"""The schema scripts and the paths between revisions, found by file name.

`PrepareIndex.sql` creates an index at the newest revision, `RevAToRevB.sql` and `UnknownToRev1.sql` are single
steps, `StorageArea.sql` creates the storage area. They are in `pgorthanc_cli/scripts` once installed, and in
`scripts/` beside the package in a checkout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2.errors

from pgorthanc_cli.errors import InUseError, RevisionError

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
    """Return the folder of the scripts."""
    package = Path(__file__).parent.parent
    # The wheel has the scripts within the package, a checkout next to it.
    installed = package / "scripts"
    return installed if installed.is_dir() else package.parent / "scripts"


def text(script: str) -> str:
    """Return the SQL of a script, to be sent whole."""
    return (folder() / script).read_text(encoding="utf-8")


def all_steps() -> list[Step]:
    """Return all steps, up and down."""
    matches = (_STEP.fullmatch(entry.name) for entry in folder().iterdir())
    return [Step(int(m["start"] or 0), int(m["end"]), m[0]) for m in matches if m]


def path(start: int, end: int) -> list[Step]:
    """Return the steps from one revision to another, all in one direction.

    Raises:
        RevisionError: No scripts lead there; the hint lists the revisions that can be reached.
    """
    steps = _walk(start, down=end < start)
    steps = [step for step in steps if min(start, end) <= step.end <= max(start, end)]
    if (steps[-1].end if steps else start) != end:
        raise RevisionError(
            f"no script leads from revision {start} to {end}",
            f"revisions that can be reached: {', '.join(map(str, reachable(start)))}",
        )
    return steps


def reachable(start: int, *, down_only: bool = False) -> list[int]:
    """Return the revisions that can be reached from `start`, itself included."""
    up = [] if down_only else _walk(start, down=False)
    return sorted({start, *(step.end for step in (*_walk(start, down=True), *up))})


def _walk(start: int, *, down: bool) -> list[Step]:
    """Return all steps in one direction, one after the other."""
    following = {step.start: step for step in all_steps() if (step.end < step.start) is down}
    steps: list[Step] = []
    while start in following:
        steps.append(following[start])
        start = following[start].end
    return steps


@contextmanager
def errors(locked: str) -> Iterator[None]:
    """Translate what scripts raise, and a lock timeout, for which `locked` is the message.

    `db.session` translates all other errors of the driver.

    Raises:
        RevisionError: A script refused the schema or its data.
        InUseError: A script met an Orthanc, or another session kept a table locked.
    """
    try:
        yield
    except psycopg2.errors.RaiseException as error:
        raise RevisionError(str(error.diag.message_primary), error.diag.message_hint) from None
    except psycopg2.errors.ObjectInUse as error:
        raise InUseError(str(error.diag.message_primary), error.diag.message_hint) from None
    except psycopg2.errors.LockNotAvailable:
        hint = "stop every Orthanc that uses this database, then run the same command again"
        raise InUseError(locked, hint) from None
