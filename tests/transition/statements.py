"""Scripts as single statements, and sessions that end at one of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db

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


class KilledCursor(psycopg2.extensions.cursor):
    """A cursor whose statements are counted by the killer at work."""

    killer: Killer | None = None

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002
        if KilledCursor.killer:
            KilledCursor.killer.before(self)
        super().execute(query, vars)


@contextmanager
def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[Killer]:
    """All sessions of the library count their statements together, and one of them ends at the given one."""
    connect = db.connect

    def watched(target: db.Target, *, autocommit: bool = False, readonly: bool = False) -> Connection:
        conn = connect(target, autocommit=autocommit, readonly=readonly)
        conn.cursor_factory = KilledCursor
        return conn

    KilledCursor.killer = Killer(at)
    monkeypatch.setattr(db, "connect", watched)
    try:
        yield KilledCursor.killer
    finally:
        KilledCursor.killer = None
        monkeypatch.setattr(db, "connect", connect)
