"""`pgorthanc server`: what it prints, its exit codes, and the environment of the official image."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import embedded
from pgorthanc_cli.cli import main


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["server", *map(str, arguments)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server that the command line keeps up."""
    folder = tmp_path_factory.mktemp("kept") / "server"
    result = call("start", "--dir", folder)
    assert result.exit_code == 0, result.output
    yield folder
    embedded.stop(folder)


def test_start_prints_how_to_connect_and_hides_the_password(server: Path) -> None:
    result = call("start", "--dir", server)
    password = (server / "pgorthanc.password").read_text().strip()
    assert "password=***" in result.stdout
    assert password not in result.output
    section = json.loads(result.stdout[result.stdout.index("\n{") :])
    assert section["PostgreSQL"]["Host"] == "127.0.0.1"
    assert section["PostgreSQL"]["Database"] == "orthanc"
    assert section["PostgreSQL"]["Password"] == "***"


def test_start_shows_the_password_if_asked(server: Path) -> None:
    running = json.loads(call("start", "--dir", server, "--show-password", "--json").stdout)
    assert running["orthanc"]["PostgreSQL"]["Password"] == (server / "pgorthanc.password").read_text().strip()
    assert running["orthanc"]["PostgreSQL"]["Port"] == running["port"]
    psycopg2.connect(running["dsn"]).close()
    assert stat.S_IMODE(os.stat(running["password_file"]).st_mode) == 0o600


def test_status(server: Path, tmp_path: Path) -> None:
    result = call("status", "--dir", server, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["state"], found["listen"], found["keep"]) == ("running", "127.0.0.1", True)
    assert set(found["databases"]) == {"orthanc", "postgres"}
    absent = call("status", "--dir", tmp_path / "none")
    assert absent.exit_code == 1
    assert "absent" in absent.stdout


def test_status_tells_the_port_as_it_is_typed(server: Path) -> None:
    port = json.loads(call("status", "--dir", server, "--json").stdout)["port"]
    assert ["port", str(port)] in [
        line.split() for line in call("status", "--dir", server).stdout.splitlines()
    ]


def test_stop_is_refused_while_commands_use_it(server: Path) -> None:
    with embedded.attach(server):
        result = call("stop", "--dir", server)
    assert result.exit_code == 5
    assert "--embedded" in result.stderr
    assert embedded.status(server).state == "running"


def test_the_environment_of_the_official_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", str(tmp_path / "data"))
    monkeypatch.setenv("POSTGRES_DB", "archive")
    monkeypatch.setenv("POSTGRES_USER", "postgres")
    monkeypatch.setenv("POSTGRES_PASSWORD", "s3cret word")
    result = call("start", "--json", "--username", "keeper")
    try:
        running = json.loads(result.stdout)
        assert (running["database"], running["role"]) == ("archive", "keeper")  # options win
        assert running["directory"] == str(tmp_path / "data")
        assert "s3cret" not in result.output
        place = {"host": "127.0.0.1", "port": running["port"], "user": "keeper", "password": "s3cret word"}
        psycopg2.connect(**place, dbname="archive").close()
    finally:
        assert call("stop").exit_code == 0
    assert call("status").exit_code == 1


def test_a_password_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("from the file\n")
    monkeypatch.setenv("POSTGRES_PASSWORD_FILE", str(file))
    monkeypatch.setenv("POSTGRES_USER", "keeper")
    result = call("start", "--dir", tmp_path / "server", "--json", "--show-password")
    try:
        running = json.loads(result.stdout)
        assert (running["database"], running["role"]) == ("keeper", "keeper")  # as the official image has it
        assert running["orthanc"]["PostgreSQL"]["Password"] == "from the file"
        psycopg2.connect(running["dsn"]).close()
    finally:
        call("stop", "--dir", tmp_path / "server")


def test_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGDATA", raising=False)
    assert call("start").exit_code == 2
    file = tmp_path / "secret"
    file.write_text("\n")
    assert call("start", "--dir", tmp_path / "server", "--password-file", file).exit_code == 2
    monkeypatch.setenv("POSTGRES_PASSWORD", "one")
    monkeypatch.setenv("POSTGRES_PASSWORD_FILE", str(file))
    assert call("start", "--dir", tmp_path / "server").exit_code == 2
    assert not (tmp_path / "server").exists()


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("start", "stop", "status"):
        result = call(name, "--dir", tmp_path)
        assert result.exit_code == 1
        assert "notes.txt" in result.stderr
