"""The versioned scripts: what every way between two revisions makes of the catalog and of the data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import catalog, initialize
from tests.support import fillindex, indexstate
from tests.support.schemas import CURRENT, ODD_SCHEMA, REVISIONS, drop_database
from tests.support.stepwalk import kept, require_revision, walk

PAIRS = list(itertools.permutations(REVISIONS, 2))

Filled = Callable[[int], db.Target]


@pytest.fixture(scope="module")
def archives(admin: Connection, server_dsn: str, template: str) -> Iterator[Callable[[int], str]]:
    """Makes template databases with a filled index of a revision."""
    made: dict[int, str] = {}

    def archive(number: int) -> str:
        if number not in made:
            name = f"pgorthanc_revision_{number}_{os.getpid()}"
            with admin.cursor() as cur:
                cur.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template)))
                )
            made[number] = name
            with db.session(db.Target(make_dsn(server_dsn, dbname=name))) as conn:
                walk(conn, catalog.newest(), number)
                fillindex.fill(conn)
        return made[number]

    yield archive
    for name in made.values():
        drop_database(admin, name)


@pytest.fixture
def filled(archives: Callable[[int], str], new_database: Callable[[str], db.Target]) -> Filled:
    """A new database with a filled index of a revision."""
    return lambda number: new_database(archives(number))


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_there_and_back_nothing_is_lost(filled: Filled, here: int, there: int) -> None:
    with db.session(filled(here)) as conn:
        before = indexstate.state(conn)
        require_revision(conn, here)

        walk(conn, here, there)
        require_revision(conn, there)
        assert indexstate.differing(before, indexstate.state(conn)) == []

        walk(conn, there, here)
        require_revision(conn, here)
        after = indexstate.state(conn)
        assert indexstate.differing(before, after) == []
        assert before.keys() == after.keys()
        assert kept(conn) == []


@pytest.mark.parametrize(("here", "there"), [pair for pair in PAIRS if pair[0] > pair[1]])
def test_work_at_a_lower_revision_is_kept(filled: Filled, here: int, there: int) -> None:
    with db.session(filled(here)) as conn:
        before = indexstate.state(conn)
        walk(conn, here, there)

        fillindex.work(conn)
        worked = indexstate.state(conn)
        require_revision(conn, there)
        walk(conn, there, here)

        require_revision(conn, here)
        after = indexstate.state(conn)
        assert indexstate.differing(worked, after) == []
        for part in ("audit logs", "key-value stores", "queues", "reservations"):
            assert after.get(part) == before.get(part)
        there_still = {row[:3] for row in worked["attachments"]}
        same_file = {row[0:2] for row in before["attachments"] if row[:3] in there_still}
        wanted = [row for row in before.get("custom data", []) if row[2] and row[:2] in same_file]
        assert [row for row in after.get("custom data", []) if row[2]] == wanted
        if "places" in after and "places" not in worked:
            moved = ["p8", "p10", "later"]
            gone = {"p1", "p2", "p9", *moved}
            assert after["places"] == [patient for patient in before["places"] if patient not in gone] + moved
            protected = [(patient, "true") for patient in worked["protected"]]
            assert after["raw protection"] == sorted([*protected, ("p5", "false")])
        assert kept(conn) == []


def test_nothing_is_kept_of_an_empty_index(fresh: db.Target) -> None:
    with db.session(fresh) as conn:
        walk(conn, CURRENT, 1)
        assert kept(conn) == []
        walk(conn, 1, CURRENT)
        require_revision(conn, CURRENT)
        assert kept(conn) == []


def bodies(conn: Connection) -> dict[str, str]:
    """The functions of the index."""
    with conn, conn.cursor() as cur:
        cur.execute(
            """SELECT p.oid::regprocedure::text, prosrc FROM pg_proc p JOIN pg_language l ON l.oid = prolang
               WHERE pronamespace = quote_ident(current_schema())::regnamespace AND lanname = 'plpgsql'"""
        )
        return dict(cur.fetchall())


def test_a_function_of_a_revision_is_the_same_whichever_way_led_there(fresh: db.Target) -> None:
    made = {}
    with db.session(fresh) as conn:
        made[CURRENT] = bodies(conn)
        for start, end in itertools.pairwise(reversed(REVISIONS)):
            walk(conn, start, end)
            made[end] = bodies(conn)
        for start, end in itertools.pairwise(REVISIONS):
            walk(conn, start, end)
            assert bodies(conn) == made[end]


def test_another_schema_and_another_index_beside_it(filled: Filled) -> None:
    """No script touches an index further down the search_path (or depends on one)."""
    with db.session(filled(CURRENT)) as conn:
        with conn, conn.cursor() as cur:
            cur.execute(sql.SQL("ALTER SCHEMA public RENAME TO {}").format(sql.Identifier(ODD_SCHEMA)))
            cur.execute("CREATE SCHEMA public")
        path = sql.SQL("SET search_path TO {}, public").format(sql.Identifier(ODD_SCHEMA))
        for number in REVISIONS:
            initialize.init(
                conn, schema="public", require_idle=locks.require_idle, revision=number, with_storage=False
            )
            beside = catalog.snapshot(conn, "public")
            with conn, conn.cursor() as cur:
                cur.execute(path)
            before = indexstate.state(conn)
            for start, end in ((CURRENT, number), (number, 1), (1, CURRENT)):
                walk(conn, start, end)
                with conn, conn.cursor() as cur:
                    cur.execute("SHOW search_path")
                    assert cur.fetchone() == (f'"{ODD_SCHEMA.replace(chr(34), chr(34) * 2)}", public',)
                require_revision(conn, end, ODD_SCHEMA)
                with conn, conn.cursor() as cur:
                    cur.execute(path)
            assert indexstate.differing(before, indexstate.state(conn)) == []
            assert catalog.snapshot(conn, "public") == beside
            with conn, conn.cursor() as cur:
                cur.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def test_without_trigrams(filled: Filled) -> None:
    with db.session(filled(CURRENT)) as conn:
        with conn, conn.cursor() as cur:
            cur.execute("DROP EXTENSION IF EXISTS pg_trgm CASCADE")
        for start, end in itertools.pairwise((CURRENT, 1, CURRENT)):
            walk(conn, start, end)
            require_revision(conn, end)
