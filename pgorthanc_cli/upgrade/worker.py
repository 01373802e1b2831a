"""Long statements, and statements that wait for locks, while Orthanc is running."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg2
import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.upgrade.sessions import sessions_of

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

T = TypeVar("T")

_POLL_S = 0.5
# A statement that locks a table waits at most that long: until it gives up, all later sessions wait behind it.
_LOCK_WAIT_MS = 100
_RETRY_S = 0.5
_ATTEMPTS_S = 300.0

# jit: to compile the queries takes longer than to run them, as they touch few rows by their indexes.
_SETTINGS = """
    SELECT set_config(name, CASE name WHEN 'client_connection_check_interval' THEN '2s' WHEN 'jit' THEN 'off'
                            ELSE '0' END, false)
        FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'jit',
            'idle_in_transaction_session_timeout', 'transaction_timeout', 'client_connection_check_interval')
"""
# In kB, for the construction of indexes; a higher setting of the server stays.
_MEMORY = """
    SELECT set_config(name, greatest(setting::bigint, 256 * 1024)::text, false) FROM pg_settings
        WHERE name = 'maintenance_work_mem'
"""
_PREPARED = """
    SELECT pg_catalog.quote_literal(gid) FROM pg_catalog.pg_prepared_xacts
        WHERE database = pg_catalog.current_database() ORDER BY prepared, gid
"""
_PROGRESS = """
    SELECT phase, CASE WHEN blocks_total > 0 THEN blocks_done ELSE tuples_done END,
           CASE WHEN blocks_total > 0 THEN blocks_total ELSE nullif(tuples_total, 0) END
        FROM pg_stat_progress_create_index WHERE pid = %s
"""


def disable_timeouts(worker: Connection) -> None:
    """Remove the time limits of a session; the server ends its work soon after this process is gone."""
    with worker.cursor() as cur:
        cur.execute(_SETTINGS)
        cur.execute(_MEMORY)


def execute(worker: Connection, statement: str) -> None:
    """Run a statement."""
    with worker.cursor() as cur:
        cur.execute(statement)


def watched(
    conn: Connection,
    worker: Connection,
    action: Callable[[], T],
    what: str,
    phase: str,
    report: Report,
) -> T:
    """Run a long action on `worker`, report its progress as `conn` sees it, and return its result.

    An exception of `report` cancels the action.
    """
    # Python handles signals in the main thread, which must not wait inside libpq.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        try:
            while not wait([future], timeout=_POLL_S).done:
                report(_progress(conn, worker, what, phase))
            return future.result()
        finally:
            _cancel(worker, future)


def execute_with_retries(worker: Connection, statement: str, phase: str, report: Report) -> None:
    """Run a short statement that locks a table against writers, letting them pass between the attempts.

    Raises:
        InUseError: The table was never free.
    """
    deadline = time.monotonic() + _ATTEMPTS_S
    while True:
        try:
            execute(worker, f"SET lock_timeout = {_LOCK_WAIT_MS}")
            execute(worker, statement)
            return
        except psycopg2.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise InUseError(
                    f"a table was never free for {_LOCK_WAIT_MS} ms in {_ATTEMPTS_S:.0f} s: {statement}",
                    "run the same command again when less is going on",
                ) from None
            report(Progress(phase, f"waiting for long transactions of others: {statement}"))
            time.sleep(_RETRY_S)
        finally:
            with suppress(psycopg2.Error):
                execute(worker, "SET lock_timeout = 0")


def _progress(conn: Connection, worker: Connection, what: str, phase: str) -> Progress:
    with conn.cursor() as cur:
        cur.execute("SELECT pg_stat_clear_snapshot()")
        cur.execute(_PROGRESS, (db.backend_pid(worker),))
        stage, done, total = cur.fetchone() or (None, None, None)
    blockers = _blockers(conn, db.backend_pid(worker))
    conn.commit()
    return Progress(phase, f"{what}: {stage}{blockers}" if stage else what + blockers, done, total)


def _blockers(conn: Connection, pid: int) -> str:
    """Name the sessions, and the prepared transactions (pid 0), that a session waits for."""
    pids = set(db.value(conn, "SELECT pg_catalog.pg_blocking_pids(%s)", pid) or ())
    names = [str(session) for session in sessions_of(conn, pids - {0})]
    if 0 in pids:
        names += [
            f"prepared transaction {gid}, until ROLLBACK PREPARED {gid}"
            for (gid,) in db.rows(conn, _PREPARED)
        ]
    return f", waiting for {'; '.join(names)}" if names else ""


def _cancel(worker: Connection, future: Future[T]) -> None:
    """Cancel until the action has ended: a request that arrives between two statements cancels nothing."""
    while not future.done():
        with suppress(psycopg2.Error):
            worker.cancel()
        wait([future], timeout=_POLL_S)
