"""An Orthanc that holds no lock ("Lock": false) counts as one that does, and revision 1 never gets duplicates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db, dicom, ingest, locks
from pgorthanc_cli.errors import InUseError
from tests.support import samples, sqliteindex
from tests.support.importing import ends, run
from tests.support.schemas import init, rows
from tests.support.schemas import run as execute

# What the plugin sends when it gives back a prepared statement: the last statement of an idle session.
STATEMENT = "2e126b54-0b34-4e35-beb6-455ccd56538f"


@contextmanager
def session(target: db.Target) -> Iterator[Connection]:
    with closing(psycopg2.connect(target.dsn, options=f'-c search_path="{target.schema}"')) as conn:
        yield conn


@contextmanager
def orthanc(target: db.Target) -> Iterator[int]:
    """An idle session like one of Orthanc's, without any lock and any name; its pid."""
    with session(target) as conn, conn.cursor() as cur:
        conn.autocommit = True
        cur.execute(f'PREPARE "{STATEMENT}" AS SELECT 1')
        cur.execute(f'DEALLOCATE "{STATEMENT}"')
        yield conn.info.backend_pid


def pgorthanc(target: db.Target, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code, and what was printed on stderr as JSON."""
    command = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        *map(str, arguments),
        "--json",
        "--quiet",
        "--uri",
        target.dsn,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stderr) if done.returncode else {}


def test_import_refuses_and_says_how_to_go_on(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 3)
    with orthanc(fresh) as pid:
        code, error = pgorthanc(fresh, "import", "--storage-dir", tmp_path / "area", *files)
        assert code == InUseError.exit_code
        assert f"pid {pid}" in error["message"]
        assert "without a lock" in error["message"]
        assert "--concurrent" in error["hint"]
        assert rows(fresh, "SELECT count(*) FROM resources") == [(0,)]
        assert pgorthanc(fresh, "import", "--dry-run", "--storage-dir", tmp_path / "area", *files)[0] == 0
        assert pgorthanc(fresh, "import", "--concurrent", "--storage-dir", tmp_path / "area", *files)[0] == 0
    assert pgorthanc(fresh, "import", "--storage-dir", tmp_path / "area", *files)[0] == 0


def test_init_refuses_to_repair(fresh: db.Target) -> None:
    execute(fresh, "DROP INDEX childrenindex2")
    with orthanc(fresh) as pid:
        code, error = pgorthanc(fresh, "init")
        assert (code, f"pid {pid}" in error["message"]) == (InUseError.exit_code, True)
        assert pgorthanc(fresh, "verify", "schema", "--repair", "--apply")[0] == InUseError.exit_code
        assert rows(fresh, "SELECT to_regclass('childrenindex2')") == [(None,)]
    assert pgorthanc(fresh, "init")[0] == 0


def test_init_of_an_index_that_is_complete_passes(fresh: db.Target) -> None:
    """A container runs it at every start, also while another Orthanc works."""
    with orthanc(fresh):
        assert pgorthanc(fresh, "init")[0] == 0


def test_migrate_sqlite_refuses(empty: db.Target, tmp_path: Path) -> None:
    path = sqliteindex.rich(tmp_path / "index", instances=250)
    with orthanc(empty) as pid:
        code, error = pgorthanc(empty, "migrate-sqlite", path)
        assert (code, f"pid {pid}" in error["message"]) == (InUseError.exit_code, True)
        assert rows(empty, "SELECT to_regclass('resources')") == [(None,)]
    assert pgorthanc(empty, "migrate-sqlite", path)[0] == 0


@pytest.mark.parametrize("command", [["upgrade", "--yes"], ["downgrade", "--to", "4", "--yes"]])
def test_upgrade_and_downgrade_refuse(empty: db.Target, command: list[str]) -> None:
    init(empty, revision=6 if command[0] == "upgrade" else 10)
    with orthanc(empty) as pid:
        code, error = pgorthanc(empty, *command)
        assert (code, f"pid {pid}" in error["message"]) == (InUseError.exit_code, True)
    assert pgorthanc(empty, *command)[0] == 0


def test_what_only_looks_like_an_orthanc_is_named_so(fresh: db.Target) -> None:
    with session(fresh) as conn, db.session(fresh) as ours:
        with conn.cursor() as cur:
            cur.execute("COMMIT")
        with pytest.raises(InUseError, match="looks like an Orthanc") as caught:
            locks.require_no_orthanc(ours, fresh.schema)
        assert "application_name" in str(caught.value.hint)
    with session(fresh) as conn, db.session(fresh) as ours, conn.cursor() as cur:
        cur.execute("SET application_name = 'my report'")
        cur.execute("COMMIT")
        assert locks.require_no_orthanc(ours, fresh.schema) == ()


def test_who_may_not_see_the_sessions_of_others_is_warned(fresh: db.Target, role: str) -> None:
    execute(fresh, f"GRANT USAGE ON SCHEMA public TO {role}")
    with orthanc(fresh), db.session(fresh) as ours, ours.cursor() as cur:
        cur.execute(f"SET ROLE {role}")
        [warning] = locks.require_no_orthanc(ours, fresh.schema)
    assert "pg_read_all_stats" in warning


class Plugin40:
    """What plugin 4.0 does for one instance: a serializable transaction that looks the id up, and inserts it."""

    def __init__(self, conn: Connection, public_id: str) -> None:
        self.conn = conn
        self.public_id = public_id
        conn.set_session(isolation_level="SERIALIZABLE")

    def look(self) -> None:
        with self.conn.cursor() as cur:
            cur.execute("SELECT internalid FROM resources WHERE publicid = %s", (self.public_id,))
            assert cur.fetchall() == []

    def insert(self) -> None:
        with self.conn.cursor() as cur:
            cur.execute("INSERT INTO resources (resourcetype, publicid) VALUES (0, %s)", (self.public_id,))
        self.conn.commit()


@pytest.mark.parametrize("concurrent", [False, True])
def test_at_revision_1_a_writer_without_a_lock_makes_no_duplicate(
    empty: db.Target, tmp_path: Path, concurrent: bool
) -> None:
    """It has looked in vain before the import writes, and inserts afterwards."""
    init(empty, revision=1)
    files = samples.folder(tmp_path / "in", 2, patients=1)
    patient = dicom.parse(files[0].read_bytes(), dicom.Profile()).levels[0].public_id
    with session(empty) as conn, conn.cursor() as cur:
        cur.execute("SET application_name = 'pgorthanc test'")  # not seen: it came just after the look
        conn.commit()
        plugin = Plugin40(conn, patient)
        plugin.look()
        assert ends(run(empty, files, tmp_path / "area", concurrent=concurrent)) == (2, 0, 0, 0)
        with pytest.raises(psycopg2.errors.SerializationFailure):
            plugin.insert()
    assert rows(empty, "SELECT publicid FROM resources GROUP BY 1 HAVING count(*) > 1") == []


def test_at_revision_1_an_import_waits_for_a_writer_and_finds_what_it_wrote(
    empty: db.Target, tmp_path: Path
) -> None:
    init(empty, revision=1)
    files = samples.folder(tmp_path / "in", 2, patients=1)
    patient = dicom.parse(files[0].read_bytes(), dicom.Profile()).levels[0].public_id
    reports: list[ingest.ImportResult] = []
    with session(empty) as conn, conn.cursor() as cur:
        cur.execute("SET application_name = 'pgorthanc test'")
        conn.commit()
        plugin = Plugin40(conn, patient)
        plugin.look()
        cur.execute("INSERT INTO resources (resourcetype, publicid) VALUES (0, %s)", (patient,))
        work = threading.Thread(target=lambda: reports.append(run(empty, files, tmp_path / "area")))
        work.start()
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"
        with session(empty) as watcher, watcher.cursor() as look:
            watcher.autocommit = True
            look.execute("SET application_name = 'pgorthanc test'")
            pause = threading.Event()
            while True:
                look.execute(waiting)
                if look.fetchone() == (True,) or not work.is_alive():
                    break
                pause.wait(0.01)
        conn.commit()
        work.join(60)
    assert [ends(report) for report in reports] == [(2, 0, 0, 0)]
    assert rows(empty, "SELECT publicid FROM resources GROUP BY 1 HAVING count(*) > 1") == []
    assert os.listdir(tmp_path / "area")
