"""What can be made beforehand, beside a working Orthanc: read from the heads of the scripts that use it.

A script names in its head, as comments, the statements that spare it the work: an index that is built CONCURRENTLY,
or a constraint that is added NOT VALID and validated afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pgorthanc_cli.schema import catalog, steps

PREFIX = "pgorthanc_"

_INDEX = re.compile(r"--   (CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+) ON (\w+) .+);")
_CONSTRAINT = re.compile(r"--   (ALTER TABLE (?P<table>\w+) ADD CONSTRAINT (?P<name>\w+) .+ NOT VALID);")


@dataclass(frozen=True)
class Preparation:
    """An object that a step takes if it is there.

    Attributes:
        name: Its name; one that begins with `pgorthanc_` is temporary: the step gives it its final name.
        table: Its table.
        statement: What makes it.
        validate: What validates it, if it is a constraint.
    """

    name: str
    table: str
    statement: str
    validate: str | None = None

    def state(self, found: catalog.Catalog) -> str:
        """`ready`, `invalid` (it has to be made anew, or validated), `missing`, `pointless` (without its table)."""
        if f"table {self.table}" not in found:
            return "pointless"
        definition = found.get(
            f"constraint {self.table}.{self.name}" if self.validate else f"index {self.name}"
        )
        if definition is None:
            return "missing"
        return "invalid" if definition.endswith("VALID") else "ready"


def beforehand(way: Iterable[steps.Step]) -> list[Preparation]:
    """What the steps of a way take, in their order."""
    return [preparation for step in way for preparation in _of(steps.text(step.script))]


def left_over(found: catalog.Catalog) -> list[Preparation]:
    """The temporary objects that are there, made for any step."""
    known = {preparation.name: preparation for preparation in beforehand(steps.found())}
    return [
        preparation
        for preparation in known.values()
        if preparation.name.startswith(PREFIX) and preparation.state(found) in ("ready", "invalid")
    ]


def _of(script: str) -> list[Preparation]:
    head = script.partition("\n\n")[0].splitlines()
    found = []
    for line in head:
        if match := _INDEX.fullmatch(line):
            found.append(Preparation(match[2], match[3], match[1]))
        elif match := _CONSTRAINT.fullmatch(line):
            validate = f"ALTER TABLE {match['table']} VALIDATE CONSTRAINT {match['name']}"
            found.append(Preparation(match["name"], match["table"], match[1], validate))
    return found
