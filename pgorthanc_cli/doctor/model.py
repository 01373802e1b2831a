"""What an examination answers, and what it works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

Status = Literal["OK", "WARNING", "CRITICAL", "UNKNOWN"]
_WORST_FIRST: tuple[Status, ...] = ("CRITICAL", "WARNING")


@dataclass(frozen=True)
class Verdict:
    """What one check says.

    Attributes:
        status: UNKNOWN: it could not be seen, and `hint` says which right is missing.
        message: What was found.
        hint: What to do about it.
        figures: What was measured, for a monitoring system; the unit is in the name.
    """

    status: Status
    message: str
    hint: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A verdict as it is shown: under its name, and with a hint only where there is something to do."""

    name: str
    status: Status
    message: str
    hint: str | None


@dataclass(frozen=True)
class Health:
    """What an examination found.

    Attributes:
        server: The server and the database, without any password.
        checks: One for each thing that was looked at.
        figures: What was measured; for programs only.
        status: The worst of them; what could not be seen counts only if nothing could be.
    """

    server: str
    checks: tuple[Check, ...]
    figures: Mapping[str, float] = field(metadata={"shown": False})
    status: Status

    @classmethod
    def of(cls, server: str, verdicts: Mapping[str, Verdict]) -> Health:
        """The sum of what the checks say, by their names."""
        checks = tuple(
            Check(name, said.status, said.message, None if said.status == "OK" else said.hint)
            for name, said in verdicts.items()
        )
        figures = {name: value for said in verdicts.values() for name, value in said.figures.items()}
        found = {check.status for check in checks}
        worst = next((worst for worst in _WORST_FIRST if worst in found), _least(found))
        return cls(server, checks, figures, worst)

    @property
    def summary(self) -> str:
        """In one line: what is wrong, the worst first."""
        bad = [check for worst in _WORST_FIRST for check in self.checks if check.status == worst]
        return (
            "; ".join(f"{check.name}: {check.message}" for check in bad)
            or f"{len(self.checks)} checks are good"
        )


def _least(found: set[Status]) -> Status:
    return "UNKNOWN" if found == {"UNKNOWN"} else "OK"


@dataclass
class Subject:
    """What is examined.

    Attributes:
        conn: An autocommit connection that only reads.
        target: Where it leads.
        deep: Also read big tables as a whole.
        storage_dir: Orthanc's filesystem area, as far as it is known and on this machine.
    """

    conn: Connection
    target: db.Target
    deep: bool = False
    storage_dir: Path | None = None

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.conn.cursor() as cur:
            cur.execute(query, arguments or None)
            return cur.fetchall()

    def row(self, query: str, *arguments: object) -> tuple[Any, ...]:
        """The only row of a query."""
        (found,) = self.rows(query, *arguments)
        return found

    @cached_property
    def found(self) -> catalog.Catalog:
        """The catalog of the schema."""
        return catalog.snapshot(self.conn, self.target.schema)

    @cached_property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.conn.info.host or ""
        return host.startswith(("/", "@", "127.")) or host in ("", "localhost", "::1")
