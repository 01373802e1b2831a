"""Waiting for a server, an index, its locks or a standby."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest
from click.testing import CliRunner, Result
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db, waiting
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.waiting import Conditions, Reached
from tests.support.real_servers import Server, wait_until
from tests.support.schemas import init, run

READY = Conditions(ready=True)
HBA = """
local all postgres,waiter,replica trust
host all secret 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
local replication all trust
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that tests stop and start."""
    found = Server(HBA, "").create()
    yield found.start()
    found.remove()


@pytest.fixture(scope="module")
def standby(server: Server) -> Iterator[Server]:
    found = Server(HBA, "").copy_of(server)
    yield found.start()
    found.remove()


def wait_for(
    target: db.Target, conditions: Conditions, then: Callable[[], object], reason: str = ""
) -> list[str]:
    """Wait; the first reason that is reported must be this one, and then something happens."""
    reasons: list[str] = []

    def report(progress: Progress) -> None:
        reasons.append(progress.what)
        if len(reasons) == 1:
            assert reason in progress.what
            then()

    assert isinstance(waiting.wait(target, conditions, timeout_s=60, report=report), Reached)
    assert reasons
    return reasons


def missing(target: db.Target, conditions: Conditions, timeout_s: float = 0) -> PgOrthancError:
    """What is missing when the time is over."""
    with pytest.raises(PgOrthancError) as caught:
        waiting.wait(target, conditions, timeout_s=timeout_s)
    return caught.value


def command(target: db.Target, *words: str) -> Result:
    return CliRunner().invoke(cli.main, ["wait", "--uri", target.dsn, "--schema", target.schema, *words])


# Ready


def test_what_is_there_is_not_waited_for(fresh: db.Target) -> None:
    result = command(fresh, "--json", "--revision", "10", "--unlocked", "--ready")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (
        found["reached"] == "a server that takes changes and no locks of Orthanc and an index at revision 10"
    )
    assert found["waited_s"] < 5


def test_a_server_that_starts_later(server: Server) -> None:
    server.stop()
    reasons = wait_for(db.Target(server.place), READY, server.start, "cannot reach ")
    assert all("reach" in reason or "not ready" in reason for reason in reasons)


def test_a_database_and_a_role_that_are_made_later(server: Server) -> None:
    target = db.Target(make_dsn(server.place, user="waiter", dbname="later"))

    def make() -> None:
        server.sql("CREATE ROLE waiter LOGIN", "CREATE DATABASE later")

    reasons = wait_for(target, READY, make, 'role "waiter" does not exist')
    assert len(reasons) <= 2


def test_a_server_that_is_made_writable_later(server: Server) -> None:
    server.set("default_transaction_read_only", "on")

    def make() -> None:
        server.sql(
            "SET default_transaction_read_only = off", "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()"
        )

    wait_for(db.Target(server.place), READY, make, "the server is read-only")


def test_a_password_that_nobody_gave_is_not_waited_for(server: Server) -> None:
    server.sql("CREATE ROLE secret LOGIN PASSWORD 'x'")
    started = time.monotonic()
    error = missing(db.Target(f"{server.tcp} user=secret passfile=/nowhere"), READY, 60)
    assert isinstance(error, db.PasswordRequired)
    assert time.monotonic() - started < 30


def test_a_server_that_never_answers_does_not_outlast_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = db.Target(f"host=127.0.0.1 port={silent.getsockname()[1]} user=x dbname=x connect_timeout=2")
        started = time.monotonic()
        error = missing(target, READY, 0.5)
    assert isinstance(error, ConnectError)
    assert error.message.startswith("timed out after 0.5 s, waiting for a server that takes changes: ")
    assert time.monotonic() - started < 10


# Revision


def test_an_index_that_is_made_later(empty: db.Target) -> None:
    reasons = wait_for(empty, Conditions(revision=10), lambda: init(empty), "holds no Orthanc index")
    assert len(reasons) == 1


def test_a_schema_that_is_made_later(empty: db.Target) -> None:
    target = replace(empty, schema="later")
    wanted = Conditions(revision=10)
    assert missing(target, wanted).exit_code == 4

    def make() -> None:
        run(empty, "CREATE SCHEMA later")
        init(target)

    wait_for(target, wanted, make, "has no schema")


@pytest.mark.parametrize(("wanted", "command"), [(6, "downgrade"), (1, "downgrade")])
def test_another_revision(fresh: db.Target, wanted: int, command: str) -> None:
    error = missing(fresh, Conditions(revision=wanted))
    assert (error.exit_code, error.hint) == (4, f"run: pgorthanc {command} --to {wanted}")
    assert f"index is at revision 10, wanted {wanted}" in error.message


def test_a_revision_that_is_only_recorded_does_not_count(fresh: db.Target) -> None:
    run(fresh, "UPDATE globalproperties SET value = '6' WHERE property = 4")
    for wanted in (6, 10):
        assert "says that it is at 6" in missing(fresh, Conditions(revision=wanted)).message


# Unlocked


@pytest.mark.parametrize("key", [42, 43, 44])
def test_a_lock_that_is_released(fresh: db.Target, key: int) -> None:
    with closing(psycopg2.connect(fresh.dsn)) as holder:
        with holder.cursor() as cur:
            cur.execute("SELECT pg_advisory_lock(%s)", (key,))
        said = f"(pid {holder.info.backend_pid}) holds the {db.LOCK_NAMES[key]} lock, connected since "
        wait_for(fresh, Conditions(unlocked=True), holder.close, said)


def test_a_lock_that_is_kept(fresh: db.Target) -> None:
    with db.session(fresh) as conn, db.advisory_lock(conn, db.LOCK_INDEX):
        error = missing(fresh, Conditions(unlocked=True), 0.3)
    assert (error.exit_code, error.hint) == (5, "to see its sessions: pgorthanc check-lock")


def test_a_restart_in_the_middle(server: Server) -> None:
    """A new reason is told, and the wait goes on."""
    target = db.Target(server.place)
    with closing(psycopg2.connect(server.place)) as holder, holder.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(42)")
        steps: dict[str, Callable[[], object]] = {
            "holds the index lock": server.stop,
            "cannot reach ": server.start,
        }

        def report(progress: Progress) -> None:
            reason = next((reason for reason in steps if reason in progress.what), None)
            if reason:
                steps.pop(reason)()

        assert waiting.wait(target, Conditions(unlocked=True), timeout_s=60, report=report)
        assert not steps


# Replica


def test_a_standby_that_is_up_to_date(server: Server, standby: Server) -> None:
    server.sql("CREATE TABLE IF NOT EXISTS grows AS SELECT generate_series(1, 10000) AS n")
    assert waiting.wait(db.Target(standby.place), Conditions(replica=True), timeout_s=30)
    assert missing(db.Target(server.place), Conditions(replica=True)).message.endswith("wanted is a standby")


def test_a_standby_that_has_stopped_to_replay(server: Server, standby: Server) -> None:
    standby.sql("SELECT pg_wal_replay_pause()")
    server.sql("CREATE TABLE more AS SELECT generate_series(1, 10000) AS n")
    position = server.sql("SELECT pg_current_wal_lsn()")
    wait_until(lambda: standby.sql(f"SELECT pg_last_wal_receive_lsn() >= '{position}'") == "True")
    target = db.Target(standby.place)
    wait_for(
        target,
        Conditions(replica=True),
        lambda: standby.sql("SELECT pg_wal_replay_resume()"),
        "has still to replay",
    )


def test_a_standby_waits_for_the_rest_of_a_record(server: Server, standby: Server) -> None:
    """Which cannot be brought about at will; so few bytes that are not replayed can."""
    standby.sql("SELECT pg_wal_replay_pause()")
    try:
        server.sql("CREATE TABLE few (n integer)")
        position = server.sql("SELECT pg_current_wal_lsn()")
        wait_until(lambda: standby.sql(f"SELECT pg_last_wal_receive_lsn() >= '{position}'") == "True")
        assert waiting.wait(db.Target(standby.place), Conditions(replica=True), timeout_s=0)
    finally:
        standby.sql("SELECT pg_wal_replay_resume()")


def test_a_standby_without_its_primary(server: Server, standby: Server) -> None:
    server.stop()
    try:
        wait_until(lambda: standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0")
        error = missing(db.Target(standby.place), Conditions(replica=True))
    finally:
        server.start()
    assert (error.exit_code, "receives nothing" in error.message) == (3, True)


def test_a_standby_is_not_ready_and_knows_no_locks(standby: Server) -> None:
    target = db.Target(standby.place)
    for conditions in (READY, Conditions(unlocked=True)):
        error = missing(target, conditions)
        assert (error.exit_code, "is a standby" in error.message) == (3, True)
        with pytest.raises(UsageError):
            waiting.wait(target, replace(conditions, replica=True), timeout_s=0)
    result = CliRunner().invoke(cli.main, ["check-lock", "--uri", target.dsn, "--json"])
    assert any("standby" in note for note in json.loads(result.stdout)["notes"])


# The command


def test_exit_codes_and_what_is_told(empty: db.Target) -> None:
    dead = replace(empty, dsn="host=127.0.0.1 port=1 user=x dbname=x")
    codes = {
        3: command(dead, "--timeout", "0.2"),
        4: command(empty, "--timeout", "0.2", "--revision", "10", "--quiet"),
    }
    with db.session(empty) as conn, db.advisory_lock(conn, db.LOCK_STORAGE):
        codes[5] = command(empty, "--timeout", "0.2", "--unlocked")
    for code, result in codes.items():
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.startswith("waiting for ") == (code != 4)
        assert "timed out after" in result.stderr


def test_the_screen(fresh: db.Target) -> None:
    shown = CliRunner().invoke(cli.main, ["wait", "--uri", fresh.dsn])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Conditions met ")
    assert ": a server that takes changes.\ndatabase " in shown.stdout
