"""Calls of `upgrade` and `downgrade`, and what they must leave behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from click.testing import CliRunner, Result
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db, upgrade
from pgorthanc_cli.schema import catalog
from tests.support import indexstate
from tests.support.schemas import snapshot

Filled = Callable[[int], db.Target]


def change(target: db.Target, to: int, **options: Any) -> upgrade.Changed:
    """Go there, up or down, and return what has become of the index."""
    here = catalog.layout(snapshot(target), target.schema)
    assert here
    return (
        run_downgrade(target, to, **options) if to < here.revision else run_upgrade(target, to=to, **options)
    )


def run_upgrade(target: db.Target, **options: Any) -> upgrade.Changed:
    to = options.pop("to", None)
    return upgrade.upgrade(target, to=to, settings=upgrade.Settings(**options))


def run_downgrade(target: db.Target, to: int, **options: Any) -> upgrade.Changed:
    return upgrade.downgrade(target, to=to, settings=upgrade.Settings(**options))


def state(target: db.Target) -> indexstate.State:
    with db.session(target) as conn:
        return indexstate.state(conn)


def require_revision(target: db.Target, number: int) -> None:
    """The catalog is that of the revision, the data agree with each other, and nothing of ours is left."""
    found = snapshot(target)
    assert (
        catalog.differences(found, catalog.expected(number, with_storage="table storagearea" in found)) == []
    )
    assert [name for name in found if " pgorthanc_" in name and "pgorthanc_kept_" not in name] == []
    with db.session(target) as conn:
        assert indexstate.problems(conn) == []


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


@contextmanager
def connected(target: db.Target, application: str = "Orthanc") -> Iterator[Connection]:
    """Another session on the database, idle outside of a transaction."""
    conn = psycopg2.connect(make_dsn(target.dsn, application_name=application))
    conn.autocommit = True
    try:
        yield conn
    finally:
        conn.close()


def until(condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    """Ask again and again until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
