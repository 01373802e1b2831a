"""Every command line of the documents is executed: on a machine with an index, Orthanc's configuration and DICOM files.

What needs a second server, another account or an hour is executed by the tests that `ELSEWHERE` names.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from pgorthanc_cli import db
from tests.project.test_command_lines import DOCUMENTS
from tests.support import commandlines, samples, sqliteindex
from tests.support.real_servers import wait_until
from tests.support.schemas import rows

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[2]
LINES = sorted({tuple(words) for path in DOCUMENTS for words in commandlines.in_document(path)})
ELSEWHERE = {
    r"replication (?!status --(nagios|watch)|plan)": "tests/replication",
    r"replication status --uri": "tests/replication",
    r"import --dask": "tests/ingest/test_dask.py",
    r"init .*--create-role": "tests/project/test_getting_started.py",
    r"keepalive-test": "tests/keepalive",
    r"check-auth .*--admin": "tests/authentication",
    r"config uri .*--password-file": "tests/project/test_getting_started.py",
    r"wait --replica": "tests/wait",
    r"storage move .*--(phase clean|to advanced-storage|compression)": "tests/placement",
}
# 6: the server of the tests is not tuned as doctor wishes, and the plugin is not installed on this machine.
WARNINGS = re.compile(
    r"doctor|config check|support-bundle|replication (status|plan)|check-auth|verify|migrate-sqlite"
)
CRITICAL = re.compile(r"replication status --nagios")  # there is no standby
PLACES = (
    "/etc/orthanc",
    "/srv/incoming",
    "/var/lib/pgorthanc",
    "/var/lib/prometheus/node-exporter",
    "/var/tmp/rehearsal",
    "/srv/orphans",
    "/srv/archive",
    "/mnt/mirror",
    "/data",
)


def executed_elsewhere(line: str) -> str | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.match(pattern, line)), None)


@pytest.fixture
def machine(fresh: db.Target, tmp_path: Path) -> Path:
    """The root of a machine: what stands below `PLACES`, and in the working folder of the reader."""
    for place in PLACES:
        (tmp_path / place[1:]).mkdir(parents=True)
    given = db.parse_dsn(fresh.dsn)
    section = {
        "EnableIndex": True,
        "Lock": False,
        "Host": given["host"],
        "Port": int(given.get("port") or 5432),
        "Database": given["dbname"],
        "Username": given["user"],
        "Password": given.get("password", ""),
    }
    folder = tmp_path / "etc" / "orthanc"
    storage = tmp_path / "storage"
    storage.mkdir()
    (folder / "orthanc.json").write_text(json.dumps({"StorageDirectory": str(storage)}))
    (folder / "postgresql.json").write_text(json.dumps({"PostgreSQL": section}))
    for number in (1, 2, 3):
        (tmp_path / "srv" / "incoming" / f"{number}.dcm").write_bytes(samples.instance(number=number))
    (tmp_path / "srv" / "archive" / "1.dcm").write_bytes(samples.instance("archived"))
    with sqliteindex.create(tmp_path / "var" / "tmp" / "rehearsal" / "index") as conn:
        sqliteindex.fill(conn, 3)
    conn.close()
    (tmp_path / "orthanc.env").write_text(f"ORTHANC__POSTGRESQL__HOST={given['host']}\n")
    (tmp_path / "secrets").mkdir()
    return tmp_path


@pytest.fixture
def another_session(fresh: db.Target) -> Iterator[int]:
    """The pid of a session that does nothing."""
    conn = psycopg2.connect(fresh.dsn)
    yield conn.info.backend_pid
    conn.close()


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_the_line_does_what_the_page_says(
    words: tuple[str, ...], machine: Path, fresh: db.Target, empty: db.Target, another_session: int
) -> None:
    line = " ".join(words)
    if test := executed_elsewhere(line):
        assert (ROOT / test).exists()
        return
    places = "|".join(map(re.escape, PLACES))
    named = {"12345": str(another_session), "rehearsal": db.parse_dsn(empty.dsn)["dbname"]}
    arguments = [
        named.get(word, re.sub(rf"^(?:{places})(?=/|$)", lambda place: f"{machine}{place[0]}", word))
        for word in words
    ]
    if "--adopt" in words:
        (machine / "etc/orthanc/advanced.json").write_text('{"AdvancedStorage": {"Enable": true}}')
    if "--terminate" in words:
        arguments.append("--yes")  # the reader is asked on a terminal
    given = db.parse_dsn(fresh.dsn)
    environment = os.environ | {
        "PGHOST": given["host"],
        "PGPORT": given.get("port") or "5432",
        "PGUSER": given["user"],
        "PGDATABASE": given["dbname"],
        "PGPASSWORD": given.get("password", ""),
    }
    command = [sys.executable, "-m", "pgorthanc_cli", *arguments]
    allowed = {0, 6} if WARNINGS.match(line) else {0}
    if CRITICAL.match(line):
        allowed = {2}
    with subprocess.Popen(
        command, cwd=machine, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        try:
            if "--watch" in words:
                assert running.stdout
                assert running.stdout.readline()
            if "--follow" in words:
                count = "SELECT count(*) FROM resources WHERE resourcetype = 3"
                wait_until(lambda: rows(fresh, count) == [(3,)], "the three files are imported")
            if {"--watch", "--follow"} & set(words):
                running.send_signal(signal.SIGINT)
                allowed |= {130}
            out, err = running.communicate("new-password\n" if words[-1] == "-" else "", timeout=100)
        finally:
            running.kill()
    print(out, err)
    assert running.returncode in allowed
