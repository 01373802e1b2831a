"""libpq's own words never reach the terminal as they are: they become one of our warnings, or nothing with --quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db
from pgorthanc_cli.db import libpq

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("check-lock",),
    ("doctor", "--deep"),
    ("verify", "schema"),
    ("wait",),
    ("config", "uri"),
)


@pytest.fixture
def noisy(fresh: db.Target, admin: Connection, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which libpq complains about .pgpass, and the server about a setting at each login."""
    place = db.effective_parameters(fresh)
    with admin.cursor() as cur:
        cur.execute(
            "INSERT INTO pg_db_role_setting SELECT oid, 0, ARRAY[%s] FROM pg_database WHERE datname = %s",
            ("work_mem=much\nmore", place["dbname"]),
        )
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:nothing\n")
    passfile.chmod(0o644)
    names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "dbname"}
    environ = {variable: place[name] for variable, name in names.items()}
    yield {**os.environ, **environ, "PGPASSFILE": str(passfile)}
    with admin.cursor() as cur:
        cur.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(place["dbname"])))


def run(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", *words],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
    )


@pytest.mark.skipif(libpq._stderr is None, reason="not the GNU C library")
def test_what_libpq_prints_becomes_one_warning_each(noisy: dict[str, str]) -> None:
    ended = run(noisy, "status", "--json")
    json.loads(ended.stdout)
    lines = ended.stderr.splitlines()
    assert len(lines) == 2, lines
    assert all(line.startswith("warning: ") for line in lines)
    assert any("libpq warns: password file" in line and "group or world access" in line for line in lines)
    assert any("the server warns: " in line and "work_mem" in line for line in lines)


@pytest.mark.skipif(libpq._stderr is None, reason="not the GNU C library")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_quiet_is_quiet(noisy: dict[str, str], words: tuple[str, ...]) -> None:
    assert "WARNING:" not in run(noisy, *words, "-q").stderr
    assert "warns" not in run(noisy, *words, "-q", "--json").stderr


@pytest.mark.skipif(libpq._stderr is None, reason="not the GNU C library")
def test_a_monitoring_system_gets_one_line(noisy: dict[str, str]) -> None:
    ended = run(noisy, "doctor", "--nagios")
    assert (len(ended.stdout.splitlines()), ended.stderr) == (1, "")


def test_messages_of_several_lines() -> None:
    printed = (
        'WARNING: password file "/x" is not a plain file\n'
        'WARNING:  database "d" has a collation version mismatch\n'
        "DETAIL:  It was 1,\n\tnow 2.\nHINT:  Rebuild \x1b[31m\n"
        "HINWEIS:  hallo\n"
    )
    assert list(libpq._messages(printed)) == [
        'libpq warns: password file "/x" is not a plain file',
        'the server warns: database "d" has a collation version mismatch; It was 1,; now 2.; Rebuild \\x1b[31m',
        "the server warns: hallo",
    ]
