"""Dry runs say that they are; commands that read create no server; what fails leaves nothing behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.server import embedded
from tests.support.schemas import CURRENT, drop_role, init
from tests.support.sqliteindex import rich

DRY = "Dry run, nothing was changed"


def call(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.main, list(map(str, words)))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("doctor",), ("check-lock",), ("check-auth",), ("verify", "schema"), ("wait", "--timeout", "5"),
        ("upgrade", "--plan"), ("upgrade",), ("downgrade", "--to", "6", "--plan"), ("init", "--dry-run"),
        ("import", "--storage-dir", "STORAGE", "STORAGE"), ("support-bundle", "STORAGE/bundle.tar.gz"),
        ("replication", "plan"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_typo_after_embedded_creates_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    typo = tmp_path / "above" / "typo"
    code, _, said = call(*(word.replace("STORAGE", str(storage)) for word in words), "--embedded", typo)
    assert code == 1
    assert f"{typo} does not contain a pgorthanc server" in said
    assert list(tmp_path.iterdir()) == [storage]
    assert list(storage.iterdir()) == []


def test_a_check_of_sqlite_needs_no_server(tmp_path: Path) -> None:
    index = rich(tmp_path / "index")
    code, printed, _ = call("migrate-sqlite", index, "--check", "--embedded", tmp_path / "typo")
    assert (code, printed.startswith(DRY)) == (0, True)
    assert not (tmp_path / "typo").exists()
    code, printed, _ = call("migrate-sqlite", index, "--check", "--json", "-q")
    assert json.loads(printed)["dry_run"] is True


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, said = call("server", "start", "--dir", tmp_path / "a" / "b", "--port", port)
    assert (code, "choose a free one with --port" in said) == (1, True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(PgOrthancError):
        embedded.start(tmp_path / "empty", listen="192.0.2.1", port=1)
    with pytest.raises(UsageError):
        embedded.start(tmp_path / "empty", password="a\nb")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_start_that_fails_leaves_a_server_alone(tmp_path: Path) -> None:
    with embedded.attach(tmp_path / "server"):
        pass
    with pytest.raises(PgOrthancError):
        embedded.start(tmp_path / "server", listen="192.0.2.1", port=1)
    assert embedded.status(tmp_path / "server").state == "stopped"


def test_init(empty: db.Target) -> None:
    words = ("init", "--uri", empty.dsn, "--dry-run")
    assert call(*words)[1].startswith("Dry run, nothing was changed: this would create")
    found = json.loads(call(*words, "--json")[1])
    assert (found["dry_run"], found["created"]) == (True, True)
    code, _, _ = call("status", "--uri", empty.dsn)
    assert code == 4
    real = json.loads(call("init", "--uri", empty.dsn, "--json")[1])
    assert real["dry_run"] is False
    assert call("init", "--uri", empty.dsn)[1].startswith("Nothing to do: ")


def test_plans(empty: db.Target) -> None:
    init(empty, revision=6)
    for words in (("upgrade", "--plan"), ("downgrade", "--to", "1", "--plan")):
        assert "Nothing was changed." in call(*words, "--uri", empty.dsn)[1]
        assert json.loads(call(*words, "--uri", empty.dsn, "--json")[1])["dry_run"] is True


def test_config_set(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text('{"PostgreSQL": {"Port": 1}}')
    words = ("config", "set", "Port", "2", "--config", path)
    assert call(*words, "--dry-run")[1].startswith(DRY)
    assert json.loads(call(*words, "--dry-run", "--json")[1])["dry_run"] is True
    assert path.read_text() == '{"PostgreSQL": {"Port": 1}}'
    assert DRY not in call(*words)[1]


@pytest.mark.parametrize("uri", [False, True])
def test_the_role_gets_the_password_of_the_configuration(
    empty: db.Target, tmp_path: Path, admin: object, uri: bool
) -> None:
    role, password = f"{db.parse_dsn(empty.dsn)['dbname']}_role", "p@ss w/rd of the configuration"
    dsn = db.effective_parameters(empty)
    section = {"Host": dsn["host"], "Port": int(dsn["port"]), "Database": dsn["dbname"], "Username": role}
    given: dict[str, object] = {**section, "Password": password}
    if uri:
        given = {
            "ConnectionUri": make_dsn(host=dsn["host"], dbname=dsn["dbname"], user=role, password=password)
        }
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps({"PostgreSQL": given}))
    path.chmod(0o600)
    words: list[str | Path] = [
        "init",
        "--config",
        path,
        "--username",
        dsn["user"],
        "--create-database",
        "--create-role",
        role,
    ]
    words += ["--host", dsn["host"], "--port", dsn["port"], "--dbname", dsn["dbname"]]
    if "password" in dsn:
        (tmp_path / "admin").write_text(dsn["password"])
        (tmp_path / "admin").chmod(0o600)
        words += ["--password-file", tmp_path / "admin"]
    try:
        (tmp_path / "other").write_text("another password\n")
        code, _, said = call(*words, "--role-password-file", tmp_path / "other")
        assert (code, "another password than the configuration" in said) == (2, True), said
        code, _, said = call(*words, "--role-password-file", tmp_path / "new")
        assert code == 0, said
        assert (tmp_path / "new").read_text() == password + "\n"
        with db.session(db.Target(empty.dsn)) as conn:
            verifier = db.value(conn, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", role)
        assert _verifies(password, verifier)
    finally:
        with db.session(db.Target(empty.dsn), autocommit=True) as conn:
            conn.cursor().execute(f'REASSIGN OWNED BY "{role}" TO CURRENT_USER; DROP OWNED BY "{role}"')
        drop_role(admin, role)  # type: ignore[arg-type]


def _verifies(password: str, verifier: str) -> bool:
    """Whether a SCRAM verifier belongs to a password (RFC 5803)."""
    import hashlib
    import hmac
    from base64 import b64decode

    _, rest, keys = verifier.split("$")
    rounds, salt = rest.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b64decode(salt), int(rounds))
    client = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(client).digest() == b64decode(keys.split(":")[0])


def test_a_configuration_of_another_role(empty: db.Target, tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps({"PostgreSQL": {"Username": "pacs", "Password": "secret of pacs"}}))
    path.chmod(0o600)
    dsn = db.effective_parameters(empty)
    words = [
        "--host",
        dsn["host"],
        "--port",
        dsn["port"],
        "--dbname",
        dsn["dbname"],
        "--username",
        dsn["user"],
    ]
    code, _, said = call("init", "--config", path, *words, "--create-role", "other_role")
    assert code == 2, said  # no file for its password
    assert "the configuration logs in as role pacs, not as other_role" in said


@pytest.mark.parametrize("labels", [True, False])
def test_revision_1_belongs_to_the_plugins_4_and_5(empty: db.Target, labels: bool) -> None:
    init(empty, revision=1)
    if not labels:
        with db.session(empty, autocommit=True) as conn:
            conn.cursor().execute("DROP TABLE labels")
    assert catalog.plugins(1) == "4.0 to 5.1"
    assert json.loads(call("status", "--uri", empty.dsn, "--json")[1])["plugins"] == "4.0 to 5.1"
    assert "4.0 to 5.1" in call("doctor", "--verbose", "--uri", empty.dsn)[1]
    assert "plugin 4.0 to 5.1 (revision 1" in call("init", "--uri", empty.dsn)[2]
    plan = json.loads(call("upgrade", "--plan", "--uri", empty.dsn, "--json")[1])
    assert (plan["plugins"], plan["plugins_then"]) == ("4.0 to 5.1", catalog.plugins(CURRENT))


def test_releases_and_revisions_lead_to_each_other() -> None:
    assert [catalog.plugins(revision) for revision in (0, 3, 5)] == ["up to 3.3", "7.0 to 7.1", "8.0"]
    for release, revision in {"4.0": 1, "5.0": 1, "5.1": 1, "6.2": 2, "7.1": 3, "7.2": 4, "10.3": 10}.items():
        assert catalog.revision_of_plugin(release) == revision
