"""The settings of a change of revision, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.schema.duplicates import Differing, Duplicate, SurplusFile

PHASES = ("prepare", "switch", "finish")
ANALYZED = ("resources", "metadata")
"""The tables in which a change writes so many rows that the planner needs new statistics."""


@dataclass(frozen=True)
class Obstacle:
    """What keeps an index from another revision until an administrator removes it.

    Attributes:
        text: The fact.
        advice: What to do.
        statements: Each of these alone removes it; empty if the advice says it all.
    """

    text: str
    advice: str
    statements: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it on one line, for messages."""
        return f"{self.text}; {self.advice} {' or '.join(self.statements)}".rstrip(" ;")


@dataclass(frozen=True)
class Settings:
    """How to change the revision.

    Attributes:
        phases: Which phases to run, in this order: `prepare`, `switch`, `finish`.
        wait_s: How long to wait before the switch until no other session is connected, in seconds.
        terminate: End the other sessions instead.
        repair_duplicates: Merge resources that have the same public id.
        discard: Drop what a lower revision cannot hold.
        export: Write it to this file first, one JSON document per line.
    """

    phases: tuple[str, ...] = PHASES
    wait_s: float = 0
    terminate: bool = False
    repair_duplicates: bool = False
    discard: bool = False
    export: Path | None = None


@dataclass(frozen=True)
class Changed:
    """The index after a change of revision.

    Attributes:
        schema: PostgreSQL namespace.
        before: Its revision before; 0 for the layouts before revision 1.
        revision: Its revision now.
        phases: The phases that have run.
        to: The target revision, which `prepare` alone does not reach.
        plugins: The releases of the plugin that work with it.
        endpoint: The database.
        repaired: The differences from its revision that were repaired.
        kept: Rows that are kept aside, by table.
        restored: Rows that were kept aside and are restored, by table.
        merged: Public ids that occurred more than once, and no longer do.
        differing: What differed between their resources.
        surplus_files: Files that no row refers to any more.
        child_counts: Resources whose children have been counted.
        trigram: State of the trigram index, see `catalog.trigram`.
        blocked_s: How long no other session could use the index, in seconds.
        elapsed_s: How long everything took, in seconds.
    """

    schema: str
    before: int
    revision: int
    phases: tuple[str, ...]
    to: int
    plugins: str
    endpoint: db.Endpoint
    repaired: tuple[str, ...] = ()
    kept: dict[str, int] = field(default_factory=dict)
    restored: dict[str, int] = field(default_factory=dict)
    merged: tuple[Duplicate, ...] = ()
    differing: tuple[Differing, ...] = ()
    surplus_files: tuple[SurplusFile, ...] = ()
    child_counts: int = 0
    trigram: str = "valid"
    blocked_s: float = 0.0
    elapsed_s: float = 0.0
