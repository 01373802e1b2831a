"""What a check gets, what it returns, and how it is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.text import plural

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

Status = Literal["OK", "WARNING", "CRITICAL", "UNKNOWN"]
_WORST_FIRST: tuple[Status, ...] = ("CRITICAL", "WARNING")


@dataclass
class Subject:
    """The database under examination.

    Attributes:
        conn: An autocommit connection that only reads.
        target: The database it leads to.
        deep: Whether checks may read big tables as a whole.
        storage_dir: Orthanc's StorageDirectory, if it is on this machine.
        scrub_journal: The journal of `verify storage`, if it was named.
        storage_words: What names the storage area to `verify storage`, besides the options of
            the connection; None if that is unknown.
        sample_rows: How many rows about stored files are read if not `deep`. What a restore or
            a foreign plugin does wrong, it does to all rows: the first ones show it.
        scan_limit_s: The longest that a scan of a big table may take if not `deep`.
    """

    conn: Connection
    target: db.Target
    deep: bool = False
    storage_dir: Path | None = None
    scrub_journal: Path | None = None
    storage_words: tuple[str, ...] | None = None
    sample_rows: int = 100_000
    scan_limit_s: float = 1.0

    @cached_property
    def catalog(self) -> catalog.Catalog:
        """The catalog of the schema."""
        return catalog.snapshot(self.conn, self.target.schema)

    @property
    def role(self) -> str:
        """The role of the session, quoted for SQL."""
        return db.quote_ident(self.conn.info.user)

    @property
    def schema(self) -> str:
        """The schema of the index, quoted for SQL."""
        return db.quote_ident(self.target.schema)

    @cached_property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.conn.info.host or ""
        return host.startswith(("/", "@", "127.")) or host in ("", "localhost", "::1")


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Attributes:
        status: UNKNOWN if it could not be seen; `hint` then names the missing privilege.
        message: The finding, in one line.
        hint: The consequence and the fix, in sentences.
        statements: SQL that fixes it, or grants the missing privilege.
        command: The command of this program that fixes it or shows more, without
            connection options, such as `verify schema --print-sql`.
        figures: Measurements for a monitoring system; the unit is in the name.
    """

    status: Status
    message: str
    hint: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    statements: str = ""
    command: str = ""


@dataclass(frozen=True)
class RegisteredCheck:
    """A check and the conditions under which it runs."""

    run: Callable[[Subject], Verdict]
    needs_index: bool


# By name, in the order of the report. Modules register their checks when they are imported.
CHECKS: dict[str, RegisteredCheck] = {}


_CheckFunction = TypeVar("_CheckFunction", bound=Callable[[Subject], Verdict])


def check(name: str, *, needs_index: bool = False) -> Callable[[_CheckFunction], _CheckFunction]:
    """Register a function as the check `name`, after those that were registered before.

    Args:
        name: The name on the command line and in the report.
        needs_index: Skip the check in a schema without an Orthanc index.
    """

    def register(function: _CheckFunction) -> _CheckFunction:
        CHECKS[name] = RegisteredCheck(function, needs_index)
        return function

    return register


@dataclass(frozen=True)
class Check:
    """A verdict under its name; without hint, statements and command if it is OK."""

    name: str
    status: Status
    message: str
    hint: str | None
    statements: str = ""
    command: str = ""

    @classmethod
    def of(cls, name: str, verdict: Verdict) -> Check:
        """Return the verdict of the check `name`."""
        status, message = verdict.status, verdict.message
        if status == "OK":
            return cls(name, status, message, None)
        return cls(name, status, message, verdict.hint, verdict.statements, verdict.command)


@dataclass(frozen=True)
class Health:
    """The result of an examination.

    Attributes:
        server: The server and the database, without any password.
        checks: The checks that were run.
        figures: Measurements; for programs only.
        status: The worst of the checks; UNKNOWN only if all of them are.
        endpoint: The database, server and role of the session; None: there was none.
        checked_at: When the checks began, UTC.
    """

    server: str
    checks: tuple[Check, ...]
    figures: Mapping[str, float]
    status: Status
    endpoint: db.Endpoint | None
    checked_at: datetime

    @classmethod
    def of(
        cls,
        server: str,
        verdicts: Mapping[str, Verdict],
        endpoint: db.Endpoint | None,
        checked_at: datetime,
    ) -> Health:
        """Sum up verdicts, given by the names of their checks."""
        checks = [Check.of(name, verdict) for name, verdict in verdicts.items()]
        figures: dict[str, float] = {}
        for verdict in verdicts.values():
            figures |= verdict.figures
        statuses = {check.status for check in checks}
        least: Status = "UNKNOWN" if statuses == {"UNKNOWN"} else "OK"
        worst = next((status for status in _WORST_FIRST if status in statuses), least)
        return cls(server, tuple(checks), figures, worst, endpoint, checked_at)

    @property
    def summary(self) -> str:
        """The problems in one line, the worst first."""
        bad = [check for status in _WORST_FIRST for check in self.checks if check.status == status]
        problems = "; ".join(f"{check.name}: {check.message}" for check in bad)
        return problems or f"{plural(self.count('OK'), 'check')} passed"

    def count(self, status: Status) -> int:
        """Return how many checks have this status."""
        return sum(check.status == status for check in self.checks)
