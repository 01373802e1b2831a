"""The second phase, while no other session works: one transaction to another revision, proved before the commit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.schema import catalog, duplicates, features, steps
from pgorthanc_cli.text import shortened
from pgorthanc_cli.upgrade import drift, integrity, sessions
from pgorthanc_cli.upgrade.model import Settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# While we wait for a table, all who want to read it queue up behind us: we give way after this time.
_LOCK_WAIT_S = 1.5
_RETRY_S = 0.5
_ATTEMPTS_S = 10.0
_SHOWN = 5

# The time limits of the administrator would end the transaction in the middle.
_NO_TIMEOUTS = """
    SELECT set_config(name, '0', true) FROM pg_settings
        WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""


@dataclass(frozen=True)
class Switched:
    """The result of a switch; the fields are those of `model.Changed`."""

    before: int
    repaired: tuple[str, ...]
    merged: duplicates.Merged | None
    blocked_s: float


def switch(
    conn: Connection,
    schema: str,
    to: int,
    settings: Settings,
    *,
    own_pids: Sequence[int] = (),
    report: Report,
) -> Switched:
    """Bring an index to another revision; afterwards it is entirely there, or as it was.

    Holds Orthanc's locks 44, 42 and 43, so that no Orthanc can start meanwhile, and all tables of the index.

    Args:
        conn: A connection; its open transaction is committed first.
        schema: PostgreSQL namespace of the index.
        to: The target revision.
        settings: How to do it.
        own_pids: Pids of further sessions of ours.
        report: Called with the progress, never while the tables are locked.

    Raises:
        InUseError: Another session uses the database, or began to in the middle.
        RevisionError: The index cannot be brought there, or data would have been lost.
    """
    conn.commit()
    sessions.wait_for_exclusive_access(
        conn, report, own_pids=own_pids, wait_s=settings.wait_s, terminate=settings.terminate
    )
    integrity.prewarm(conn)
    conn.commit()
    with ExitStack() as locks:
        for lock in (db.LOCK_DATABASE_SETUP, db.LOCK_INDEX, db.LOCK_STORAGE):
            if settings.terminate:
                locks.enter_context(sessions.exclusive_lock(conn, lock, own_pids))
            else:
                locks.enter_context(db.advisory_lock(conn, lock))
        # A session may have connected before the locks were ours.
        if not settings.terminate:
            sessions.wait_for_exclusive_access(conn, report, own_pids=own_pids)
        report(Progress("switch", f"to revision {to}; no other session is using the index"))
        locked = "another session kept a table of the index locked, so nothing was changed"
        with steps.errors(locked), _committed(conn):
            return _transaction(conn, schema, to, settings, own_pids)


def _transaction(
    conn: Connection, schema: str, to: int, settings: Settings, own_pids: Sequence[int]
) -> Switched:
    original = catalog.snapshot(conn, schema)
    _lock_tables(conn, schema, drift.index_tables(original), settings, own_pids)
    planted.refuse_until_commit(conn)
    started = time.monotonic()
    role = str(db.value(conn, "SELECT current_setting('role')"))
    remaining, repaired = drift.repair(conn, schema)
    merged = None
    if settings.repair_duplicates and remaining.start < features.first_revision("unique_public_ids"):
        merged = duplicates.merge(conn)
    # Repairs and merges change rows on purpose, the steps must not.
    before = integrity.digest(conn, catalog.snapshot(conn, schema))
    # Checks of foreign keys take most of the time. The steps need none, and no trigger: they insert only ids
    # that they have just read from resources, which is locked. Only a superuser may switch them off.
    if db.value(conn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        with conn.cursor() as cur:
            cur.execute("SET LOCAL session_replication_role = replica")
    _run(conn, steps.path(remaining.start, to), role)
    objects = catalog.snapshot(conn, schema)
    _require_equal(objects, to, original)
    losses = integrity.losses(before, integrity.digest(conn, objects))
    if losses:
        raise RevisionError(
            f"the change to revision {to} would have altered data, so it was rolled back: "
            f"{shortened(losses, _SHOWN)}",
            "nothing was changed; please report this",
        )
    # A session that waits for our tables would continue as if the revision were the old one.
    if settings.terminate:
        sessions.end_others(conn, own_pids)
    elif waiting := sessions.waiting(conn):
        raise sessions.in_use(
            conn, waiting, "came into use in the middle of the change, so nothing was changed"
        )
    return Switched(remaining.start, repaired, merged, time.monotonic() - started)


@contextmanager
def _committed(conn: Connection) -> Iterator[None]:
    """Commit at the end of the block, or roll back; a lost connection is not reported a second time."""
    try:
        yield
        conn.commit()
    except BaseException:
        with suppress(psycopg2.Error):
            conn.rollback()
        raise


def _run(conn: Connection, path: Sequence[steps.Step], role: str) -> None:
    """Run the scripts; each ends as the role that owns the index, so reset the role after it."""
    with conn.cursor() as cur:
        # Orthanc counts where the number is NULL; `finish` fills it while Orthanc is running.
        cur.execute("SELECT set_config('pgorthanc.childcounts', 'later', true)")
        for step in path:
            cur.execute(steps.text(step.script))
            cur.execute("SELECT set_config('role', %s, true)", (role,))


def _lock_tables(
    conn: Connection, schema: str, tables: list[str], settings: Settings, own_pids: Sequence[int]
) -> None:
    """Lock all tables, between the attempts letting those pass who wait behind us.

    With `terminate` all other sessions are ended first; those that connect again queue up behind us.
    """
    deadline = time.monotonic() + _ATTEMPTS_S
    while True:
        try:
            if settings.terminate:
                sessions.end_others(conn, own_pids)
            _try_lock(conn, tables)
            return
        except psycopg2.errors.LockNotAvailable:
            conn.rollback()
            blockers: list[object] = [
                *drift.prepared_transactions(conn, schema, tables),
                *sessions.blocking(conn, tables),
            ]
            conn.rollback()
            if time.monotonic() >= deadline:
                what = "is in use, and tables of the index are locked"
                raise sessions.in_use(conn, blockers, what, terminate=settings.terminate) from None
            # Clients that reconnect again and again would use any pause.
            time.sleep(0 if settings.terminate else _RETRY_S)


def _try_lock(conn: Connection, tables: Sequence[str]) -> None:
    """Lock all tables within `_LOCK_WAIT_S` together."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    with conn.cursor() as cur:
        cur.execute(_NO_TIMEOUTS)
        for table in tables:
            left_ms = max(1, int(1000 * (deadline - time.monotonic())))
            cur.execute("SELECT set_config('lock_timeout', %s, true)", (f"{left_ms}ms",))
            cur.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
        cur.execute("SELECT set_config('lock_timeout', %s, true)", (f"{int(1000 * _LOCK_WAIT_S)}ms",))


def _require_equal(objects: catalog.Catalog, revision: int, original: catalog.Catalog) -> None:
    deviations = catalog.deviations(objects, revision, original)
    if deviations:
        extra = [difference.name for difference in deviations if difference.expected is None]
        hint = "run: pgorthanc verify schema"
        if extra:
            hint = f"drop {shortened(extra, _SHOWN)}, then run the same command again"
        raise RevisionError(
            f"the result would not match revision {revision}, so everything was rolled back: "
            f"{shortened(deviations, _SHOWN)}",
            hint,
        )
