"""Whoever else works on the database: named, waited for, ended, kept out; and what the role may not do."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg2
import psycopg2.errors
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, upgrade
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, RevisionError
from tests.support.schemas import CURRENT, as_role, rows, run
from tests.upgrade.changing import Filled, connected, invoke, require_revision, run_upgrade, state, until


def test_a_session_is_in_the_way_and_named(filled: Filled) -> None:
    target = filled(6)
    before = state(target)
    with connected(target) as other, pytest.raises(InUseError) as refusal:
        pid = other.info.backend_pid
        run_upgrade(target)
    message, hint = refusal.value.message, refusal.value.hint or ""
    assert message.startswith(f"{database(target)} is in use: the Orthanc at the local socket (pid {pid}) ")
    assert re.search(r"connected since \d\d:\d\d [+-]\d\d:\d\d", message)
    assert hint.startswith("stop that Orthanc, or wait for it with --wait 60; ")
    assert state(target) == before


def test_what_an_orthanc_and_another_program_need_is_said_of_both(filled: Filled) -> None:
    """Whoever stops only the Orthanc would fail again."""
    target = filled(6)
    with connected(target), connected(target, "report"), pytest.raises(InUseError) as refusal:
        run_upgrade(target, wait_s=0.1)
    assert re.search(r"the Orthanc at .*; pid \d+, application report, role ", refusal.value.message)
    assert (refusal.value.hint or "").startswith("stop every program that uses it, or wait for them with")


def database(target: db.Target) -> str:
    """How a message names a database of the tests."""
    place = db.parse_dsn(target.dsn)
    return f"database {place['dbname']} at {place['host']}:{place.get('port', 5432)}"


def test_the_first_phase_needs_nobody_to_leave(filled: Filled) -> None:
    target = filled(1)
    with connected(target) as orthanc, orthanc.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(42), pg_advisory_lock(43)")
        assert run_upgrade(target, phases=("prepare",)).revision == 1
        cur.execute("SELECT createinstance('p', 's', 'e', 'beside')")


def test_the_last_phase_needs_nobody_to_leave(filled: Filled) -> None:
    target = filled(1)
    run_upgrade(target, phases=("prepare",))
    run_upgrade(target, phases=("switch",))
    with connected(target) as orthanc, orthanc.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(42), pg_advisory_lock(43)")
        run_upgrade(target, phases=("finish",))
    require_revision(target, CURRENT)


def test_nobody_has_to_leave_where_nothing_is_to_be_done(filled: Filled) -> None:
    """A job that runs at every start of a container."""
    target = filled(6)
    run_upgrade(target)
    with connected(target) as orthanc, orthanc.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(42)")
        assert run_upgrade(target).revision == CURRENT


def test_waiting_for_a_session_to_end(filled: Filled) -> None:
    target = filled(6)
    with connected(target) as other, ThreadPoolExecutor(1) as pool:
        changed = pool.submit(run_upgrade, target, wait_s=60)
        until(lambda: rows(target, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 1346850642"))
        other.close()
        assert changed.result().revision == CURRENT


def test_ending_the_sessions_of_others(filled: Filled) -> None:
    target = filled(6)
    with connected(target) as other:
        with other.cursor() as cur:
            cur.execute("SELECT pg_advisory_lock(42)")
        assert run_upgrade(target, terminate=True).revision == CURRENT
        with pytest.raises(psycopg2.Error), other.cursor() as cur:
            cur.execute("SELECT 1")


def test_a_long_reader_is_in_the_way_and_not_disturbed(filled: Filled) -> None:
    target = filled(6)
    with connected(target, "report") as reader, reader.cursor() as cur:
        cur.execute("BEGIN; SELECT count(*) FROM resources")
        with pytest.raises(InUseError, match="idle in transaction"):
            run_upgrade(target)
        cur.execute("SELECT count(*) FROM resources; COMMIT")


@pytest.mark.parametrize("lock", [db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP])
def test_a_lock_of_orthanc_that_is_held(filled: Filled, lock: int) -> None:
    """The message names the lock."""
    target = filled(6)
    with connected(target, "Orthanc") as other, other.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(%s)", (lock,))
        place = f"the Orthanc at the local socket (pid {other.info.backend_pid})"
        with pytest.raises(InUseError) as refusal:
            run_upgrade(target, phases=("switch",))
    assert f"{place} holds the {db.LOCK_NAMES[lock]} lock, connected since" in refusal.value.message
    assert run_upgrade(target).revision == CURRENT


@pytest.mark.parametrize("phase", ["prepare", "switch"])
def test_two_at_once(filled: Filled, phase: str) -> None:
    """One does it; the other one is told so, or finds that it is done."""
    target = filled(1)
    ends: list[object] = []
    barrier = threading.Barrier(2)

    def go() -> None:
        barrier.wait()
        try:
            ends.append(run_upgrade(target, phases=(phase,)))
        except InUseError as refusal:
            ends.append(refusal)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(end, upgrade.Changed) for end in ends)
    run_upgrade(target)
    require_revision(target, CURRENT)


# Runs in the session that upgrades, in the middle of its transaction: waits until somebody waits for that session.
_PAUSE = """
CREATE FUNCTION pause() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('test.paused', true) IS DISTINCT FROM 'yes' AND EXISTS (
            SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock') THEN
        PERFORM set_config('test.paused', 'yes', false), set_config('application_name', 'paused', false);
        FOR n IN 1..600 LOOP
            EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'
                                  AND pg_backend_pid() = ANY (pg_blocking_pids(pid)));
            PERFORM pg_sleep(0.1);
        END LOOP;
    END IF;
END
$$;
CREATE EVENT TRIGGER pause ON ddl_command_start EXECUTE FUNCTION pause();
ALTER EVENT TRIGGER pause ENABLE ALWAYS;
"""


_SLOW = """
CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_tag = 'DROP TABLE' THEN
        PERFORM pg_sleep(0.7);
    END IF;
END
$$;
CREATE EVENT TRIGGER slow ON ddl_command_start EXECUTE FUNCTION slow();
ALTER EVENT TRIGGER slow ENABLE ALWAYS;
"""
_CANCEL = """
    SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'paused'
"""
_FUNCTIONS = """
    SELECT oid::regprocedure FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
"""
_RELATIONS = """
    SELECT CASE relkind WHEN 'r' THEN 'TABLE' ELSE 'SEQUENCE' END, relname FROM pg_class
        WHERE relkind IN ('r', 'S') AND relnamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i'))
"""


@contextmanager
def in_the_middle(
    target: db.Target, admin: Connection, **options: object
) -> Iterator[Future[upgrade.Changed]]:
    """An upgrade that has locked everything, and waits for somebody to wait for it."""
    run(target, _PAUSE)
    name = db.parse_dsn(target.dsn)["dbname"]
    query = "SELECT FROM pg_stat_activity WHERE datname = %s AND application_name = 'paused'"
    with ThreadPoolExecutor(1) as pool:
        changed = pool.submit(run_upgrade, target, phases=("switch",), **options)

        def paused() -> bool:
            with admin.cursor() as cur:
                cur.execute(query, (name,))
                return cur.rowcount > 0 or changed.done()

        until(paused)
        yield changed


def test_an_orthanc_that_starts_in_the_middle(filled: Filled, admin: Connection) -> None:
    """It does not get its locks; one that goes on without them makes the upgrade give way."""
    target = filled(6)
    before = state(target)
    with in_the_middle(target, admin) as changed, connected(target) as orthanc, orthanc.cursor() as cur:
        cur.execute("SELECT pg_try_advisory_lock(42), pg_try_advisory_lock(43), pg_try_advisory_lock(44)")
        assert cur.fetchone() == (False, False, False)
        cur.execute("SELECT count(*) FROM resources")  # waits
        with pytest.raises(InUseError, match=r"the Orthanc at .*is named Orthanc") as refusal:
            changed.result()
    assert "in the middle" in refusal.value.message
    assert state(target) == before


def test_a_session_that_begins_in_the_middle_can_be_ended(filled: Filled, admin: Connection) -> None:
    target = filled(6)
    with in_the_middle(target, admin, terminate=True) as changed, connected(target) as orthanc:
        with pytest.raises(psycopg2.Error), orthanc.cursor() as cur:
            cur.execute("SELECT count(*) FROM resources")
        assert changed.result().revision == CURRENT


def test_the_upgrade_is_cancelled(filled: Filled, admin: Connection) -> None:
    target = filled(6)
    before = state(target)
    with in_the_middle(target, admin) as changed:
        with admin.cursor() as cur:
            cur.execute(_CANCEL, (db.parse_dsn(target.dsn)["dbname"],))
        with pytest.raises(PgOrthancError, match="57014"):
            changed.result()
    assert state(target) == before


@pytest.mark.parametrize("setting", ["statement_timeout", "idle_in_transaction_session_timeout"])
def test_time_limits_of_the_administrator_do_not_end_it(filled: Filled, setting: str) -> None:
    """They are for others: ours are the ones that matter here."""
    target = filled(5)
    run(target, _SLOW, f"ALTER DATABASE {db.parse_dsn(target.dsn)['dbname']} SET {setting} = '500ms'")
    run_upgrade(target)
    run(target, "DROP EVENT TRIGGER slow", "DROP FUNCTION slow()")
    require_revision(target, CURRENT)


def test_a_server_that_takes_no_writes(filled: Filled) -> None:
    target = filled(6)
    readonly = db.Target(make_dsn(target.dsn, options="-c default_transaction_read_only=on"))
    before = state(target)
    with pytest.raises(ConnectError, match="read-only"):
        run_upgrade(readonly)
    assert invoke("upgrade", "--uri", readonly.dsn).exit_code == 3
    assert invoke("upgrade", "--plan", "--uri", readonly.dsn).exit_code == 0
    assert state(target) == before


@pytest.mark.parametrize("phase", upgrade.PHASES)
def test_a_role_without_rights(filled: Filled, role: str, phase: str) -> None:
    target = filled(1)
    run(target, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    before = state(target)
    with pytest.raises(RevisionError) as refusal:
        run_upgrade(as_role(target, role), phases=(phase,))
    assert role in refusal.value.message
    ((owner,),) = rows(target, "SELECT tableowner::text FROM pg_tables WHERE tablename = 'resources'")
    assert f"its tables belong to role {owner}" in refusal.value.message
    assert "OWNER TO" not in (refusal.value.hint or "")
    assert state(target) == before


def test_the_owner_needs_no_superuser(filled: Filled, role: str) -> None:
    target = filled(1)
    name = db.parse_dsn(target.dsn)["dbname"]
    run(target, f"ALTER DATABASE {name} OWNER TO {role}", f"ALTER SCHEMA public OWNER TO {role}")
    for kind, relation in rows(target, _RELATIONS):
        run(target, f"ALTER {kind} {relation} OWNER TO {role}")
    for (function,) in rows(target, _FUNCTIONS):
        run(target, f"ALTER FUNCTION {function} OWNER TO {role}")
    run_upgrade(as_role(target, role))
    require_revision(target, CURRENT)


def test_the_command_says_who_is_in_the_way(filled: Filled) -> None:
    target = filled(6)
    with connected(target) as other:
        refused = invoke("upgrade", "--uri", target.dsn, "--json")
        unanswered = invoke("upgrade", "--uri", target.dsn, "--terminate")
        assert refused.exit_code == 5
        assert f"pid {other.info.backend_pid}" in json.loads(refused.stderr.splitlines()[-1])["message"]
        assert (unanswered.exit_code, "--yes" in unanswered.stderr) == (2, True)
        ended = invoke("upgrade", "--uri", target.dsn, "--terminate", "--yes", "--json")
    assert json.loads(ended.stdout)["revision"] == CURRENT
