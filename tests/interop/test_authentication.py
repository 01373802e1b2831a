"""What check-auth says of a login is what happens to the real Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from tests.interop.archive import Archive
from tests.interop.orthanc import DoesNotStart, Program
from tests.support import auth_servers
from tests.support.auth_servers import admin
from tests.support.real_servers import Server, certificate

pytestmark = pytest.mark.interop
PASSWORD = "simple"  # the plugin quotes nothing


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with auth_servers.server(authority=certificate("authority")) as made:
        for role, kind in {
            "scram": "scram-sha-256",
            "tls": "scram-sha-256",
            "md5": "md5",
            "wrong": "md5",
        }.items():
            password = f"ALTER ROLE {role}_role PASSWORD '{PASSWORD}'"
            made.sql(
                f"SET password_encryption = '{kind}'",
                password,
                f"CREATE DATABASE {role}_role OWNER {role}_role",
            )
        yield made


def archive(program: Program, server: Server, role: str, folder: Path, **more: Any) -> Archive:
    name = f"{role}_role"
    section = {
        "Host": "127.0.0.1", "Port": server.port, "Database": name, "Username": name, "Password": PASSWORD,
        "MaximumConnectionRetries": 1, **more,
    }  # fmt: skip
    return Archive(program, folder, db.Target(make_dsn(server.place, dbname=name)), section, {})


def check(found: Archive, server: Server, *words: str) -> Result:
    plugin = () if "--fix" in words else ("--plugin", found.program.plugin_version())
    return found.pgorthanc("check-auth", "--admin", admin(server).dsn, *plugin, *words)


def starts(found: Archive) -> bool:
    try:
        with found.orthanc():
            return True
    except DoesNotStart:
        return False


@pytest.mark.parametrize(
    ("role", "encrypted", "code"),
    [
        ("scram", False, 0),
        ("scram", True, 0),
        ("md5", True, 0),
        ("tls", True, 0),
        ("tls", False, 3),
        ("wrong", False, 3),
    ],
)
def test_the_verdict(
    program: Program, server: Server, tmp_path: Path, role: str, encrypted: bool, code: int
) -> None:
    if not server.has_tls:
        pytest.skip(f"{server.programs} was built without OpenSSL")
    found = archive(program, server, role, tmp_path, EnableSsl=encrypted)
    assert check(found, server).exit_code == code
    assert starts(found) == (code == 0)


def test_a_move_there_and_back(program: Program, server: Server, tmp_path: Path) -> None:
    found = archive(program, server, "scram", tmp_path)
    for wanted in ("md5", "scram"):
        assert check(found, server, "--fix", wanted, "--yes").exit_code == 0
        assert starts(found)
