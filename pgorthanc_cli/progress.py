"""Progress of long work: rooms report it through a callback, commands show it.

A function that takes a while has a parameter `report: Report = silent` and calls it before a step and, within a
long step, every few hundred milliseconds. Who wants to stop the work raises `Interrupted` in the callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """One step of long work, and how far it is.

    Attributes:
        phase: The part of the work, as in `prepare`; empty where there is only one.
        what: The step, as in `creating index childrenindex2`.
        done: Units of the step that are done (rows, blocks, bytes), None if they are not counted.
        total: Units of the step, None if unknown.
    """

    phase: str
    what: str
    done: int | None = None
    total: int | None = None


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore progress: the default where a caller does not want it."""
