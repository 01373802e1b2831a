"""Errors for users, each class with its exit code."""

from __future__ import annotations

import re
from typing import ClassVar

_SQL = r"(?:ALTER|CREATE|DROP|GRANT|REINDEX|REVOKE|SELECT|ROLLBACK PREPARED) [^;]+;"
_COMMAND = r"pgorthanc (?!.*--help)[a-z](?:'[^']*'|(?!; |, |\. )[^'])*"
_TO_PASTE = re.compile(rf"(?P<advice>.*?:) (?P<paste>{_COMMAND}|{_SQL}(?: {_SQL})*)", re.DOTALL)


class PgOrthancError(Exception):
    """A failure: the message is the fact, the hint the next step.

    Both never contain passwords, and patient data only where the user asked for it.

    Attributes:
        fact: What could not be done.
        server_message: PostgreSQL's own words about it, in any language; empty if there are none.
        message: Both, for logs and programs.
        hint: An instruction. What is to be pasted comes last, after a colon: a command of
            pgorthanc, or SQL statements with their semicolons.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, fact: str, hint: str | None = None, *, server_message: str = "") -> None:
        message = f"{fact}: {server_message}" if server_message else fact
        super().__init__(message)
        self.fact = fact
        self.server_message = server_message
        self.message = message
        self.hint = hint

    def advice(self) -> tuple[str, str]:
        """Return the hint without what is to be pasted, and that, one statement a line."""
        hint = self.hint or ""
        match = _TO_PASTE.fullmatch(hint)
        if not match:
            return hint, ""
        return match["advice"], re.sub(r"(?<=;) (?=[A-Z])", "\n", match["paste"])


class StatementCancelled(PgOrthancError):
    """The server cancelled a statement: it took longer than a limit, or an administrator did."""


class UsageError(PgOrthancError):
    """Wrong usage: contradicting options, a value out of range."""

    exit_code = 2


class ConnectError(PgOrthancError):
    """The server cannot be reached, or refuses the login."""

    exit_code = 3


class PasswordRequired(ConnectError):
    """The server asks for a password and none was given: a command may ask on the terminal."""


class MissingDatabase(ConnectError):
    """The server accepts the login, but has no database of that name."""


class RevisionError(PgOrthancError):
    """No index, an unknown or unsuitable revision, or a damaged schema."""

    exit_code = 4


class InUseError(PgOrthancError):
    """Another session uses the database; the message names it (pid, application, address, since)."""

    exit_code = 5


class PartialFailure(PgOrthancError):
    """Finished, but some items were refused, or a check found problems."""

    exit_code = 6


class Interrupted(PgOrthancError):
    """Ctrl-C or SIGTERM; everything counted is committed, and the same command continues."""

    exit_code = 130
