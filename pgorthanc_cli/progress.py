"""How far long work is, told while it goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Something goes on.

    Attributes:
        phase: The part of the work that it belongs to.
        what: What is done.
        done: How much of it, None where nobody can tell.
        total: Out of how much.
    """

    phase: str
    what: str
    done: int | None = None
    total: int | None = None
