"""Every error that a user may meet, each with the exit code that the command line gives it."""

from __future__ import annotations

from typing import ClassVar


class PgOrthancError(Exception):
    """Something failed, and the message says what; `hint` says what to do next.

    Messages and hints never contain passwords, and patient data only where the user asked for it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PgOrthancError):
    """The request itself is wrong: options that contradict each other, a value out of range."""

    exit_code = 2


class ConnectError(PgOrthancError):
    """The server cannot be reached, or it refuses the login."""

    exit_code = 3


class RevisionError(PgOrthancError):
    """No index, an unknown or unsuitable revision, or a damaged schema."""

    exit_code = 4


class InUseError(PgOrthancError):
    """Somebody works on the database: the message says who (pid, application, address, since)."""

    exit_code = 5


class PartialFailure(PgOrthancError):
    """Finished, but some items were refused, or a check found problems."""

    exit_code = 6


class Interrupted(PgOrthancError):
    """Ctrl-C or SIGTERM; everything counted is committed, and running again goes on."""

    exit_code = 130
