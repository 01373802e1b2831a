"""`pgorthanc server`: a server that stays up for others, and the environment of the official image."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import db
from pgorthanc_cli.cli import main
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, UsageError
from pgorthanc_cli.server import embedded
from tests.support.servers import ask


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


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a server may be made; as root, no other account reaches it (pytest's folders are 0700)."""
    return tmp_path / "server"


@pytest.fixture
def kept(directory: Path) -> Iterator[embedded.RunningServer]:
    """A server that is kept up for others."""
    yield embedded.start(directory, show_password=True)
    embedded.stop(directory)


# The command line


def test_the_screens(directory: Path) -> None:
    """Start, start again, status, stop, stop again: what a person reads, and pastes."""
    started = call("start", "--embedded", directory)
    try:
        first, where, *_ = started.stdout.splitlines()
        place = first.partition(" is running on ")[2].partition(",")[0]
        assert re.fullmatch(r"127\.0\.0\.1:\d+", place)
        assert where == f"folder {directory} (created) - database orthanc - role orthanc"
        assert f"The password is in {directory}/pgorthanc.password (mode 0600)." in started.stdout
        init, stop = (line.split() for line in started.stdout.splitlines() if "    pgorthanc" in line)
        assert CliRunner().invoke(main, init[1:]).exit_code == 0
        again = call("start", "--embedded", directory)
        assert again.stdout.startswith("Nothing to do: PostgreSQL ")
        assert f" is already running on {place}.\n" in again.stdout
        status = call("status", "--embedded", directory)
        assert f" is running on {place} (pid " in status.stdout
        assert "  Databases  orthanc " in status.stdout
    finally:
        stopped = CliRunner().invoke(main, stop[1:])
    assert stopped.stdout.startswith(f"Stopped the PostgreSQL server in {directory}.\n")
    assert call("stop", "--embedded", directory).stdout.startswith("Nothing to do: ")
    status = call("status", "--embedded", directory)
    assert f" in {directory} is not running.\n" in status.stdout
    assert call("status", "--embedded", directory, "--quiet").stdout == status.stdout
    assert call("start", "--embedded", directory, "--quiet").stdout == ""
    call("stop", "--embedded", directory)


def test_start_prints_how_to_connect_and_hides_the_password(server: Path) -> None:
    result = call("start", "--dir", server, "--verbose")
    password = (server / "pgorthanc.password").read_text().strip()
    assert password not in result.output
    [login] = [line for line in result.stdout.splitlines() if " psql " in line]
    subprocess.run(f"{login} -c 'SELECT 1'", shell=True, check=True, capture_output=True)  # noqa: S602
    start = result.stdout.index("    {")
    section = json.loads(result.stdout[start : result.stdout.index("\n    }") + 6])
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
    assert absent.stdout.startswith(f"{tmp_path}/none does not contain a pgorthanc server.\n")


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


# The library under it


def test_tcp_needs_the_password(kept: embedded.RunningServer) -> None:
    place: dict[str, Any] = {"host": kept.host, "port": kept.port, "dbname": kept.database}
    with db.session(db.Target(kept.dsn)) as conn:
        assert conn.info.host == "127.0.0.1"
        with conn.cursor() as cur:
            cur.execute("SELECT current_user::text")
            assert cur.fetchone() == ("orthanc",)
    logins: list[dict[str, Any]] = [
        {"user": "orthanc", "password": "wrong"},
        {"user": "orthanc"},
        {"user": "pgorthanc"},
    ]
    for login in logins:
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(**place, **login, passfile="/dev/null")
    psycopg2.connect(**place, user="orthanc", passfile=kept.pgpass_file).close()
    for file in (kept.password_file, kept.pgpass_file):
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


def test_it_stays_when_commands_leave(kept: embedded.RunningServer, directory: Path) -> None:
    with embedded.attach(directory) as target:
        ask(target, "CREATE TABLE shared AS SELECT 1 AS a")
    assert embedded.status(directory).pid == kept.pid
    assert ask(db.Target(kept.dsn), "SELECT a FROM shared") == 1


def test_starting_again_changes_nothing(kept: embedded.RunningServer, directory: Path) -> None:
    assert kept.outcome == "created"
    unchanged = replace(kept, outcome="unchanged")
    assert embedded.start(directory, show_password=True) == unchanged
    shown = embedded.start(directory)
    assert "password=***" in shown.dsn
    assert shown.orthanc["PostgreSQL"]["Password"] == "***"


def test_nobody_stops_or_restarts_it_under_a_command(kept: embedded.RunningServer, directory: Path) -> None:
    with embedded.attach(directory) as target, db.session(target):
        with pytest.raises(InUseError, match=r"cannot stop .* application pgorthanc"):
            embedded.stop(directory)
        with pytest.raises(InUseError, match="cannot restart"):
            embedded.start(directory, listen="*")
        assert ask(target, "SELECT 1") == 1
    assert embedded.status(directory).listen == "127.0.0.1"


def test_another_address_keeps_port_password_and_data(kept: embedded.RunningServer, directory: Path) -> None:
    ask(db.Target(kept.dsn), "CREATE TABLE kept AS SELECT 1 AS a")
    moved = embedded.start(directory, listen="*", show_password=True)
    assert (moved.dsn, moved.outcome, moved.listen) == (kept.dsn, "restarted", "*")
    assert moved.pid != kept.pid
    assert ask(db.Target(kept.dsn), "SELECT a FROM kept") == 1


def test_stopped_and_private_again(directory: Path) -> None:
    kept = embedded.start(directory)
    assert embedded.stop(directory).was_running
    assert not embedded.stop(directory).was_running
    with embedded.attach(directory):
        with pytest.raises(ConnectError):
            db.connect(db.Target(kept.dsn))
        assert embedded.status(directory).listen == ""
    again = embedded.start(directory)
    assert (again.port, again.outcome) == (kept.port, "started")
    assert embedded.start(directory, password="another").outcome == "changed"
    embedded.stop(directory)


def test_a_port_in_use(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PgOrthancError, match=f"port {port} on 127.0.0.1 is in use") as refusal:
            embedded.start(directory, port=port)
        assert "--port" in str(refusal.value.hint)
        kept = embedded.start(directory)
        try:
            with pytest.raises(PgOrthancError, match="is in use"):
                embedded.start(directory, port=port)
            assert embedded.start(directory) == replace(kept, outcome="unchanged")
        finally:
            embedded.stop(directory)


def test_names_and_passwords_of_the_site(directory: Path) -> None:
    # The role postgres is an ordinary one here; the database postgres comes with the server.
    password = r"a:b\c 'd' %s"
    kept = embedded.start(directory, role="postgres", password=password, show_password=True)
    try:
        assert (kept.role, kept.database) == ("postgres", "postgres")
        facts = ask(db.Target(kept.dsn), "SELECT current_user::text, current_setting('is_superuser')")
        assert facts == ("postgres", "off")
        ask(db.Target(kept.dsn), "CREATE TABLE public.own AS SELECT 1 AS a")
        place: dict[str, Any] = {"host": kept.host, "port": kept.port, "dbname": kept.database}
        psycopg2.connect(**place, user=kept.role, passfile=kept.pgpass_file).close()
        with pytest.raises(PgOrthancError, match="belongs to the role postgres, not to other"):
            embedded.start(directory, role="other", database="postgres")
        assert embedded.start(directory, show_password=True) == replace(kept, outcome="unchanged")
    finally:
        embedded.stop(directory)


@pytest.mark.parametrize("wrong", [{"role": "pgorthanc"}, {"database": "template1"}, {"password": ""}])
def test_what_start_refuses(directory: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        embedded.start(directory, **wrong)  # type: ignore[arg-type]
    assert embedded.status(directory).state in ("absent", "stopped")


def test_stop_without_a_server(directory: Path) -> None:
    with pytest.raises(PgOrthancError, match="does not contain a pgorthanc server"):
        embedded.stop(directory)
    assert not directory.exists()
