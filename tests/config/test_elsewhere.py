"""What we print for Orthanc leads to the server that was used, wherever libpq found its name, role and password."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from psycopg2.extensions import make_dsn, parse_dsn

from pgorthanc_cli import cli, db
from pgorthanc_cli.config import conninfo
from tests.support.sqliteindex import rich

SECRET = "x7-Lq0-secret-Wz"
HOME = ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGSERVICE", "PGSERVICEFILE", "PGPASSFILE",
        "PGSSLMODE", "PGTARGETSESSIONATTRS", "PGHOSTADDR", "PGORTHANC_CONFIG", "PGORTHANC_URI")  # fmt: skip


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in HOME:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))


def printed(*words: str) -> dict[str, str]:
    """The parameters in the URI that `config uri` prints, as libpq reads it."""
    result = CliRunner().invoke(cli.main, ["config", "uri", "--show-password", *words])
    assert result.exit_code == 0, result.stderr
    return dict(parse_dsn(result.stdout.strip()))


def test_variables_of_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", "9"),
        ("PGUSER", "pacs"),
        ("PGSSLMODE", "require"),
    ):
        monkeypatch.setenv(name, value)
    expected = {"host": "127.0.0.1", "port": "9", "user": "pacs", "dbname": "orthanc", "sslmode": "require"}
    assert printed("--dbname", "orthanc") == expected


def test_hosts_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://u@a.invalid:1,b.invalid:2/d?target_session_attrs=read-write"
    expected = {
        "host": "a.invalid,b.invalid", "port": "1,2", "user": "u", "dbname": "d",
        "target_session_attrs": "read-write",
    }  # fmt: skip
    assert printed("--uri", uri) == expected
    monkeypatch.setenv("PGHOST", "c.invalid")
    assert printed("--dbname", "d", "--username", "u") == {
        "host": "c.invalid", "port": "5432", "user": "u", "dbname": "d",
    }  # fmt: skip


def test_a_service_file_and_a_password_file(tmp_path: Path) -> None:
    (tmp_path / "services").write_text(
        "[pacs]\nhost=db-1.invalid,db-2.invalid\nport=5001,5002\nuser=pacs\ndbname=archive\n"
        "target_session_attrs=read-write\n"
    )
    (tmp_path / "pgpass").write_text(f"db-1.invalid:5001:archive:pacs:{SECRET}\n")
    (tmp_path / "pgpass").chmod(0o600)
    expected = {
        "host": "db-1.invalid,db-2.invalid", "port": "5001,5002", "user": "pacs", "dbname": "archive",
        "password": SECRET, "target_session_attrs": "read-write",
    }  # fmt: skip
    assert printed("--uri", "service=pacs") == expected
    masked = CliRunner().invoke(cli.main, ["config", "uri", "--uri", "service=pacs"])
    assert SECRET not in masked.output


def test_a_service_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "services").write_text("[pacs]\nhost=h\n")
    result = CliRunner().invoke(cli.main, ["config", "uri", "--uri", "service=nosuch"])
    assert (result.exit_code, "nosuch" in result.stderr) == (3, True)


def test_the_role_and_the_database_that_libpq_takes_by_default() -> None:
    found = printed("--host", "db.invalid")
    assert found["user"] == found["dbname"] != ""


def test_the_fields_of_a_connection_that_libpq_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGUSER", "pacs")
    result = CliRunner().invoke(cli.main, ["config", "uri", "--fields", "--dbname", "d"])
    section = json.loads(result.stdout)["PostgreSQL"]
    assert (section["Host"], section["Username"], section["Database"]) == ("127.0.0.1", "pacs", "d")


FIELDS = {"host": "h", "port": "5433", "user": "u", "dbname": "d", "password": SECRET}


@pytest.mark.parametrize(
    ("change", "encrypted", "expected"),
    [
        ({}, False, {"Host": "h", "Port": 5433, "Username": "u", "Database": "d", "EnableSsl": False}),
        ({"sslmode": "prefer"}, True, {"Host": "h", "Port": 5433, "Username": "u", "Database": "d", "EnableSsl": True}),
        ({"sslmode": "verify-full"}, True, "postgresql://u:***@h:5433/d?sslmode=verify-full"),
        ({"host": "h,i", "port": "1,2"}, False, "postgresql://u:***@/d?host=h%2Ci&port=1%2C2"),
        ({"target_session_attrs": "read-write"}, False, "postgresql://u:***@h:5433/d?target_session_attrs=read-write"),
        ({"host": "/run/pg"}, False, "postgresql://u:***@/d?host=%2Frun%2Fpg&port=5433"),
        ({"hostaddr": "10.0.0.1"}, False, "postgresql://u:***@h:5433/d?hostaddr=10.0.0.1"),
        ({"user": "a b"}, False, "postgresql://a%20b:***@h:5433/d"),
    ],
)  # fmt: skip
def test_fields_only_where_they_carry_everything(
    change: dict[str, str], encrypted: bool, expected: dict[str, Any] | str
) -> None:
    found = conninfo.plugin_options({**FIELDS, **change}, encrypted=encrypted)
    wanted = {"ConnectionUri": expected} if isinstance(expected, str) else {**expected, "Password": db.MASK}
    assert found == wanted
    assert SECRET not in repr(found)


def _section(steps: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.JSONDecoder().raw_decode(steps[0], steps[0].index("{"))[0]["PostgreSQL"]
    return found


def _leads_to(section: dict[str, Any], server_dsn: str, database: str) -> None:
    """The section, with the real password, is a login to that database on that server."""
    password = parse_dsn(server_dsn).get("password", "")
    dsn = section.get("ConnectionUri") or conninfo.joined({**section, "Password": password})
    given = {k: v for k, v in parse_dsn(dsn).items() if k != "password"}
    assert given["user"]
    with db.session(db.Target(make_dsn(**given, password=password or None))) as conn:
        assert db.value(conn, "SELECT current_database()") == database
        assert db.value(conn, "SELECT count(*) FROM resources") > 0


@pytest.mark.parametrize("how", ["variables", "service", "hosts"])
def test_migrate_sqlite_prints_the_server_that_it_filled(
    empty: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    index = rich(tmp_path / "index")
    place = db.effective_parameters(empty)
    database = place["dbname"]
    words = ["--dbname", database]
    if how == "variables":
        names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password"}
        for variable, name in names.items():
            if place.get(name):
                monkeypatch.setenv(variable, place[name])
    elif how == "service":
        kept = ("host", "port", "user", "password", "dbname")
        lines = "".join(f"{name}={place[name]}\n" for name in kept if place.get(name))
        (tmp_path / "services").write_text(f"[pacs]\n{lines}")
        words = ["--uri", "service=pacs"]
    else:
        given = {k: place[k] for k in ("user", "password", "dbname") if place.get(k)}
        hosts, ports = f"127.0.0.1,{place['host']}", f"1,{place['port']}"
        words = ["--uri", make_dsn(**given, host=hosts, port=ports, target_session_attrs="read-write")]
    result = CliRunner().invoke(cli.main, ["migrate-sqlite", str(index), *words, "--json", "-q"])
    assert result.exit_code == 0, result.stderr
    section = _section(json.loads(result.stdout)["steps"])
    if how == "hosts":
        assert parse_dsn(section["ConnectionUri"])["target_session_attrs"] == "read-write"
    for name in HOME:
        monkeypatch.delenv(name, raising=False)
    _leads_to(section, empty.dsn, database)
