"""Roles, databases, rights and extensions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.schema import catalog, provision
from tests.support.schemas import as_role, drop_role, init, look, rows, run, snapshot


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        (["GRANT USAGE ON SCHEMA orthanc TO {}"], 'GRANT CREATE ON SCHEMA "orthanc" TO {};'),
        (
            ["GRANT ALL ON SCHEMA orthanc TO {}", "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"],
            "GRANT TEMPORARY ON DATABASE {database} TO {};",
        ),
    ],
)
def test_missing_rights_are_named(empty: db.Target, role: str, grants: list[str], missing: str) -> None:
    database = db.parse_dsn(empty.dsn)["dbname"]
    target = db.Target(empty.dsn, schema="orthanc")
    run(target, "CREATE SCHEMA orthanc", *(grant.format(role, database=database) for grant in grants))

    with pytest.raises(RevisionError) as refusal:
        init(as_role(target, role))

    assert missing.format(role, database=database) in (refusal.value.hint or "")
    assert "OWNER TO" not in (refusal.value.hint or "")
    assert snapshot(target) == {}


def test_tables_of_another_role_are_named(fresh: db.Target, role: str) -> None:
    run(fresh, f"GRANT ALL ON SCHEMA public TO {role}", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    run(fresh, "DROP INDEX labelsindex1", "DROP SEQUENCE patientrecyclingordersequence")

    with pytest.raises(RevisionError) as refusal:
        init(as_role(fresh, role))

    assert "OWNER TO" not in (refusal.value.hint or "")
    assert "log in as role " in (refusal.value.hint or "")


def test_the_owner_of_the_database_needs_no_other_right(empty: db.Target, role: str, trigram: str) -> None:
    database = db.parse_dsn(empty.dsn)["dbname"]
    run(empty, f"ALTER DATABASE {database} OWNER TO {role}", f"ALTER SCHEMA public OWNER TO {role}")

    made = init(as_role(empty, role))

    # Before PostgreSQL 13 no extension is trusted: pg_trgm needs a superuser.
    with db.session(empty) as conn:
        expected = "missing" if trigram == "valid" and conn.server_version < 130000 else trigram
    assert (made.created, made.trigram) == (True, expected)
    owner = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    assert rows(empty, owner) == [(role,)]


def test_a_role_that_may_not_create_extensions(empty: db.Target, role: str, trigram: str) -> None:
    target = db.Target(empty.dsn, schema="orthanc")
    run(target, f"CREATE SCHEMA orthanc AUTHORIZATION {role}")

    made = init(as_role(target, role))

    assert made.created is True
    assert made.trigram == ("missing" if trigram == "valid" else trigram)
    assert rows(target, "SELECT value FROM globalproperties WHERE property = 10") == [("1",)]
    assert init(as_role(target, role)).created is False


@pytest.mark.parametrize("may_use", [True, False])
def test_pg_trgm_in_another_schema(target: db.Target, role: str, trigram: str, may_use: bool) -> None:
    if trigram == "unavailable":
        assert init(target).trigram == "unavailable"
        return
    run(target, 'CREATE SCHEMA "Ex t"', 'CREATE EXTENSION pg_trgm SCHEMA "Ex t"')
    name = sql.Identifier(target.schema)
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("GRANT ALL ON SCHEMA {} TO {}").format(name, sql.Identifier(role)))
    if may_use:
        run(target, f'GRANT USAGE ON SCHEMA "Ex t" TO {role}')

    made = init(as_role(target, role))

    assert made.trigram == ("valid" if may_use else "missing")


def test_an_invalid_trigram_index_is_reported(fresh: db.Target, trigram: str) -> None:
    run(
        fresh,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass('{catalog.TRIGRAM_INDEX}')",
    )
    expected = "invalid" if trigram == "valid" else trigram
    assert init(fresh).trigram == expected
    assert look(fresh).trigram == expected


@contextmanager
def provisioned(admin: Connection, server_dsn: str) -> Iterator[tuple[db.Target, str]]:
    """The target of a database that does not exist, and the name of a role that does not; dropped afterwards."""
    role = f'pgorthanc "new" {os.getpid()}'
    database = f"pgorthanc_new_{os.getpid()}"
    try:
        yield db.Target(make_dsn(server_dsn, dbname=database), schema="orthanc"), role
    finally:
        drop_role(admin, role)


def test_a_new_role_with_a_new_database(admin: Connection, server_dsn: str, tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    with provisioned(admin, server_dsn) as (target, role):
        for _ in range(2):
            acting = provision.prepare(target, create_database=True, role=role, password_file=password_file)
        assert init(acting).created is True

        assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
        assert len(password_file.read_text().strip()) >= 32
        with admin.cursor() as cur:
            cur.execute("SELECT * FROM pg_authid WHERE rolname = %s", (role,))
            assert cur.description
            row = dict(zip((column.name for column in cur.description), cur.fetchone() or (), strict=True))
        assert row["rolpassword"].startswith("SCRAM-SHA-256$")
        assert row["rolcanlogin"]
        assert not any(row[right] for right in ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication"))
        owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'orthanc'"
        assert rows(target, owners) == [(role,)]


def test_the_password_of_a_role_that_exists_is_not_invented(
    empty: db.Target, role: str, tmp_path: Path
) -> None:
    with pytest.raises(PgOrthancError, match="is there already"):
        provision.prepare(empty, role=role, password_file=tmp_path / "password")
    assert list(tmp_path.iterdir()) == []


def test_a_new_role_needs_a_password(empty: db.Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="password"):
        provision.prepare(empty, role=f"pgorthanc_none_{os.getpid()}")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty"):
        provision.prepare(empty, role=f"pgorthanc_none_{os.getpid()}", password_file=tmp_path / "empty")


def test_an_existing_database_gets_its_owner(empty: db.Target, role: str) -> None:
    provision.prepare(empty, role=role)
    query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert rows(empty, query) == [(role,)]
