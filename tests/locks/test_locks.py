"""Who holds Orthanc's locks, which Orthancs work without one, and what `check-lock` says and does about it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner, Result
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db, locks
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.locks import sessions
from pgorthanc_cli.progress import Progress
from tests.support.real_servers import wait_until
from tests.support.schemas import as_role, run

NAME = "Doe^John"
UUID = '"2e126b54-0b34-4e35-beb6-455ccd56538f"'
RELEASED = f"DEALLOCATE {UUID}"


@contextmanager
def connected(target: db.Target, *queries: str, name: str = "") -> Iterator[Connection]:
    """A session that has done this, as a client without a name does it."""
    with closing(psycopg2.connect(make_dsn(target.dsn, application_name=name))) as conn:
        conn.autocommit = True
        with conn.cursor() as cur:
            for query in queries:
                cur.execute(query)
        yield conn


@contextmanager
def orthanc(target: db.Target, *keys: int, name: str = "") -> Iterator[Connection]:
    """A session as Debian's plugin leaves it after its start, with these locks."""
    held = [f"SELECT pg_advisory_lock({key})" for key in keys]
    with connected(target, *held, f"PREPARE {UUID} AS SELECT 1", RELEASED, name=name) as conn:
        yield conn


def watcher(conn: Connection, **options: Any) -> locks.Watcher:
    return locks.Watcher(conn, "public", **options)


def inspect(target: db.Target, **options: bool | None) -> locks.Usage:
    with db.session(target, readonly=True, autocommit=True) as conn:
        return watcher(conn, **options).inspect()


def check(target: db.Target, *words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, ["check-lock", "--uri", target.dsn, *words], input=stdin)


def document(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# The locks


def test_a_free_database(fresh: db.Target) -> None:
    result = check(fresh, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = document(result)
    assert [(lock["key"], lock["name"], lock["held"]) for lock in found["locks"]] == [
        (42, "index", False),
        (43, "storage", False),
        (44, "database set-up", False),
    ]
    assert (found["orthancs"], found["problems"], found["errors"], found["notes"]) == ([], [], [], [])


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (42, "The PostgreSQL database is locked by another instance of Orthanc"),
        (43, "The PostgreSQL database is locked by another instance of Orthanc"),
        (44, "Cannot acquire a transient advisory lock"),
    ],
)
def test_the_holder_of_a_lock_and_what_an_orthanc_would_say(fresh: db.Target, key: int, said: str) -> None:
    with orthanc(fresh, key) as conn:
        result = check(fresh, "--json")
        role = conn.info.user
        pid = conn.info.backend_pid
    assert result.exit_code == 5
    found = document(result)
    [lock] = [lock for lock in found["locks"] if lock["held"]]
    assert (lock["key"], lock["pid"], lock["role"], lock["application"]) == (key, pid, role, "")
    assert (lock["state"], lock["last_statement"]) == ("idle", "prepared statement released")
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(lock["since"])) < timedelta(minutes=1)
    assert lock["since"] <= lock["idle_since"]
    [error] = found["errors"]
    assert error.startswith(f'"{said}": pid {pid} (no name) holds lock {key}')
    [one] = found["orthancs"]
    assert (one["pid"], one["locked"], one["sessions"]) == (pid, key != 44, 1)
    assert f"holds lock {key} ({lock['name']})" in one["evidence"]
    assert result.stderr == ""


def test_locks_of_other_databases_and_of_other_numbers_do_not_count(
    fresh: db.Target, empty: db.Target
) -> None:
    with (
        orthanc(empty, 42),
        connected(fresh, "SELECT pg_advisory_lock(41), pg_advisory_lock(42, 42)", name="other"),
    ):
        assert inspect(fresh).free


def test_no_lock_is_ever_tried(fresh: db.Target) -> None:
    """An Orthanc tries once and gives up: a look at the wrong moment must not be in its way."""
    stop = threading.Event()

    def looking() -> None:
        while not stop.is_set():
            inspect(fresh)

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        with connected(fresh, name="psql") as conn, conn.cursor() as cur:
            for _ in range(300):
                cur.execute(
                    "SELECT pg_try_advisory_lock(k), pg_advisory_unlock(k) FROM generate_series(42, 44) k"
                )
                assert cur.fetchall() == [(True, True)] * 3
    finally:
        stop.set()
        thread.join()


# Orthancs without a lock


@pytest.mark.parametrize(
    ("queries", "certain"),
    [
        ([f"PREPARE {UUID} AS SELECT 1", RELEASED], True),
        (["PREPARE p(int) AS SELECT value FROM GlobalIntegers WHERE key = $1"], True),
        (["BEGIN", "COMMIT"], False),
        (["BEGIN", "ABORT"], False),
    ],
)
def test_an_orthanc_without_a_lock(fresh: db.Target, queries: list[str], certain: bool) -> None:
    with connected(fresh, *queries) as conn:
        found = inspect(fresh)
        pid = conn.info.backend_pid
    assert [lock.held for lock in found.locks] == [False] * 3
    [one] = found.orthancs
    assert (one.pid, one.locked, one.certain, one.plugin) == (pid, False, certain, "6.0 or later")
    assert one.evidence
    assert found.status == "OK"
    assert any("no application name" in note for note in found.notes)
    assert any("holds no lock" in note for note in found.notes) == certain


@pytest.mark.parametrize(
    ("name", "queries"),
    [
        ("", []),
        ("", ["SELECT 1"]),
        ("", ["BEGIN", "ROLLBACK"]),
        ("psql", ["BEGIN", "COMMIT"]),
        ("psql", ["SELECT * FROM updatestatistics()"]),
        ("pgorthanc import", ["SELECT pg_advisory_lock(7)", "PREPARE p AS SELECT * FROM resources LIMIT $1"]),
    ],
)
def test_others_are_not_taken_for_an_orthanc(fresh: db.Target, name: str, queries: list[str]) -> None:
    with connected(fresh, *queries, name=name):
        assert inspect(fresh).orthancs == ()


def test_an_orthanc_is_known_by_its_housekeeping(fresh: db.Target, role: str) -> None:
    """Even where the role sees no statement of anybody."""
    stop = threading.Event()

    def keep_house() -> None:
        with db.session(fresh, autocommit=True) as conn, conn.cursor() as cur:
            while not stop.wait(0.2):
                cur.execute("SELECT updateinvalidchildcounts(), updatestatistics()")

    thread = threading.Thread(target=keep_house)
    thread.start()
    try:
        with connected(fresh, "BEGIN", "COMMIT"):
            [one] = inspect(fresh).orthancs
            hidden = inspect(as_role(fresh, role))
    finally:
        stop.set()
        thread.join()
    assert (one.certain, one.plugin) == (True, "7.0 or later")
    assert hidden.orthancs == ()
    assert (hidden.housekeeping, hidden.free) == (True, False)
    assert hidden.summary == "an Orthanc does the housekeeping of the index"


def test_a_name_is_enough(fresh: db.Target) -> None:
    with connected(fresh, name="Orthanc of ward 3"):
        [one] = inspect(fresh).orthancs
    assert (one.certain, one.application) == (True, "Orthanc of ward 3")


def test_a_command_of_ours_holds_a_lock_but_is_no_orthanc(fresh: db.Target) -> None:
    with db.session(fresh) as conn, db.advisory_lock(conn, db.LOCK_DATABASE_SETUP):
        found = inspect(fresh)
    assert (len(found.held), found.orthancs, found.free, found.status) == (1, (), False, "WARNING")


def test_patient_data_in_statements_stay_where_they_are(fresh: db.Target) -> None:
    query = f"SELECT * FROM maindicomtags WHERE value = '{NAME}' AND $1 = $1"
    with orthanc(fresh, 42), connected(fresh, f"PREPARE p(text) AS {query}", name="Orthanc"):
        shown = check(fresh, "--json").output + check(fresh).output
        assert NAME not in shown + repr(inspect(fresh))
        with db.session(fresh, autocommit=True) as conn:
            assert NAME not in repr(sessions.observe(conn))
    assert "maindicomtags" in shown


def test_what_the_role_may_not_see(fresh: db.Target, role: str, admin: Connection) -> None:
    """The temporary tables are there for everybody to see, from PostgreSQL 16 on for each session."""
    with (
        orthanc(fresh, 42) as holder,
        connected(fresh, "SELECT createdeletedfilestemporarytable()", name="pacs"),
    ):
        pid = holder.info.backend_pid
        found = inspect(as_role(fresh, role))
        run(fresh, f"GRANT pg_read_all_stats TO {role}")
        seen = inspect(as_role(fresh, role))
    assert [(lock.key, lock.pid, lock.state) for lock in found.held] == [(42, pid, None)]
    names = {one.application for one in found.orthancs}
    assert names == ({"", "pacs"} if admin.server_version >= 160000 else {""})
    [note] = [note for note in found.notes if "GRANT" in note]
    assert note.startswith("2 of 2 other sessions")
    assert f"GRANT pg_read_all_stats TO {role}" in note
    assert found.orthancs[0].named.startswith("the Orthanc at an address that is hidden")
    assert not any("GRANT" in note for note in seen.notes)
    assert [lock.state for lock in seen.held] == ["idle"]


# What is wrong


def test_a_second_orthanc_beside_one_with_a_lock(fresh: db.Target) -> None:
    with orthanc(fresh, 42, 43, name="Orthanc A"), orthanc(fresh, name="Orthanc B") as other:
        found = inspect(fresh)
        [problem] = found.problems
        assert f"(pid {other.info.backend_pid}) works without a lock" in problem
    assert found.status == "CRITICAL"


def test_two_orthancs_without_locks_are_no_problem(fresh: db.Target) -> None:
    with orthanc(fresh, name="Orthanc A"), orthanc(fresh, name="Orthanc B"):
        found = inspect(fresh)
    assert (len(found.orthancs), found.problems) == (2, ())


def test_a_lock_that_was_lost_while_we_looked(fresh: db.Target) -> None:
    with db.session(fresh, autocommit=True) as conn, ExitStack() as holding, ExitStack() as others:
        watching = watcher(conn)
        pid = holding.enter_context(orthanc(fresh, 42)).info.backend_pid  # at its start, it connects first
        others.enter_context(orthanc(fresh))
        assert watching.inspect().problems == ()
        holding.close()
        wait_until(lambda: not watching.inspect().held)
        for _ in range(2):  # it stays wrong
            [problem] = watching.inspect().problems
            assert problem.startswith("lock 42 (index) was lost")
            assert f"pid {pid}, which held it, has ended" in problem
        with orthanc(fresh, 42):  # another one starts, and the first goes on without
            [problem] = watching.inspect().problems
            assert "works without a lock on a database" in problem


@pytest.mark.parametrize(
    ("held", "query", "lost"),
    [
        (43, "PREPARE p(int) AS SELECT value FROM GlobalIntegers WHERE key = $1", 42),
        (42, "PREPARE p(text) AS SELECT content FROM StorageArea WHERE uuid = $1", 43),
    ],
)
def test_a_lock_that_was_lost_before_we_looked(fresh: db.Target, held: int, query: str, lost: int) -> None:
    with orthanc(fresh, held), connected(fresh, query):
        [problem] = inspect(fresh).problems
    assert problem.startswith(f"lock {lost} (")


@pytest.mark.parametrize(("lock", "problems"), [(True, 1), (False, 0), (None, 0)])
def test_what_the_configuration_says_of_the_lock(fresh: db.Target, lock: bool | None, problems: int) -> None:
    with orthanc(fresh):
        assert len(inspect(fresh, lock=lock).problems) == problems


# The screen


def test_an_orthanc_at_work_is_no_error(fresh: db.Target) -> None:
    with orthanc(fresh, 42, 43, name="Orthanc") as conn:
        result = check(fresh)
        quiet = check(fresh, "--quiet")
        place, pid = str(db.endpoint(conn)), conn.info.backend_pid
    assert (result.exit_code, result.stderr) == (5, "")
    assert result.stdout.startswith(f"One Orthanc is using {place}. This is normal.\n")
    assert f"Orthanc    local socket, Orthanc, pid {pid}, role " in result.stdout
    assert "Locks      index (42) and storage (43)\n" in result.stdout
    assert "    The PostgreSQL database is locked by another instance of Orthanc\n" in result.stdout
    assert "error" not in result.stdout.lower()
    assert (quiet.exit_code, quiet.output) == (5, "")


def test_the_commands_on_the_screen(fresh: db.Target) -> None:
    with orthanc(fresh, 42, name="Orthanc"):
        screen = check(fresh).stdout
        wait, terminate = re.findall("^    pgorthanc (.*)", screen, re.MULTILINE)
        done = CliRunner().invoke(cli.main, [*shlex.split(terminate), "--yes"])
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("Ended 1 session. No Orthanc is using database ")
    freed = CliRunner().invoke(cli.main, shlex.split(wait))
    assert (freed.exit_code, freed.stdout.split()[:3]) == (0, ["No", "Orthanc", "is"])


# Waiting, watching, ending


def test_waiting_until_it_is_free(fresh: db.Target) -> None:
    with ExitStack() as stack, db.session(fresh, autocommit=True) as conn:
        stack.enter_context(orthanc(fresh, 42))
        reports = []

        def report(progress: Progress) -> None:
            reports.append(progress.what)
            stack.close()

        assert locks.wait_until_free(watcher(conn), 60, report).free
        assert "lock 42 (index) is held" in reports[0]


def test_waiting_in_vain(fresh: db.Target) -> None:
    with orthanc(fresh, 42):
        result = check(fresh, "--wait", "0.1")
    assert result.exit_code == 5
    assert "waiting: lock 42 (index) is held by" in result.stderr
    assert result.stdout.startswith("One Orthanc is still using database ")


def test_watching(fresh: db.Target) -> None:
    command = [sys.executable, "-m", "pgorthanc_cli", "check-lock", "--uri", fresh.dsn, "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["orthancs"] == []
        with orthanc(fresh, 42):
            assert json.loads(process.stdout.readline())["locks"][0]["held"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_watching_in_a_pipe_shows_each_state_once(fresh: db.Target) -> None:
    command = [sys.executable, "-m", "pgorthanc_cli", "check-lock", "--uri", fresh.dsn, "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("No Orthanc is using database ")
        with orthanc(fresh, 42, name="Orthanc"):
            lines = list(itertools.takewhile(lambda line: "normal" not in line, process.stdout))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not any("No Orthanc" in line for line in lines)


def test_ending_one_session_frees_its_lock(fresh: db.Target) -> None:
    with orthanc(fresh, 42) as holder, orthanc(fresh, 43, name="Orthanc B"):
        result = check(fresh, "--terminate", str(holder.info.backend_pid), "--yes", "--json")
        found = document(result)
        assert [session["pid"] for session in found["ended"]] == [holder.info.backend_pid]
        assert (found["remaining"], found["freed"], result.exit_code) == ([], False, 5)
        with pytest.raises(psycopg2.Error), holder.cursor() as cur:
            cur.execute("SELECT 1")
        assert [lock["key"] for lock in found["locks"] if lock["held"]] == [43]


def test_ending_all_spares_those_that_are_no_orthanc(fresh: db.Target) -> None:
    with (
        orthanc(fresh, 42) as first,
        orthanc(fresh, name="Orthanc B") as second,
        connected(fresh, "SELECT 1", name="psql") as person,
        db.session(fresh, autocommit=True) as ours,
    ):
        result = check(fresh, "--terminate", "all", "--yes", "--json")
        found = document(result)
        assert {session["pid"] for session in found["ended"]} == {
            first.info.backend_pid,
            second.info.backend_pid,
        }
        assert (found["freed"], result.exit_code) == (True, 0)
        for survivor in (person, ours):
            with survivor.cursor() as cur:
                cur.execute("SELECT 1")


def test_nobody_is_ended_without_an_answer(fresh: db.Target) -> None:
    with orthanc(fresh, 42) as holder:
        result = check(fresh, "--terminate", "all")
        assert result.exit_code == 2
        assert "add --yes" in result.stderr
        assert f"pid {holder.info.backend_pid}" in result.stderr
        assert [lock.key for lock in inspect(fresh).held] == [42]


def test_sessions_of_other_databases_are_not_ended(fresh: db.Target, empty: db.Target) -> None:
    with orthanc(empty, 42) as other, db.session(fresh, autocommit=True) as conn:
        pid = other.info.backend_pid
        with pytest.raises(UsageError, match=f"no other session of database .* has pid {pid}$"):
            locks.choose(conn, pid)
        with pytest.raises(UsageError):
            locks.choose(conn, conn.info.backend_pid)
        assert locks.choose(conn, "all") == []


def test_a_role_that_may_not_end_sessions(fresh: db.Target, role: str) -> None:
    with orthanc(fresh, 42), db.session(as_role(fresh, role), autocommit=True) as conn:
        with pytest.raises(PgOrthancError, match="may not end") as caught:
            locks.terminate(conn, watcher(conn), locks.choose(conn, "all"))
        assert "pg_signal_backend" in (caught.value.hint or "")


# Monitoring and wrong usage


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ((), 0, "CHECK-LOCK OK - no session holds"),
        ((42, 43), 0, "CHECK-LOCK OK - lock 42 (index) is held by pid"),
        ((44,), 1, "CHECK-LOCK WARNING - lock 44"),
    ],
)
def test_nagios(fresh: db.Target, keys: tuple[int, ...], code: int, said: str) -> None:
    with ExitStack() as stack:
        if keys:
            stack.enter_context(orthanc(fresh, *keys))
        result = check(fresh, "--nagios")
    assert (result.exit_code, result.stdout.count("\n")) == (code, 1)
    assert result.stdout.startswith(said)
    assert result.stdout.endswith(f" | locks={len(keys)} orthancs={bool(keys):d}\n")


def test_nagios_of_a_second_orthanc(fresh: db.Target) -> None:
    with orthanc(fresh, 42), orthanc(fresh, name="Orthanc B"):
        result = check(fresh, "--nagios")
    assert result.exit_code == 2
    assert result.stdout.startswith("CHECK-LOCK CRITICAL - the Orthanc at")


@pytest.mark.parametrize(
    "words",
    [["--watch", "--nagios"], ["--terminate", "all", "--watch"], ["--terminate", "x"], ["--wait", "-1"]],
)
def test_wrong_usage(fresh: db.Target, words: list[str]) -> None:
    assert check(fresh, *words).exit_code == (3 if "--nagios" in words else 2)
