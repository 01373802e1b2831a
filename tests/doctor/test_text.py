"""`doctor collation` and `doctor encoding`, in databases whose state is real."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, doctor
from tests.support.schemas import init, libc, rows, run

_numbers = itertools.count()
NEWS = 150000  # PostgreSQL records the version of a database's collation


def check(target: db.Target, name: str, *, deep: bool = False) -> doctor.Check:
    (one,) = doctor.examine(target, [name], deep=deep).checks
    return one


@pytest.fixture
def created(admin: Connection, server_dsn: str) -> Iterator[Callable[[str], db.Target]]:
    """Creates databases with an index, as options of CREATE DATABASE say."""
    names: list[str] = []

    def create(options: str) -> db.Target:
        name = f"pgorthanc_text_{os.getpid()}_{next(_numbers)}"
        if "LOCALE_PROVIDER" not in options:
            options += libc(admin)
        with admin.cursor() as cur:
            cur.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        names.append(name)
        target = db.Target(make_dsn(server_dsn, dbname=name))
        init(target)
        return target

    yield create
    with admin.cursor() as cur:
        for name in names:
            cur.execute(f"DROP DATABASE {name}")


@pytest.fixture
def icu(admin: Connection) -> str:
    """Options of a database in German by ICU, whose collations have versions."""
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'")
        found = cur.fetchone()
    if admin.server_version < NEWS or found == (0,):
        pytest.skip("the server is older than PostgreSQL 15, or was built without ICU")
    return "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'UTF8'"


def name_of(target: db.Target) -> str:
    return db.parse_dsn(target.dsn)["dbname"]


def execute_each(target: db.Target, fixes: str) -> None:
    """Run the statements of a check in their order."""
    statements = fixes.splitlines()
    assert len(statements) == 2
    run(target, *statements)


def test_a_new_database(created: Callable[[str], db.Target]) -> None:
    target = created("LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'UTF8'")
    assert [check(target, name).status for name in ("encoding", "collation")] == ["OK", "OK"]
    assert check(target, "collation", deep=True).status == "OK"


def test_a_collation_of_another_version(created: Callable[[str], db.Target], icu: str) -> None:
    """As after an upgrade of the operating system, or a move to another one."""
    target = created(icu)
    assert check(target, "collation").status == "OK"
    run(target, f"UPDATE pg_database SET datcollversion = '1.0' WHERE datname = '{name_of(target)}'")
    said = check(target, "collation")
    assert said.status == "WARNING"
    assert "the database: recorded version 1.0, now " in said.message
    hint = said.statements
    assert hint.index("REINDEX") < hint.index("REFRESH")
    before = rows(target, "SELECT pg_relation_filenode('uniquepublicid'::regclass)")
    execute_each(target, hint)
    assert check(target, "collation").status == "OK"
    assert rows(target, "SELECT pg_relation_filenode('uniquepublicid'::regclass)") != before


def test_a_recorded_version_where_there_is_none_now(
    created: Callable[[str], db.Target], admin: Connection
) -> None:
    """Such as a C library without versions, where there was one with them."""
    target = created("LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'UTF8'")
    if admin.server_version < NEWS:
        assert "never changes" in check(target, "collation").message
        return
    run(target, f"UPDATE pg_database SET datcollversion = '2.28' WHERE datname = '{name_of(target)}'")
    assert "recorded version 2.28, now none" in check(target, "collation").message


def test_a_collation_that_an_index_names(created: Callable[[str], db.Target], icu: str) -> None:
    target = created("LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'UTF8'")
    run(
        target,
        "CREATE COLLATION old (provider = icu, locale = 'sv')",
        'CREATE INDEX mine ON resources (publicid COLLATE "old")',
    )
    assert check(target, "collation").status == "OK"
    run(target, "UPDATE pg_collation SET collversion = '1' WHERE collname = 'old'")
    said = check(target, "collation")
    assert said.status == "WARNING"
    assert "collation public.old: recorded version 1, now " in said.message
    execute_each(target, said.statements)
    assert check(target, "collation").status == "OK"


def test_indexes_that_are_out_of_order(created: Callable[[str], db.Target], icu: str) -> None:
    """The order of German becomes that of Swedish, in which ä comes after z."""
    target = created(icu)
    run(target, "INSERT INTO resources (resourcetype, publicid) VALUES (0, 'a'), (0, 'ä'), (0, 'z')")
    assert check(target, "collation", deep=True).status == "OK"
    column = (
        "datlocale"
        if rows(target, "SELECT FROM pg_attribute WHERE attname = 'datlocale'")
        else "daticulocale"
    )
    run(target, f"UPDATE pg_database SET {column} = 'sv-SE' WHERE datname = '{name_of(target)}'")
    said = check(target, "collation", deep=True)
    assert said.status == "CRITICAL"
    assert "the index on resources.publicid" in said.message
    run(target, said.statements)
    assert "out of order" not in check(target, "collation", deep=True).message
    assert rows(target, "SELECT count(*) FROM resources WHERE publicid = 'ä'") == [(1,)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'LATIN1'",
            "LATIN1: Orthanc sends UTF-8, which the server takes for LATIN1",
        ),
        (
            "LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'EUC_JP'",
            "EUC_JP: Orthanc sends UTF-8, and the server refuses",
        ),
        (
            "LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'SQL_ASCII'",
            "SQL_ASCII: the server checks and converts nothing",
        ),
    ],
)
def test_an_encoding_other_than_utf8(created: Callable[[str], db.Target], options: str, said: str) -> None:
    one = check(created(options), "encoding")
    assert one.status == "WARNING"
    assert said in one.message
    assert "init --create-database" in (one.hint or "")


@pytest.mark.parametrize("of", ["database", "role"])
def test_a_client_encoding_that_garbles_text(fresh: db.Target, admin: Connection, role: str, of: str) -> None:
    name = name_of(fresh) if of == "database" else role
    run(fresh, f"ALTER {of.upper()} {name} SET client_encoding = 'LATIN1'")
    said = check(fresh, "encoding")
    assert said.status == "WARNING"
    assert f"LATIN1 for {role if of == 'role' else 'all roles'}" in said.message
    run(fresh, said.statements)
    assert check(fresh, "encoding").status == "OK"
    with psycopg2.connect(fresh.dsn) as conn:
        assert conn.encoding == "UTF8"
    conn.close()
