"""The part for which everybody else is out: one transaction from one revision to another, proved before the commit."""

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
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog, duplicates, steps
from pgorthanc_cli.upgrade import mend, obstacles, proof, sessions
from pgorthanc_cli.upgrade.model import Settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Whoever wants to read a table queues up behind us while we wait for it: we give way after this time.
_LOCK_WAIT_S = 1.5
_RETRY_S = 0.5
_ATTEMPTS_S = 10.0
_SHOWN = 5
_UNIQUE = 2  # from this revision on, public ids are unique

# A transaction of the administrator's defaults would end in the middle.
_NO_TIMEOUTS = """
    SELECT set_config(name, '0', true) FROM pg_settings
        WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""


@dataclass(frozen=True)
class Switched:
    """What a switch has done: see `model.Changed`."""

    before: int
    repaired: tuple[str, ...]
    merged: duplicates.Merged | None
    blocked_s: float


def switch(
    conn: Connection, schema: str, to: int, settings: Settings, *, ours: Sequence[int] = ()
) -> Iterator[Progress | Switched]:
    """Bring an index to another revision; afterwards it is entirely there, or as it was.

    Holds Orthanc's locks 44, 42 and 43, so that none can start meanwhile, and all tables of the index.

    Args:
        conn: A connection; what it has open is committed first.
        schema: PostgreSQL namespace of the index.
        to: The revision that is wanted.
        settings: How to do it.
        ours: Pids of further sessions of ours.

    Raises:
        InUseError: Somebody works on the database, or started to in the middle.
        RevisionError: The index cannot be brought there, or something would have been lost.
    """
    conn.commit()
    yield from sessions.vacate(conn, ours=ours, wait_s=settings.wait_s, terminate=settings.terminate)
    proof.warm(conn)
    conn.commit()
    with ExitStack() as locks:
        for lock in (db.LOCK_DATABASE_SETUP, db.LOCK_INDEX, db.LOCK_STORAGE):
            held = sessions.expelled(conn, lock, ours) if settings.terminate else db.advisory_lock(conn, lock)
            locks.enter_context(held)
        if not settings.terminate:
            yield from sessions.vacate(conn, ours=ours)
        yield Progress("switch", f"to revision {to}: no other session works on the index now")
        with refusals(), _committed(conn):
            switched = _transaction(conn, schema, to, settings, ours)
    yield switched


def _transaction(conn: Connection, schema: str, to: int, settings: Settings, ours: Sequence[int]) -> Switched:
    catalog_before = catalog.snapshot(conn, schema)
    _lock_tables(conn, schema, obstacles.index_tables(catalog_before), settings, ours)
    planted.refuse_until_commit(conn)
    started = time.monotonic()
    role = _role(conn)
    damage, repaired = mend.mend(conn, schema)
    merged = duplicates.merge(conn) if settings.repair_duplicates and damage.start < _UNIQUE else None
    found = catalog.snapshot(conn, schema)
    before = proof.collect(conn, found)
    _spare_checks(conn)
    run(conn, steps.path(damage.start, to), role)
    found = catalog.snapshot(conn, schema)
    _require_equal(found, to, catalog_before)
    _require_nothing_lost(before, proof.collect(conn, found), to)
    _require_alone(conn, settings, ours)
    return Switched(damage.start, repaired, merged, time.monotonic() - started)


def _spare_checks(conn: Connection) -> None:
    """Let the steps insert without checks of foreign keys, if the role may (a superuser): they take most of the time.

    The steps insert ids only that they have just read from resources, which is locked; and they need no trigger.
    """
    with conn.cursor() as cur:
        cur.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cur.fetchone() == (True,):
            cur.execute("SET LOCAL session_replication_role = replica")


@contextmanager
def _committed(conn: Connection) -> Iterator[None]:
    """A block that is committed at its end, or rolled back; a lost connection is not reported a second time."""
    try:
        yield
        conn.commit()
    except BaseException:
        with suppress(psycopg2.Error):
            conn.rollback()
        raise


def run(conn: Connection, way: Sequence[steps.Step], role: str) -> None:
    """Run the scripts, each as the role that owns the index, and be ourselves again afterwards."""
    with conn.cursor() as cur:
        # NULL is as good for Orthanc, which counts then; `finish` fills it beside Orthanc.
        cur.execute("SELECT set_config('pgorthanc.childcounts', 'later', true)")
        for step in way:
            cur.execute(steps.text(step.script))
            cur.execute("SELECT set_config('role', %s, true)", (role,))


def _lock_tables(
    conn: Connection, schema: str, tables: list[str], settings: Settings, ours: Sequence[int]
) -> None:
    """Lock all tables against all others, giving way again and again to those who wait behind us.

    With `terminate` the sessions of others end first. Those that connect again queue up behind us.
    """
    deadline = time.monotonic() + _ATTEMPTS_S
    while True:
        try:
            if settings.terminate:
                sessions.end_others(conn, ours)
            _try_lock(conn, tables)
            return
        except psycopg2.errors.LockNotAvailable:
            conn.rollback()
            found: list[object] = [
                *obstacles.prepared(conn, schema, tables),
                *sessions.blocking(conn, tables),
            ]
            conn.rollback()
            if time.monotonic() >= deadline:
                what = "keeps tables of the index locked"
                raise sessions.in_use(found, what, terminate=settings.terminate) from None
            time.sleep(0 if settings.terminate else _RETRY_S)


def _try_lock(conn: Connection, tables: Sequence[str]) -> None:
    """One attempt; the time to wait is for all tables together."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    with conn.cursor() as cur:
        cur.execute(_NO_TIMEOUTS)
        for table in tables:
            left_ms = max(1, int(1000 * (deadline - time.monotonic())))
            cur.execute("SELECT set_config('lock_timeout', %s, true)", (f"{left_ms}ms",))
            cur.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
        cur.execute("SELECT set_config('lock_timeout', %s, true)", (f"{int(1000 * _LOCK_WAIT_S)}ms",))


def _role(conn: Connection) -> str:
    with conn.cursor() as cur:
        cur.execute("SELECT current_setting('role')")
        return str((cur.fetchone() or ("none",))[0])


def _require_equal(found: catalog.Catalog, revision: int, before: catalog.Catalog) -> None:
    left = catalog.deviations(found, revision, before)
    if left:
        extra = [difference.name for difference in left if difference.expected is None]
        raise RevisionError(
            f"the result would not match revision {revision}, so everything was rolled back: "
            f"{_listed([*map(str, left)])}",
            f"drop {_listed(extra)}, then run the same command again"
            if extra
            else "run: pgorthanc verify schema",
        )


def _require_nothing_lost(before: proof.Evidence, after: proof.Evidence, revision: int) -> None:
    words = proof.lost(before, after)
    if words:
        raise RevisionError(
            f"the change to revision {revision} would have altered data, so it was rolled back: {_listed(words)}",
            "nothing was changed; please report this",
        )


def _require_alone(conn: Connection, settings: Settings, ours: Sequence[int]) -> None:
    """Make sure that no session which waits for our tables, or has connected meanwhile, works on as if nothing was."""
    if settings.terminate:
        sessions.end_others(conn, ours)
    elif found := sessions.waiting(conn):
        raise sessions.in_use(found, "began to work with the index in the middle, so nothing was changed")


def _listed(words: Sequence[str]) -> str:
    shown = "; ".join(words[:_SHOWN])
    return shown if len(words) <= _SHOWN else f"{shown}; and {len(words) - _SHOWN} more"


@contextmanager
def refusals() -> Iterator[None]:
    """What our scripts refuse, and whom they waited for in vain; other driver errors are left to `db.session`."""
    try:
        yield
    except psycopg2.errors.RaiseException as error:
        raise RevisionError(str(error.diag.message_primary), error.diag.message_hint) from None
    except psycopg2.errors.ObjectInUse as error:
        raise InUseError(str(error.diag.message_primary), error.diag.message_hint) from None
    except psycopg2.errors.LockNotAvailable:
        raise InUseError(
            "another session kept a table of the index locked, so nothing was changed",
            "stop every Orthanc that uses this database, then run the same command again",
        ) from None
