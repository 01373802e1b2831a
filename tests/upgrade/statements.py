"""Scripts as single statements, and sessions that end at one of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2.extensions
import pytest

from pgorthanc_cli.db import safe_session

# What a semicolon does not end: comments, strings, quoted names, bodies. The scripts quote with $$ only.
_TOKEN = re.compile(r"--[^\n]*|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$\$.*?\$\$|;|[^-'\"$;]+|.", re.DOTALL)
KILL = "SELECT pg_terminate_backend(pg_backend_pid());"


def split(script: str) -> list[str]:
    """The statements of a script."""
    statements, current = [], ""
    for token in _TOKEN.findall(script):
        current += token
        if token == ";":
            statements.append(current)
            current = ""
    return statements


class Killer:
    """Ends the session that executes the k-th statement, before it is executed."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = itertools.count(1)
        self.fired = False

    def before(self, cursor: psycopg2.extensions.cursor) -> None:
        if next(self.count) == self.at:
            self.fired = True
            psycopg2.extensions.cursor.execute(cursor, KILL)


@contextmanager
def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[Killer]:
    """All sessions of the library count their statements together, and one of them ends at the given one."""
    killer = Killer(at)
    execute = safe_session.Cursor.execute

    def counted(self: safe_session.Cursor, query: Any, vars: Any = None) -> None:  # noqa: A002
        killer.before(self)
        execute(self, query, vars)

    with monkeypatch.context() as patch:
        patch.setattr(safe_session.Cursor, "execute", counted)
        yield killer
