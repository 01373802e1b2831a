"""Sound indexes of every release become indexes of every revision; the file is only read; the target is safe."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db, migrate
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.progress import Progress, Report
from tests.support import indexstate, migrating, sqliteindex, sqlitestate
from tests.support.migrating import SERVER, convert
from tests.support.schemas import init, rows, run, snapshot

NEWEST = sqliteindex.RELEASES[-1]
PAIRS = [
    *((NEWEST, revision) for revision in (1, 2, 5, 6, 10)),
    *(pytest.param(NEWEST, revision, marks=pytest.mark.once) for revision in (3, 4)),
    *((release, revision) for release in sqliteindex.RELEASES[:-1] for revision in (1, 10)),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rich index of the newest release; tests that change it make their own."""
    return sqliteindex.rich(tmp_path_factory.mktemp("sound") / "index")


def everything(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Content, time and mode of all that is in a folder."""
    return {
        path.name: (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
            path.stat().st_mode,
        )
        for path in folder.iterdir()
    }


@pytest.mark.parametrize(("release", "revision"), PAIRS)
def test_each_release_to_each_revision(empty: db.Target, tmp_path: Path, release: str, revision: int) -> None:
    path = sqliteindex.rich(tmp_path / "index", release)
    before = everything(tmp_path)
    converted = convert(empty, path, revision=revision, jobs=2)
    assert everything(tmp_path) == before
    migrating.require_index(empty, revision)
    wanted, found = sqlitestate.expected(path, SERVER), migrating.state(empty)
    assert indexstate.differing(wanted, found) == []
    assert {
        "resources",
        "labels",
        "recycling",
        "statistics",
        "server properties",
    } <= wanted.keys() & found.keys()
    assert converted.verified
    assert all(compared.equal for compared in converted.compared)
    assert (converted.revision, converted.server_identifier) == (revision, SERVER)
    assert converted.resources == {"patients": 2, "studies": 3, "series": 9, "instances": 250}
    assert converted.repaired == ()
    lost = (
        {"KeyValueStores", "Queues", "customData"}
        if revision < 5 and release in sqliteindex.RELEASES[2:]
        else set()
    )
    assert {finding.table for finding in converted.skipped} == lost


def test_a_protected_patient_keeps_that_and_goes_last_if_it_is_given_free(
    empty: db.Target, sound: Path
) -> None:
    convert(empty, sound)
    protected = rows(empty, "SELECT id FROM metadata WHERE type = 18 AND value = 'true'")
    assert len(protected) == 1
    last = rows(empty, "SELECT id FROM metadata WHERE type = 19 ORDER BY value::bigint DESC LIMIT 1")
    assert last == protected
    assert rows(empty, "SELECT count(*) FROM metadata WHERE type = 19") == [(2,)]


def test_places_that_do_not_fit_32_bits_are_numbered_anew(empty: db.Target, tmp_path: Path) -> None:
    path = sqliteindex.rich(tmp_path / "index")
    sqliteindex.change(
        path,
        "UPDATE PatientRecyclingOrder SET seq = seq + 3000000000",
        "UPDATE sqlite_sequence SET seq = 3000000500 WHERE name = 'PatientRecyclingOrder'",
    )
    convert(empty, path)
    assert rows(empty, "SELECT value FROM metadata WHERE type = 19 ORDER BY 1") == [("1",), ("2",)]
    assert rows(empty, "SELECT last_value, is_called FROM patientrecyclingordersequence") == [(2, True)]
    migrating.require_index(empty)


def test_an_empty_index_can_be_converted(empty: db.Target, tmp_path: Path) -> None:
    sqliteindex.create(tmp_path / "index").close()
    converted = convert(empty, tmp_path / "index")
    assert set(converted.resources.values()) == {0}
    migrating.require_index(empty)
    assert rows(empty, "SELECT last_value, is_called FROM changes_seq_seq") == [(1, False)]


# --- the file ------------------------------------------------------------------------------------------------


def test_what_a_crash_left_beside_the_file_is_read_through_a_copy(empty: db.Target, tmp_path: Path) -> None:
    made = sqliteindex.rich(tmp_path / "made" / "index")
    with closing(sqlite3.connect(made, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("UPDATE Metadata SET value = 'only in the log' WHERE type = 1024")
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in ("index", "index-wal"):
            (crashed / name).write_bytes((made.parent / name).read_bytes())
    before = everything(crashed)
    assert {"index", "index-wal"} == before.keys()
    convert(empty, crashed / "index")
    assert everything(crashed) == before
    assert rows(empty, "SELECT value FROM metadata WHERE type = 1024") == [("only in the log",)]


def test_a_file_in_wal_mode_that_was_closed_is_read_as_it_is(empty: db.Target, tmp_path: Path) -> None:
    path = sqliteindex.rich(tmp_path / "index")
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
    before = everything(tmp_path)
    convert(empty, path)
    assert everything(tmp_path) == before == {"index": before["index"]}


_HOLD = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute("PRAGMA locking_mode = EXCLUSIVE")
conn.execute("PRAGMA journal_mode = " + sys.argv[2])
conn.execute("BEGIN EXCLUSIVE")
conn.execute("COMMIT")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_file_that_a_program_works_with_is_refused(empty: db.Target, tmp_path: Path, mode: str) -> None:
    """As Orthanc does: it holds the lock for as long as it runs."""
    path = sqliteindex.rich(tmp_path / "index")
    command = [sys.executable, "-c", _HOLD, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match="another program works with"):
            convert(empty, path)
        holder.communicate()
    assert snapshot(empty) == {}


def test_no_program_can_write_to_the_file_meanwhile(empty: db.Target, tmp_path: Path) -> None:
    path = sqliteindex.rich(tmp_path / "index")
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA user_version = 1')"
    errors = []

    def try_to_write(progress: Progress) -> None:
        if progress.phase in ("copy", "prove"):
            command = [sys.executable, "-c", script, str(path)]
            errors.append(subprocess.run(command, capture_output=True, text=True).stderr)

    migrate.convert(empty, path, migrate.ConversionSettings(), report=try_to_write)
    assert len(errors) > 10
    assert all("database is locked" in error for error in errors)


@pytest.mark.parametrize(
    ("statements", "said", "hint"),
    [
        (("UPDATE GlobalProperties SET value = '5' WHERE property = 1",), "version 5 of the database", "--upgrade"),
        (("UPDATE GlobalProperties SET value = '7' WHERE property = 1",), "version '7'", "newer pgorthanc"),
        (("DELETE FROM GlobalProperties WHERE property = 1",), "version 'None'", "newer pgorthanc"),
        (("DROP TABLE GlobalProperties",), "no index of Orthanc", "IndexDirectory"),
        (("DROP TABLE Changes",), "lacks table Changes", "recover"),
        (("ALTER TABLE Metadata DROP COLUMN value",), "lacks column Metadata.value", "recover"),
        (("ALTER TABLE Labels RENAME COLUMN label TO other",), "primary key of table Labels", "recover"),
        (("DROP TABLE Changes", "CREATE TABLE Changes (seq, a)"), "primary key of table Changes", "recover"),
    ],
)  # fmt: skip
def test_what_is_no_usable_index_is_refused(
    empty: db.Target, tmp_path: Path, statements: tuple[str, ...], said: str, hint: str
) -> None:
    path = sqliteindex.rich(tmp_path / "index")
    sqliteindex.change(path, *statements)
    with pytest.raises(PgOrthancError, match=said) as error:
        convert(empty, path)
    assert hint in (error.value.hint or "")
    assert snapshot(empty) == {}


def test_files_of_other_kinds_are_refused(empty: db.Target, tmp_path: Path) -> None:
    text = tmp_path / "index"
    text.write_text("patient data, but no SQLite" * 100)
    for path, said in ((text, "damaged, or no SQLite index"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(PgOrthancError, match=said):
            convert(empty, path)


# --- the target ----------------------------------------------------------------------------------------------


def test_an_empty_index_that_is_there_is_filled_and_keeps_what_belongs_to_it(
    empty: db.Target, sound: Path, role: str
) -> None:
    """Grants of the administrator, and the name under which an Orthanc was started on it once."""
    init(empty, revision=6)
    run(
        empty,
        f"GRANT SELECT ON metadata, globalproperties TO {role}",
        "INSERT INTO serverproperties VALUES ('started-once', 5, 'old jobs')",
    )
    converted = convert(empty, sound, server_identifier=None)
    assert (converted.revision, converted.server_identifier) == (6, "started-once")
    assert rows(empty, f"SELECT has_table_privilege('{role}', 'metadata', 'SELECT')") == [(True,)]
    assert rows(empty, f"SELECT has_table_privilege('{role}', 'globalproperties', 'SELECT')") == [(True,)]
    assert dict(rows(empty, "SELECT property, value FROM serverproperties"))[5] == '{"Jobs": {}}'
    migrating.require_index(empty, 6)


def test_labels_that_an_index_of_plugin_4_0_cannot_hold_are_reported(empty: db.Target, sound: Path) -> None:
    """It is at revision 1, but without the table of labels."""
    init(empty, revision=1)
    run(empty, "DROP TABLE labels")
    with pytest.raises(RevisionError, match=r"revision 1 cannot hold \d+ rows of Labels"):
        convert(empty, sound)
    converted = convert(empty, sound, revision=1)
    labels = [finding.what for finding in converted.skipped if finding.table == "Labels"]
    assert len(labels) == 1
    assert "rows skipped: revision 1 cannot hold them" in labels[0]


@pytest.mark.parametrize(
    ("prepare", "options", "error", "said"),
    [
        (("SELECT createinstance('p', 's', 'e', 'i')",), {}, InUseError, "not empty: resources"),
        (
            ("INSERT INTO exportedresources (publicid) VALUES ('x')",),
            {},
            InUseError,
            "not empty: exportedresources",
        ),
        ((), {"revision": 6}, RevisionError, "holds an index at revision 10, wanted revision 6"),
        (("DROP INDEX publicindex",), {}, RevisionError, "index publicindex is missing"),
    ],
)
def test_a_target_that_cannot_be_filled_is_refused_and_left_alone(
    fresh: db.Target,
    sound: Path,
    prepare: tuple[str, ...],
    options: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    run(fresh, *prepare)
    before = snapshot(fresh)
    with pytest.raises(error, match=said):
        convert(fresh, sound, **options)
    assert snapshot(fresh) == before


def test_a_database_that_an_orthanc_works_with_is_refused(fresh: db.Target, sound: Path) -> None:
    with (
        db.session(db.Target(fresh.dsn, application="Orthanc")) as conn,
        db.advisory_lock(conn, db.LOCK_INDEX),
    ):
        with pytest.raises(InUseError, match=r"is in use: the Orthanc at .* holds the index lock"):
            convert(fresh, sound)


def test_another_schema_with_an_odd_name(target: db.Target, sound: Path) -> None:
    convert(target, sound)
    migrating.require_index(target)
    assert indexstate.differing(sqlitestate.expected(sound, SERVER), migrating.state(target)) == []


def test_what_a_lower_revision_cannot_hold_is_left_out_only_if_it_was_named(
    empty: db.Target, sound: Path
) -> None:
    init(empty, revision=4)
    before = snapshot(empty)
    with pytest.raises(
        RevisionError, match="revision 4 cannot hold 2 rows of KeyValueStores; 2 rows of Queues; 1 rows"
    ):
        convert(empty, sound)
    with pytest.raises(RevisionError, match="revision 4 cannot hold"):
        convert(empty, sound, revision=4, strict=True)
    assert snapshot(empty) == before
    assert convert(empty, sound, revision=4).skipped_rows == 2 + 2 + 1


# --- interruptions -------------------------------------------------------------------------------------------


def once(phase: str, action: Callable[[], object]) -> Report:
    """A callback that does something at the first progress of a phase."""
    actions = [action]

    def report(progress: Progress) -> None:
        if progress.phase == phase and actions:
            actions.pop()()

    return report


def test_until_it_is_complete_nobody_takes_it_for_an_index(empty: db.Target, sound: Path) -> None:
    migrating.interrupt(empty, sound, "build")
    assert rows(empty, "SELECT count(*) > 0 FROM resources") == [(True,)]
    for command in ("status", "verify schema", "upgrade", "init", f"import {sound} --storage-dir /nowhere"):
        words = [sys.executable, "-m", "pgorthanc_cli", *command.split(), "--uri", empty.dsn]
        ended = subprocess.run(words, capture_output=True, text=True)
        assert ended.returncode != 0, command
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("phase", ["copy", "build", "prove"])
def test_an_interrupted_run_goes_on(empty: db.Target, sound: Path, phase: str) -> None:
    migrating.interrupt(empty, sound, phase, after=4, server_identifier=SERVER)
    converted = convert(empty, sound)
    assert converted.resumed
    assert converted.verified
    migrating.require_index(empty)
    assert indexstate.differing(sqlitestate.expected(sound, SERVER), migrating.state(empty)) == []


def test_an_unfinished_run_of_another_file_has_to_be_given_up_by_name(
    empty: db.Target, sound: Path, tmp_path: Path
) -> None:
    migrating.interrupt(empty, sound, "prove", server_identifier=SERVER)
    other = sqliteindex.rich(tmp_path / "index", instances=130)
    with pytest.raises(PgOrthancError, match="which was another index or has changed since") as error:
        convert(empty, other)
    assert "--start-over" in (error.value.hint or "")
    with pytest.raises(PgOrthancError, match="unfinished conversion to revision 10"):
        convert(empty, other, revision=6, restart=True)
    converted = convert(empty, other, restart=True)
    assert not converted.resumed
    assert converted.resources["instances"] == 130
    migrating.require_index(empty)
    assert indexstate.differing(sqlitestate.expected(other, SERVER), migrating.state(empty)) == []


def test_a_damaged_record_of_an_unfinished_run_is_refused(empty: db.Target, sound: Path) -> None:
    """Its statements would be executed."""
    migrating.interrupt(empty, sound, "build", server_identifier=SERVER)
    plan = json.loads(rows(empty, "SELECT content FROM pgorthanc_migration WHERE name = 'run'")[0][0])
    damaged = [
        {**plan, "revision": True},
        {**plan, "keys": [["resources", "resources_pkey"]]},
        {**plan, "indexes": [["name", 5]]},
        {**plan, "tables": []},
        {**plan, "another": ""},
        {},
    ]
    for content in ("", "[]", *map(json.dumps, damaged)):
        run(empty, f"UPDATE pgorthanc_migration SET content = $${content}$$ WHERE name = 'run'")
        with pytest.raises(PgOrthancError, match="is damaged: it cannot be continued") as error:
            convert(empty, sound)
        assert "empty database or schema" in (error.value.hint or "")


def test_rows_that_somebody_changes_meanwhile_are_found(empty: db.Target, sound: Path) -> None:
    for statement in (
        "UPDATE metadata SET value = 'x' WHERE (id, type) IN (SELECT id, type FROM metadata LIMIT 1)",
        "DELETE FROM changes WHERE seq = 3",
    ):
        report = once("build", partial(run, empty, statement))
        with pytest.raises(PgOrthancError, match="differ from those of SQLite"):
            migrate.convert(empty, sound, migrate.ConversionSettings(restart=True), report=report)


def test_a_lost_connection_says_so_and_the_next_run_goes_on(
    empty: db.Target, sound: Path, admin: Connection
) -> None:
    def end_sessions() -> None:
        with admin.cursor() as cur:
            name = db.parse_dsn(empty.dsn)["dbname"]
            cur.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    settings = migrate.ConversionSettings(server_identifier=SERVER)
    with pytest.raises(ConnectError, match="was lost"):
        migrate.convert(empty, sound, settings, report=once("copy", end_sessions))
    assert convert(empty, sound).resumed
    migrating.require_index(empty)


# --- the command ---------------------------------------------------------------------------------------------

KEYS = {
    "resources", "rows", "repaired", "skipped", "verified", "elapsed_s", "rows_per_s", "revision", "server_identifier",
}  # fmt: skip


def pgorthanc(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", "migrate-sqlite", *map(str, words)],
        capture_output=True,
        text=True,
    )


def test_the_command_and_its_json(empty: db.Target, sound: Path) -> None:
    ended = pgorthanc(sound, "--uri", empty.dsn, "--server-identifier", SERVER, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found.keys() >= KEYS
    assert found["verified"] is True
    assert found["rows"]["resources"] == 264
    assert "copy: rows" in ended.stderr
    assert any('"DatabaseServerIdentifier": "the-server"' in step for step in found["steps"])


def test_the_configuration_names_index_storage_and_identifier(
    empty: db.Target, sound: Path, tmp_path: Path, new_database: Callable[..., db.Target]
) -> None:
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "IndexDirectory": str(sound.parent),
                "StorageDirectory": str(tmp_path),
                "DatabaseServerIdentifier": "by-configuration",
                "PostgreSQL": {"ConnectionUri": empty.dsn},
            }
        )
    )
    configuration.chmod(0o600)
    ended = pgorthanc("--config", configuration, "--plugin", "9.0", "--json", "-q")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["revision"], found["server_identifier"]) == (6, "by-configuration")


def test_wrong_usage(sound: Path, empty: db.Target, tmp_path: Path) -> None:
    for words, said in (
        ((), "which index?"),
        ((sound, "--verify-files"), "where are the attachments?"),
        ((sound, "--report", tmp_path / "report.txt"), "the name must end in .json or .html"),
        ((sound, "--report", tmp_path / "none" / "report.json"), "cannot be written"),
        ((sound, "--server-identifier", "x" * 65), "65 characters, wanted 1 to 64"),
        ((sound, "--to-revision", "6", "--plugin", "9.0"), "both name the target revision"),
    ):
        ended = pgorthanc(*words, "--uri", empty.dsn)
        assert (ended.returncode, ended.stdout) == (UsageError.exit_code, "")
        assert said in ended.stderr
    assert snapshot(empty) == {}


def test_the_password_is_not_shown(sound: Path, empty: db.Target) -> None:
    uri = f"{empty.dsn} password=secret%word"
    ended = pgorthanc(sound, "--uri", uri)
    assert ended.returncode == 0
    assert "secret%word" not in ended.stdout + ended.stderr
    assert ended.stdout.startswith("Converted the SQLite index with "), ended.stderr
    assert '"EnableIndex": true' in ended.stdout
