"""The program itself ends in the middle of each phase: by kill -9, and by Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db
from tests.support import indexstate
from tests.support.schemas import CURRENT, rows, run
from tests.upgrade.changing import Filled, connected, require_revision, run_upgrade, state, until

_SLEEP = """
CREATE FUNCTION sleep() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); END $$;
CREATE EVENT TRIGGER sleep ON ddl_command_start WHEN TAG IN ('CREATE SEQUENCE') EXECUTE FUNCTION sleep();
ALTER EVENT TRIGGER sleep ENABLE ALWAYS;
"""
_AWAKE = "DROP EVENT TRIGGER sleep; DROP FUNCTION sleep()"
_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'pgorthanc upgrade'"
)
_WAITING = f"{_SESSIONS} AND wait_event_type IN ('Lock', 'Timeout')"
_INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


@contextmanager
def upgrading(target: db.Target, phase: str) -> Iterator[subprocess.Popen[str]]:
    """The program, in a phase."""
    command = [sys.executable, "-m", "pgorthanc_cli", "upgrade", "--uri", target.dsn, "--phase", phase]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


@pytest.fixture
def number(admin: Connection) -> Callable[[str, db.Target], int]:
    """A number that the server tells about a database."""

    def ask(query: str, target: db.Target) -> int:
        with admin.cursor() as cur:
            cur.execute(query, (db.parse_dsn(target.dsn)["dbname"],))
            row = cur.fetchone()
        assert row
        return int(row[0])

    return ask


Number = Callable[[str, db.Target], int]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_in_the_first_phase(filled: Filled, number: Number, end: signal.Signals) -> None:
    """An index is being built, and waits for a transaction that is older."""
    target = filled(1)
    before = state(target)
    with connected(target) as reader, reader.cursor() as cur, upgrading(target, "prepare") as program:
        cur.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM changes")
        until(lambda: number(_WAITING, target))
        program.send_signal(end)
        assert program.wait(30) == (-9 if end == signal.SIGKILL else 130)
        until(lambda: number(_SESSIONS, target) == 0)
        cur.execute("COMMIT")
        invalid = rows(target, _INVALID)
    assert invalid == [] or end == signal.SIGKILL
    assert indexstate.differing(before, state(target)) == []
    run_upgrade(target)
    require_revision(target, CURRENT)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_in_the_switch(filled: Filled, number: Number, end: signal.Signals) -> None:
    target = filled(1)
    before = state(target)
    run(target, _SLEEP)
    with upgrading(target, "switch") as program:
        until(lambda: number(_WAITING, target))
        program.send_signal(end)
        if end == signal.SIGINT:  # libpq waits for the answer of the server, as psql does
            with connected(target) as other, other.cursor() as cur:
                cur.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                )
        program.wait(30)
        until(lambda: number(_SESSIONS, target) == 0)
    assert state(target) == before
    run(target, *_AWAKE.split("; "))
    run_upgrade(target)
    require_revision(target, CURRENT)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_in_the_last_phase(filled: Filled, number: Number, end: signal.Signals) -> None:
    target = filled(1)
    before = state(target)
    run_upgrade(target, phases=("prepare", "switch"))
    with connected(target) as other, other.cursor() as cur, upgrading(target, "finish") as program:
        cur.execute("BEGIN; LOCK TABLE metadata IN SHARE UPDATE EXCLUSIVE MODE")  # ANALYZE waits for it
        until(lambda: number(_WAITING, target))
        program.send_signal(end)
        program.wait(30)
        until(lambda: number(_SESSIONS, target) == 0)
    assert indexstate.differing(before, state(target)) == []
    run_upgrade(target, phases=("finish",))
    require_revision(target, CURRENT)
