"""Walks from one revision to another by the scripts alone, and looks at what has become of the index."""

from __future__ import annotations

import psycopg2
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog, steps
from tests.support import fillindex, indexstate
from tests.support.schemas import REVISIONS


def walk(conn: Connection, start: int, end: int) -> None:
    """Run the scripts, each in a transaction of its own."""
    for step in steps.path(start, end):
        with conn, conn.cursor() as cur:
            cur.execute(steps.text(step.script))


def require_revision(conn: Connection, number: int, schema: str = "public") -> None:
    """The catalog is that of the revision, and the data agree with each other."""
    found = catalog.snapshot(conn, schema)
    assert (
        catalog.differences(found, catalog.expected(number, with_storage="table storagearea" in found)) == []
    )
    assert indexstate.problems(conn) == []


def kept(conn: Connection) -> list[str]:
    """The tables that a downgrade has left for the next upgrade."""
    with conn, conn.cursor() as cur:
        cur.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND starts_with(relname, 'pgorthanc_kept_')"
        )
        return sorted(name for (name,) in cur.fetchall())


def at(fresh: db.Target, number: int, *, filled: bool = True) -> db.Target:
    """Bring an empty index to a revision, and put every kind of row into it."""
    with db.session(fresh) as conn:
        walk(conn, REVISIONS[-1], number)
        if filled:
            fillindex.fill(conn)
    return fresh


def step(target: db.Target, script: str) -> None:
    """One script as an administrator runs it; what the server says is left as it is."""
    conn = psycopg2.connect(target.dsn)
    try:
        with conn, conn.cursor() as cur:
            cur.execute(steps.text(script))
    finally:
        conn.close()
