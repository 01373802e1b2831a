"""The results of a verification: findings, and the statements that repair them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from pgorthanc_cli.db import Endpoint


class Phase(IntEnum):
    """When a statement of a repair runs: later phases depend on earlier ones."""

    DROP = 0
    SEQUENCE = 1
    TABLE = 2
    COLUMN = 3
    FUNCTION = 4
    # Before the keys: rows that repeat a key have to be removed first.
    DATA = 5
    KEY = 6
    REFERENCE = 7
    INDEX = 8
    TRIGGER = 9
    COUNTER = 10
    PROPERTY = 11
    # The plugin trusts the recorded revision, so everything else has to be right by then.
    STAMP = 12


@dataclass(frozen=True, order=True)
class Fix:
    """One statement of a repair, with the phase in which it runs."""

    phase: int
    sql: str


@dataclass(frozen=True)
class Finding:
    """A difference from what the plugin expects.

    Attributes:
        name: The object or the data, as in `index publicindex`.
        found: The actual state, None if the object is missing.
        wanted: The expected state, None if the object should not exist.
        matters: Whether it makes the plugin fail, now or at its next upgrade, or slow.
        why: What it means for the operator.
        repair: The statements that repair it; empty if that is not safe, or not needed.
        advice: What to do if `repair` is empty, or instead of it; None if nothing.
        blocks: Whether it blocks upgrades and downgrades, although the plugin works with it.
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
        """Return one line: severity, difference, reason, and advice."""
        if self.blocks:
            return f"note: extra {self.name} (not created by the plugin); {self.why}"
        weight = "MATTERS" if self.matters else "harmless"
        advice = f"; {self.advice}" if self.advice else ""
        return f"{weight}: {self.difference}: {self.why}{advice}"

    @property
    def difference(self) -> str:
        """Return the actual and the expected state as a message."""
        if self.found is None:
            return f"{self.name} is missing"
        if self.wanted is None:
            return f"{self.name} does not belong there"
        return f"{self.name} is '{self.found}', wanted '{self.wanted}'"


@dataclass(frozen=True)
class SchemaReport:
    """The comparison of a schema with its revision.

    Attributes:
        schema: PostgreSQL namespace.
        revision: The revision of the tables and functions.
        recorded_revision: Global property 4.
        plugins: Releases of Orthanc's PostgreSQL plugin that work with this revision.
        healthy: Whether no finding matters.
        deep: Whether counters, tree and child counts were recounted as well.
        functions: How many bodies of functions come from which release.
        findings: All differences, those that matter first.
        endpoint: The database.
    """

    schema: str
    revision: int
    recorded_revision: str | None
    plugins: str
    healthy: bool
    deep: bool
    functions: dict[str, int]
    findings: tuple[Finding, ...]
    endpoint: Endpoint

    @property
    def fixes(self) -> list[Fix]:
        """Return the statements of all repairs, in an order that runs."""
        return ordered(fix for finding in self.findings for fix in finding.repair)

    @property
    def mattering(self) -> list[Finding]:
        """Return the findings that matter to the plugin."""
        return [finding for finding in self.findings if finding.matters]


@dataclass(frozen=True)
class Repaired:
    """The result of a repair.

    Attributes:
        schema: PostgreSQL namespace.
        revision: Revision of the index.
        healthy: Whether no remaining finding matters.
        repaired: The repaired findings.
        left: The remaining findings, with advice.
        endpoint: The database.
    """

    schema: str
    revision: int
    healthy: bool
    repaired: tuple[str, ...]
    left: tuple[Finding, ...]
    endpoint: Endpoint


def ordered(fixes: Iterable[Fix]) -> list[Fix]:
    """Return statements by phase, within one in the order of the findings, and each once."""
    return sorted(dict.fromkeys(fixes), key=lambda fix: fix.phase)
