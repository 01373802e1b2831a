"""What a verification answers, and what mends what it found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Phase(IntEnum):
    """When a statement of a repair runs: what is later stands on what is earlier."""

    DROP = 0
    SEQUENCE = 1
    TABLE = 2
    COLUMN = 3
    FUNCTION = 4
    DATA = 5
    KEY = 6
    REFERENCE = 7
    INDEX = 8
    TRIGGER = 9
    COUNTER = 10
    PROPERTY = 11
    STAMP = 12


@dataclass(frozen=True, order=True)
class Fix:
    """One statement of a repair, with its place among those of all findings."""

    phase: int
    sql: str


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the plugin expects it.

    Attributes:
        name: The object or the data, as in `index publicindex`.
        found: What is there, None if it is missing.
        wanted: What must be there, None if it should not be there.
        matters: Whether the plugin stumbles over it, now or at its next upgrade, or becomes slow.
        why: What it means for the operator.
        repair: The statements that mend it; empty if that is not safe, or if nothing needs mending.
        advice: What to do where `repair` is empty, or instead of it; None if nothing.
        blocks: Whether it keeps the index from being upgraded or downgraded, although the plugin works with it.
    """

    name: str
    found: str | None
    wanted: str | None
    matters: bool
    why: str
    repair: tuple[Fix, ...] = ()
    advice: str | None = None
    blocks: bool = False

    def __str__(self) -> str:
        """One line: how much it matters, what it is, why, and what to do if the tool cannot."""
        if self.blocks:
            return f"note: extra {self.name} (not created by the plugin); {self.why}"
        weight = "MATTERS" if self.matters else "harmless"
        advice = f"; {self.advice}" if self.advice else ""
        return f"{weight}: {self.difference}: {self.why}{advice}"

    @property
    def difference(self) -> str:
        """What is found, and what is expected."""
        if self.found is None:
            return f"{self.name} is missing"
        if self.wanted is None:
            return f"{self.name} does not belong there"
        return f"{self.name} is '{self.found}', wanted '{self.wanted}'"


@dataclass(frozen=True)
class SchemaReport:
    """How a schema compares with what its revision must be.

    Attributes:
        schema: PostgreSQL namespace.
        revision: The revision that the tables and functions have.
        recorded_revision: What the index says itself (global property 4).
        plugins: Releases of Orthanc's PostgreSQL plugin that work with this revision.
        healthy: Whether nothing that matters was found.
        deep: Whether counters, tree and child counts were recounted as well.
        functions: Where the bodies of the functions come from, and how many.
        findings: All differences, those that matter first.
    """

    schema: str
    revision: int
    recorded_revision: str | None
    plugins: str
    healthy: bool
    deep: bool
    functions: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def fixes(self) -> list[Fix]:
        """What mends all that can be mended, in an order that runs."""
        return ordered(fix for finding in self.findings for fix in finding.repair)

    @property
    def mattering(self) -> list[Finding]:
        """What the plugin stumbles over."""
        return [finding for finding in self.findings if finding.matters]


@dataclass(frozen=True)
class Repaired:
    """What `repair` changed.

    Attributes:
        schema: PostgreSQL namespace.
        revision: Revision of the index.
        healthy: Whether nothing that matters is left.
        repaired: What was mended.
        left: What was not, and what to do about it.
    """

    schema: str
    revision: int
    healthy: bool
    repaired: tuple[str, ...]
    left: tuple[Finding, ...]


def ordered(fixes: Iterable[Fix]) -> list[Fix]:
    """By phase; within one as they were found, and each statement once."""
    return sorted(dict.fromkeys(fixes), key=lambda fix: fix.phase)
