"""No command shows a password: not in what it prints, not in the process list, not when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import reference
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli
from tests.support import samples
from tests.support.real_servers import Server

ROOT = Path(__file__).parents[2]

# Of this process: other tests on this machine may have one on a command line.
PASSWORD = f"pl4nted-s3cret-{os.getpid()}"
WRONG = f"an0ther-s3cret-{os.getpid()}"

# Every command, with as much as it needs to get as far as to the server. {tmp} is a folder of the test.
WORDS = {
    "check-auth": "",
    "check-lock": "",
    "completion": "bash",
    "config check": "",
    "config diff": "{tmp}/orthanc.json {tmp}/orthanc.json",
    "config new": "",
    "config set": "PostgreSQL.Lock false",
    "config show": "",
    "config uri": "",
    "doctor": "",
    "downgrade": "--to 6 --yes",
    "explain-log": f"{ROOT}/tests/orthanc_log/real/wrong-password.log",
    "guide": "upgrade",
    "import": f"--storage-dir {{tmp}}/area {samples.REAL}",
    "init": "",
    "keepalive-test": "--ages 0.1s",
    "migrate-sqlite": "{tmp}/index",
    "reindex": "--storage-dir {tmp}/area",
    "replication plan": "--allow 10.0.0.2",
    "replication primary": "--allow 10.0.0.2 --passfile {tmp}/passfile",
    "replication promote": "",
    "replication rejoin": "--pgdata {tmp}/old --from host=127.0.0.1",
    "replication standby": "--pgdata {tmp}/standby --from host=127.0.0.1",
    "replication status": "",
    "server start": "--embedded {tmp}/nowhere/server --port 1",
    "server status": "--embedded {tmp}/server",
    "server stop": "--embedded {tmp}/server",
    "status": "",
    "storage move": "--to postgresql --storage-dir {tmp}",
    "storage show": "",
    "support-bundle": "{tmp}/bundle.tar.gz",
    "upgrade": "--to 10",
    "verify schema": "--deep",
    "verify storage": "--storage-dir {tmp}",
    "wait": "--revision 10 --timeout 0",
}
WITHOUT_CONNECTION = (
    "completion", "config diff", "guide", "server start", "server status", "server stop",
)  # fmt: skip


@pytest.fixture(scope="module")
def place() -> Iterator[dict[str, str]]:
    """A server that wants a password, and a database that the role owns."""
    server = Server("local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n", "")
    try:
        server.create().start()
        server.sql(
            "SET password_encryption = 'scram-sha-256'",
            f"CREATE ROLE keeper LOGIN CREATEDB PASSWORD '{PASSWORD}'",
            "CREATE DATABASE archive OWNER keeper",
        )
        parameters = {"host": "127.0.0.1", "port": str(server.port), "user": "keeper", "dbname": "archive"}
        psycopg2.connect(make_dsn(**parameters, password=PASSWORD)).close()
        yield parameters
    finally:
        server.remove()


def told(words: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """All that a command prints, and all command lines of the machine while it ran."""
    lines: set[bytes] = set()
    with subprocess.Popen(
        [sys.executable, "-m", "pgorthanc_cli", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    ) as process:  # fmt: skip
        while True:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    lines.add((folder / "cmdline").read_bytes())
                except OSError:  # it has ended
                    continue
            try:
                out, _ = process.communicate(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            return out, b"\n".join(lines).decode("utf-8", "replace")


def test_every_command_is_tried() -> None:
    groups = {words[:-1] for words in reference.commands(cli.main) if words}
    assert {" ".join(words) for words in reference.commands(cli.main) if words not in groups} == set(WORDS)


@pytest.mark.parametrize("password", [PASSWORD, WRONG], ids=["right", "wrong"])
@pytest.mark.parametrize("name", WORDS)
def test_no_password_is_shown(name: str, password: str, place: dict[str, str], tmp_path: Path) -> None:
    configuration = tmp_path / "orthanc.json"
    section = {
        "EnableIndex": True, "Host": place["host"], "Port": int(place["port"]), "Database": place["dbname"],
        "Username": place["user"], "Password": password,
    }  # fmt: skip
    configuration.write_text(
        json.dumps({"PostgreSQL": section, "RegisteredUsers": {"alice": password}, "Name": "archive"})
    )
    own = [word.format(tmp=tmp_path) for word in WORDS[name].split()]
    for verbose in ("--verbose", "--json"):
        if name in WITHOUT_CONNECTION:
            words, environment = [*name.split(), *own, verbose], {"POSTGRES_PASSWORD": password}
        elif name.startswith("config ") or verbose == "--json":
            words, environment = [*name.split(), *own, verbose, "--config", str(configuration)], {}
        else:
            uri = make_dsn(**place, password=password)
            words, environment = [*name.split(), *own, verbose], {"PGORTHANC_URI": uri}
        out, lines = told(words, environment)
        assert password not in out, out
        assert password not in lines
        assert "Traceback" not in out, out
        assert "No such option" not in out, out
