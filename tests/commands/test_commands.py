"""What every command does with its connection options: warnings, origins, the question for a password."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import commands
from tests.support.questions import answered
from tests.support.real_servers import Server

PASSWORD = "p@ss w/'\\\"ö%"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n", "")
    try:
        made.create().start()
        quoted = PASSWORD.replace("'", "''")
        made.sql(
            "SET password_encryption = 'scram-sha-256'", f"CREATE ROLE scram_role LOGIN PASSWORD '{quoted}'"
        )
        yield made
    finally:
        made.remove()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


PROGRAM = """
from pgorthanc_cli import cli, commands, db
from pgorthanc_cli.views.page import Page
import dataclasses, sys, types

@dataclasses.dataclass
class Who:
    role: str

@commands.command("who")
def command(call):
    '''Say who is logged in.'''
    with call.target() as target, db.session(target, readonly=True) as conn:
        call.emit_page(Who(conn.info.user), Page(conn.info.user))

module = types.ModuleType("pgorthanc_cli.commands.who")
module.command = command
sys.modules[module.__name__] = module
cli.COMMANDS["who"] = "who"
cli.main(["who", *sys.argv[1:]])
"""


def run_on_terminal(arguments: list[str], typed: str) -> tuple[int, str, str]:
    return answered([sys.executable, "-c", PROGRAM, *arguments], b"Password for", typed)


def test_prompt_on_a_terminal(server: Server) -> None:
    place = ["--host", "127.0.0.1", "--port", str(server.port), "-d", "postgres", "-U", "scram_role"]
    code, answer, screen = run_on_terminal([*place, "--json"], PASSWORD + "\n")
    assert (code, json.loads(answer)) == (0, {"role": "scram_role"})
    assert screen.count("Password for") == 1
    assert PASSWORD not in screen
    code, answer, screen = run_on_terminal(place, "wr0ng\n")
    assert (code, answer) == (3, "")
    assert "cannot log in to " in screen
    assert "wr0ng" not in screen
    code, answer, screen = run_on_terminal(place, "\x04")
    assert (code, answer) == (130, "")


def test_no_prompt_without_a_terminal(server: Server) -> None:
    place = ["--host", "127.0.0.1", "--port", str(server.port), "-d", "postgres", "-U", "scram_role"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *place, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert json.loads(done.stderr)["error"] == "PasswordRequired"


def test_verbose_tells_the_origins_but_not_the_password(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--password-file", str(secret), "-v"],
        env={**os.environ, "PGORTHANC_URI": f"postgresql://scram_role@127.0.0.1:{server.port}/postgres"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"password = *** (from --password-file {secret})" in done.stderr
    assert f"port = {server.port} (from PGORTHANC_URI)" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize("option", ["--uri", "--host", "--dbname", "--sslmode"])
def test_embedded_is_one_server(tmp_path: Path, option: str) -> None:
    value = "require" if option == "--sslmode" else "x"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--embedded", str(tmp_path / "data"), option, value],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"--embedded and {option} contradict each other" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("quiet", [True, False])
def test_warnings_of_the_configuration(server: Server, tmp_path: Path, quiet: bool) -> None:
    uri = f"postgresql://postgres@/postgres?host={server.folder}&port={server.port}"
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps({"PostgreSQL": {"ConnectionUri": uri, "Lok": True, "EnableIndeks": True}}))
    arguments = ["--config", str(path), "--json", *(["--quiet"] if quiet else [])]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"role": "postgres"}
    for meant in ("Lock", "EnableIndex"):
        assert (f'did you mean "{meant}"?' in done.stderr) != quiet


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"host": "db1", "port": 5433, "dbname": None}, "pgorthanc doctor --host db1 --port 5433"),
        ({"config": "/etc/my orthanc"}, "pgorthanc doctor --config '/etc/my orthanc'"),
        ({"uri": "postgresql://o@db1/orthanc"}, "pgorthanc doctor --uri postgresql://o@db1/orthanc"),
        ({"uri": "postgresql://o:secret@db1/x"}, "pgorthanc doctor --uri 'user=o dbname=x host=db1'"),
        ({"password_file": "/run/pw"}, "pgorthanc doctor --password-file /run/pw"),
    ],
)
def test_a_suggested_command_has_the_options_of_the_call_but_no_password(
    options: dict[str, object], expected: str
) -> None:
    call = commands.Call("status", options, as_json=False, quiet=False, verbose=False)
    assert call.command_line("doctor") == expected
