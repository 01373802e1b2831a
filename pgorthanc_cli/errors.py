"""Errors for users, each class with its exit code."""

from __future__ import annotations

from typing import ClassVar


class PgOrthancError(Exception):
    """A failure: the message is the fact, the hint the next step.

    Both never contain passwords, and patient data only where the user asked for it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PgOrthancError):
    """Wrong usage: contradicting options, a value out of range."""

    exit_code = 2


class ConnectError(PgOrthancError):
    """The server cannot be reached, or refuses the login."""

    exit_code = 3


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
