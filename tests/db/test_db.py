"""Targets, the checks of a session, errors at the border, advisory locks."""

from __future__ import annotations

import contextlib
import pickle
import threading
from dataclasses import replace

import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, make_dsn
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError
from tests.support.real_servers import wait_until

PASSWORD = "p@ss w/'\\\"ö%"


def test_target_is_picklable_and_silent() -> None:
    target = db.Target(make_dsn(host="h", password=PASSWORD, sslpassword=PASSWORD), schema="s")
    assert pickle.loads(pickle.dumps(target)) == target  # noqa: S301
    assert str(target) == "password=*** host=h sslpassword=*** schema=s"
    assert repr(target) == f"Target({target})"


# Schemas


@pytest.mark.parametrize("schema", ["my-schema", "user", 'a"b', "Größe", "x, public"])
def test_search_path_is_exactly_the_schema(empty: db.Target, schema: str) -> None:
    target = replace(empty, schema=schema)
    with pytest.raises(ConnectError, match="has no schema") as caught:
        db.session(target).__enter__()
    with db.session(target, need_schema=False) as conn, conn.cursor() as cur:
        cur.execute((caught.value.hint or "").partition("create it: ")[2])
        conn.commit()
    with db.session(target) as conn, conn.cursor() as cur:
        assert conn.info.transaction_status == TRANSACTION_STATUS_IDLE
        cur.execute("SELECT current_schemas(false)")
        assert cur.fetchone() == ([schema],)


# Errors of the driver


def failure(target: db.Target, *statements: str) -> PgOrthancError:
    with pytest.raises(PgOrthancError) as caught, db.session(target) as conn, conn.cursor() as cur:
        for statement in statements:
            cur.execute(statement)
    error = caught.value
    assert "Doe^John" not in f"{error} {error.hint} {error.__cause__}"
    assert error.__suppress_context__
    return error


def test_a_reader_does_not_wait_for_ever_for_a_locked_table(fresh: db.Target) -> None:
    """The statement of the hint names the session that holds the lock."""
    with (
        db.session(fresh) as owner,
        pytest.raises(PgOrthancError, match="SQLSTATE 55P03") as caught,
    ):
        db.rows(owner, "LOCK TABLE resources IN ACCESS EXCLUSIVE MODE; SELECT 1")
        with db.session(fresh, readonly=True) as reader:
            db.rows(reader, "SELECT count(*) FROM index.resources")
    statement = (caught.value.hint or "").partition("to find it: ")[2]
    with db.session(fresh) as owner, db.session(fresh) as other:
        db.rows(owner, "LOCK TABLE resources IN ACCESS EXCLUSIVE MODE; SELECT 1")
        assert db.rows(other, statement) == [(owner.info.backend_pid, "resources")]


def test_errors_keep_patient_data_to_themselves(empty: db.Target) -> None:
    make = "CREATE TEMP TABLE t (name text PRIMARY KEY, n integer)"
    twice = failure(empty, make, "INSERT INTO t VALUES ('Doe^John')", "INSERT INTO t VALUES ('Doe^John')")
    assert twice.message.startswith(
        "the server refused a statement: duplicate key value violates unique constraint"
    )
    assert twice.exit_code == 1
    wrong = failure(empty, make, "INSERT INTO t VALUES ('x', 'Doe^John')")
    assert (
        wrong.message
        == 'the server refused a statement: invalid input syntax for type integer: "..." (SQLSTATE 22P02)'
    )


def test_lost_connection(empty: db.Target, admin: Connection) -> None:
    def lose() -> None:
        with db.session(empty) as conn, db.advisory_lock(conn, db.LOCK_INDEX), conn.cursor() as cur:
            with admin.cursor() as admin_cur:
                admin_cur.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
            cur.execute("SELECT 1")

    with pytest.raises(ConnectError, match="was lost: ") as caught:
        lose()
    assert caught.value.exit_code == 3


# Advisory locks


@pytest.mark.parametrize("autocommit", [False, True])
def test_lock_excludes_others_and_is_released(empty: db.Target, autocommit: bool) -> None:
    first, second = (replace(empty, application=f"pgorthanc {name}") for name in ("one", "two"))
    with db.session(first, autocommit=autocommit) as one, db.session(second, autocommit=autocommit) as two:
        with db.advisory_lock(one, db.LOCK_INDEX):
            (holder,) = db.lock_holders(two)
            assert (holder.lock, holder.pid, holder.application) == (
                42,
                one.info.backend_pid,
                "pgorthanc one",
            )
            who = rf"is in use: the command pgorthanc one at .* \(pid {holder.pid}\) holds the index lock"
            with pytest.raises(InUseError, match=who):
                db.advisory_lock(two, db.LOCK_INDEX, wait_s=0).__enter__()
            assert two.info.transaction_status == TRANSACTION_STATUS_IDLE
            with db.advisory_lock(two, db.LOCK_DATABASE_SETUP, wait_s=0):
                assert [h.lock for h in db.lock_holders(two)] == [42, 44]
                assert [h.lock for h in db.lock_holders(two, 44)] == [44]
        with db.advisory_lock(two, db.LOCK_INDEX, wait_s=0):
            pass
        assert db.lock_holders(two) == []


@pytest.mark.parametrize("autocommit", [False, True])
def test_lock_is_released_after_a_failed_statement(empty: db.Target, autocommit: bool) -> None:
    with db.session(empty) as watcher, db.session(empty, autocommit=autocommit) as conn:
        with pytest.raises(psycopg2.errors.DivisionByZero), db.advisory_lock(conn, 44), conn.cursor() as cur:
            cur.execute("CREATE TABLE IF NOT EXISTS t (x int)")
            cur.execute("SELECT 1/0")
        assert db.lock_holders(watcher) == []
        with conn.cursor() as cur:
            cur.execute("SELECT to_regclass('t') IS NOT NULL")
            assert cur.fetchone() == (autocommit,)


def test_lock_is_waited_for(empty: db.Target) -> None:
    with db.session(empty) as one, db.session(empty) as two, contextlib.ExitStack() as stack:
        stack.enter_context(db.advisory_lock(one, 44))
        got = threading.Event()

        def wait() -> None:
            with db.advisory_lock(two, 44, wait_s=20):
                got.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.is_set()
        stack.close()
        thread.join()
        assert got.is_set()
        wait_until(lambda: db.lock_holders(one) == [])
