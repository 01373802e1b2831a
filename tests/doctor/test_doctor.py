"""What `doctor` finds: real faults in real databases and servers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, doctor, render
from pgorthanc_cli.doctor import server
from pgorthanc_cli.doctor.model import CHECKS, RegisteredCheck, Subject, Verdict
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.views.doctor import page, prometheus
from tests.support import schemas
from tests.support.bouncer import bouncer
from tests.support.real_servers import Server

KEYS = {"name", "status", "message", "hint", "statements", "command"}
SECRET = "Planted-s3cret"
PATIENT = "PLANTED^PATIENT"


def examined(target: db.Target, name: str, *, deep: bool = False) -> doctor.Check:
    (check,) = doctor.examine(target, [name], deep=deep).checks
    return check


def pgorthanc(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", *map(str, words)], capture_output=True, text=True
    )


def test_a_new_index_is_well(fresh: db.Target, trigram: str) -> None:
    health = doctor.examine(fresh)
    names = [name for name in doctor.check_names() if name != "storage"]  # no journal is named
    assert [check.name for check in health.checks] == names
    # fsync and who may log in are matters of the server that the tests were given.
    beside = {"settings", "authentication", "connections", "replication", "disk", "transactions"}
    bad = [check for check in health.checks if check.status != "OK" and check.name not in beside]
    assert [check.name for check in bad] == ([] if trigram == "valid" else ["trigram"])
    assert all(check.hint is None for check in health.checks if check.status == "OK")


def test_without_an_index_that_is_what_is_wrong(empty: db.Target) -> None:
    checks = {check.name: check for check in doctor.examine(empty).checks}
    assert checks["revision"].status == "CRITICAL"
    assert checks["revision"].command == "init"
    assert not {"schema", "indexes", "counters"} & checks.keys()


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    health = doctor.examine(db.Target(f"host={tmp_path}"))
    assert [(check.name, check.status) for check in health.checks] == [("connection", "CRITICAL")]
    assert pgorthanc("doctor", "--host", tmp_path).returncode == 3


def test_a_check_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no check named tea"):
        doctor.examine(db.Target(""), ["tea"])


@pytest.mark.parametrize(
    ("damage", "name", "status", "said"),
    [
        ("DROP INDEX childrenindex2", "indexes", "CRITICAL", "no index serves: the children of a resource"),
        ("DROP TRIGGER incrementchildcount ON resources", "schema", "CRITICAL", "incrementchildcount"),
        ("UPDATE globalproperties SET value = '9' WHERE property = 4", "revision", "WARNING", "recorded as 9"),
        (
            "INSERT INTO globalintegerschanges (key, value) SELECT 5, 0 FROM generate_series(1, 100000)",
            "counters", "WARNING", "100,000 or more",
        ),
        (
            "INSERT INTO resources (resourcetype, publicid) VALUES (0, 'p')",
            "child-counts", "WARNING", "never counted",
        ),
        ("ALTER TABLE metadata SET (autovacuum_enabled = false)", "vacuum", "WARNING", "off for table metadata"),
        ("ALTER DATABASE {} SET synchronous_commit = off", "settings", "", "synchronous_commit is off (by database)"),
        ("ALTER DATABASE {} SET statement_timeout = 500", "settings", "", "statement_timeout is 500 ms (by database)"),
        ("ALTER DATABASE {} CONNECTION LIMIT 1", "connections", "CRITICAL", "1 of 1 in this database"),
    ],
)  # fmt: skip
def test_damage_is_named(fresh: db.Target, damage: str, name: str, status: str, said: str) -> None:
    schemas.run(fresh, damage.format(db.parse_dsn(fresh.dsn)["dbname"]))
    check = examined(fresh, name)
    assert said in check.message
    assert check.status == (status or check.status)
    assert check.status != "OK"
    assert check.hint


def test_an_invalid_index(fresh: db.Target) -> None:
    schemas.run(fresh, *schemas.FILL)
    with pytest.raises(PgOrthancError):
        schemas.run(fresh, "CREATE UNIQUE INDEX CONCURRENTLY spoilt ON attachedfiles (filetype)")
    check = examined(fresh, "indexes")
    assert (check.status, check.message) == (
        "WARNING",
        "spoilt is invalid, and the plugin does not need it",
    )


def test_a_missing_trigram_index(fresh: db.Target, trigram: str) -> None:
    schemas.run(fresh, f"DROP INDEX IF EXISTS {catalog.TRIGRAM_INDEX}")
    check = examined(fresh, "trigram")
    assert check.status == "WARNING"
    assert ("pg_trgm" in check.message) == (trigram == "unavailable")


def test_counters_are_recounted_only_when_asked(fresh: db.Target) -> None:
    schemas.run(fresh, *schemas.FILL, "UPDATE globalintegers SET value = 77 WHERE key = 2")
    assert examined(fresh, "schema").status == "OK"
    assert "patients" in examined(fresh, "schema", deep=True).message


def test_an_old_transaction(fresh: db.Target) -> None:
    with (
        db.session(fresh, readonly=True, autocommit=True) as ours,
        db.session(replace(fresh, application="left open")) as conn,
    ):
        assert db.value(conn, "SELECT 1")
        verdict = server.transactions(Subject(ours, fresh), long_s=0.0)
        assert verdict.status == "WARNING"
        assert f"pid {conn.info.backend_pid} (left open), idle in transaction" in verdict.message
    schemas.run(fresh, "SELECT 1")


def test_a_slot_that_nobody_reads(fresh: db.Target, admin: Connection) -> None:
    name = f"pgorthanc_test_{os.getpid()}"
    with admin.cursor() as cur:
        cur.execute("SELECT pg_create_physical_replication_slot(%s, true)", (name,))
        try:
            check = examined(fresh, "replication")
        finally:
            cur.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    assert check.status == "WARNING"
    assert f"slot {name} is not in use and keeps" in check.message


def test_a_pooler_that_shares_sessions() -> None:
    behind = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "")
    try:
        behind.create().start()
        with bouncer(make_dsn(behind.tcp, user="postgres"), "transaction") as dsn:
            assert examined(db.Target(dsn), "pooler").status == "CRITICAL"
    finally:
        behind.remove()


def test_the_pooler_is_looked_for_before_anything_else() -> None:
    assert doctor.check_names()[0] == "pooler"


FAILURES: dict[str, tuple[Callable[[Subject], object], str]] = {
    "a column that this server lacks": (
        lambda s: db.rows(s.conn, "SELECT no_such FROM pg_class"),
        "SQLSTATE 42703",
    ),
    "no right": (
        lambda s: db.rows(s.conn, "SET ROLE pg_monitor; SELECT * FROM pg_authid"),
        "permission denied",
    ),
    "a time limit": (
        lambda s: db.rows(s.conn, "SET statement_timeout = 50; SELECT pg_sleep(9)"),
        "statement timeout",
    ),
    "a transaction left open": (lambda s: db.rows(s.conn, "BEGIN; SELECT no_such FROM pg_class"), "no_such"),
    "the session ended": (
        lambda s: db.rows(s.conn, "SELECT pg_terminate_backend(pg_backend_pid())"),
        "not checked: ",
    ),
    "a file that may not be read": (lambda s: Path("/proc/1/mem").read_bytes()[:0] or 1 / 0, "unexpected "),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_check_that_fails_is_unknown_and_the_others_go_on(
    fresh: db.Target, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = {check.name: check.status for check in doctor.examine(fresh).checks}
    failure, reason = FAILURES[name]

    def fail(subject: Subject) -> Verdict:
        failure(subject)
        raise AssertionError

    monkeypatch.setitem(CHECKS, "clock", RegisteredCheck(fail, needs_index=False))
    checks = {check.name: check for check in doctor.examine(fresh).checks}
    assert checks["clock"].status == "UNKNOWN"
    assert reason in checks["clock"].message
    assert "\n" not in checks["clock"].message
    assert checks["clock"].hint or name == "the session ended"
    assert list(checks) == list(before)
    # A busy machine changes the measured time of a round trip.
    varying = {"clock", "transactions", "round-trip"}
    passing = {name for name in before if before[name] == "OK" and name not in varying}
    assert checks["round-trip"].status != "UNKNOWN"
    assert {name for name in passing if checks[name].status != "OK"} == set()


def test_slots_of_a_server_without_wal_status(fresh: db.Target) -> None:
    """PostgreSQL 12: the query must not name the column. What it names, an older server has to have."""
    with db.session(fresh, readonly=True, autocommit=True) as conn:
        assert all(wal_status is None for _, _, wal_status, _ in server.slots(conn, 120000))


@pytest.fixture
def stranger(fresh: db.Target, admin: Connection, role: str) -> db.Target:
    """A role that may log in, and nothing else."""
    with admin.cursor() as cur:
        cur.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{SECRET}'")
    return db.Target(make_dsn(fresh.dsn, user=role, password=SECRET))


def test_without_rights_it_says_which_are_missing(stranger: db.Target) -> None:
    health = doctor.examine(stranger)
    checks = {check.name: check for check in health.checks}
    assert "check-lock (statements of others): needs pg_read_all_stats" in checks["rights"].message
    assert "upgrade, downgrade: needs to be" in checks["rights"].message
    for check in health.checks:
        assert check.status in ("OK", "UNKNOWN") or check.name in ("rights", "settings", "round-trip"), check
        assert check.hint or check.status == "OK", check
    assert [name for name in checks if checks[name].status == "UNKNOWN"]


def test_the_json_contract_and_the_exit_code(fresh: db.Target) -> None:
    schemas.run(fresh, "DROP INDEX childrenindex2")
    run = pgorthanc("doctor", "--uri", fresh.dsn, "--json", "indexes", "revision")
    document = json.loads(run.stdout)
    assert set(document) >= {"checks", "status"}
    assert [set(check) for check in document["checks"]] == [KEYS] * 2
    assert (document["status"], run.returncode) == ("CRITICAL", 6)
    assert pgorthanc("doctor", "--uri", fresh.dsn, "revision").returncode == 0


def test_the_screen_of_an_index_without_problems(fresh: db.Target) -> None:
    run = pgorthanc("doctor", "--uri", fresh.dsn, "revision", "counters")
    where = db.parse_dsn(fresh.dsn)
    assert run.stdout.splitlines()[0] == "All 2 checks passed."
    assert f"database {where['dbname']} at " in run.stdout.splitlines()[1]
    assert (run.stderr, run.returncode) == ("", 0)
    assert pgorthanc("doctor", "--uri", fresh.dsn, "counters", "--quiet").stdout == ""


def test_the_screen_names_the_problem_and_its_fix(fresh: db.Target) -> None:
    schemas.run(fresh, "ALTER TABLE metadata SET (autovacuum_enabled = false)")
    run = pgorthanc("doctor", "--uri", fresh.dsn, "revision", "vacuum")
    assert run.stdout.startswith("1 warning: vacuum. 1 of 2 checks passed.")
    assert (run.stderr, run.returncode) == ("", 6)
    (fix,) = (line for line in run.stdout.splitlines() if "ALTER TABLE" in line)
    schemas.run(fresh, fix)
    assert pgorthanc("doctor", "--uri", fresh.dsn, "vacuum").returncode == 0


def test_a_command_to_paste_has_the_connection_but_no_password(fresh: db.Target, stranger: db.Target) -> None:
    schemas.run(fresh, "DROP INDEX childrenindex2")
    run = pgorthanc("doctor", "--uri", make_dsn(fresh.dsn, password=SECRET), "indexes")
    (command,) = (line for line in run.stdout.splitlines() if "pgorthanc verify schema --print-sql" in line)
    assert "--uri" in command
    assert SECRET not in run.stdout


def test_for_monitoring_systems(fresh: db.Target, tmp_path: Path) -> None:
    schemas.run(fresh, "DROP INDEX childrenindex2")
    at = ("doctor", "--uri", fresh.dsn, "--nagios")
    critical = pgorthanc(*at, "indexes", "revision", "--prometheus", tmp_path / "p.prom")
    assert critical.returncode == 2
    assert critical.stdout.startswith(
        "DOCTOR CRITICAL - indexes: no index serves: the children of a resource | "
    )
    assert critical.stdout.count("\n") == 1
    assert pgorthanc(*at, "revision").returncode == 0
    assert pgorthanc(*at, "--nonsense").returncode == 3
    families = {f.name: f for f in text_string_to_metric_families((tmp_path / "p.prom").read_text())}
    levels = {s.labels["check"]: s.value for s in families["pgorthanc_check_status"].samples}
    assert levels == {"indexes": 2, "revision": 0}
    assert families["pgorthanc_revision"].samples[0].value == 10


def test_a_page_shows_names_as_they_are(fresh: db.Target) -> None:
    health = doctor.examine(fresh, ["revision"])
    odd = replace(health, server='<script>alert("x")</script>')
    assert "<script>" not in render.html(page(odd, lambda *words: " ".join(words)))
    (family,) = [
        f for f in text_string_to_metric_families(prometheus(odd)) if f.name == "pgorthanc_check_status"
    ]
    assert family.samples[0].labels["target"] == odd.server


def test_nothing_secret_is_in_a_bundle(
    stranger: db.Target, fresh: db.Target, new_database: Callable[..., db.Target], tmp_path: Path
) -> None:
    peers = json.dumps({"peer": {"Url": "http://x", "Password": SECRET}})
    schemas.run(
        fresh,
        *schemas.FILL,
        f"INSERT INTO globalproperties VALUES (21, '{peers}')",
        f"INSERT INTO maindicomtags VALUES (1, 16, 16, '{PATIENT}')",
    )
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(
        json.dumps({"PostgreSQL": {"Password": SECRET}, "RegisteredUsers": {"alice": SECRET}, "Name": "pacs"})
    )
    with psycopg2.connect(fresh.dsn) as conn, conn.cursor() as cur:
        cur.execute(f"SELECT count(*) FROM maindicomtags WHERE value = '{PATIENT}'")
        for target in (fresh, stranger):
            archive = tmp_path / f"{db.parse_dsn(target.dsn)['user']}.tar.gz"
            run = pgorthanc("support-bundle", "--uri", target.dsn, "--config", configuration, archive)
            assert run.returncode == 0, run.stderr
            assert run.stdout.startswith(f"Wrote {archive} with 14 files")
            assert stat.S_IMODE(archive.stat().st_mode) == 0o600
            content = {}
            with tarfile.open(archive) as tar:
                for entry in tar:
                    file = tar.extractfile(entry)
                    assert file
                    content[entry.name] = file.read().decode()
            assert len(content) == 14
            for name, text in (*content.items(), ("output", run.stdout + run.stderr)):
                assert SECRET not in text, name
                assert PATIENT not in text, name
                assert not name.endswith(".json") or json.loads(text)
    conn.close()
    again = pgorthanc(
        "support-bundle", "--uri", fresh.dsn, tmp_path / f"{db.parse_dsn(fresh.dsn)['user']}.tar.gz"
    )
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_what_takes_too_long_is_cut_from_a_bundle(fresh: db.Target, tmp_path: Path) -> None:
    schemas.run(fresh, *schemas.FILL)
    health = doctor.examine(fresh, ["revision"])
    with db.session(fresh) as other, other.cursor() as cur:
        cur.execute("LOCK TABLE attachedfiles IN ACCESS EXCLUSIVE MODE")
        written = doctor.bundle(fresh, health, tmp_path / "bundle.tar.gz", page="", limit_s=0.3)
    assert "storage.json" in written.cut
    assert not {"settings.json", "sessions.json", "locks.json", "doctor.json"} & {*written.cut}
    assert set(written.cut) < set(written.holds)
    with tarfile.open(written.file) as tar:
        file = tar.extractfile("bundle/storage.json")
        assert file
        assert json.load(file) == {"cut": "the server took longer than 0.3 s for one statement"}
    complete = doctor.bundle(fresh, health, tmp_path / "complete.tar.gz", page="")
    assert complete.cut == ()


def test_missing_child_counts_are_not_looked_for_at_any_cost(fresh: db.Target) -> None:
    schemas.run(fresh, *schemas.FILL, "UPDATE resources SET childcount = NULL")
    run = CHECKS["child-counts"].run
    with (
        db.session(fresh, readonly=True, autocommit=True) as conn,
        db.session(fresh) as other,
        other.cursor() as cur,
    ):
        subject = Subject(conn, fresh, scan_limit_s=0.2)
        assert "never counted" in run(replace(subject, scan_limit_s=60)).message
        assert subject.catalog  # before the lock
        cur.execute("LOCK TABLE resources IN ACCESS EXCLUSIVE MODE")
        verdict = run(subject)
    assert verdict.status == "OK"
    assert "missing ones were not looked for" in verdict.message
