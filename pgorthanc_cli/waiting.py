"""Waiting for a server, an index, its locks or a standby: for init containers, ExecStartPre and CI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, InUseError, RevisionError, UsageError
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_CONNECT_TIMEOUT_S = 5  # a server that does not answer must not outlast the deadline by much

# What it has to replay: what the primary has told of (to those who may see that), else what has arrived.
_REPLICA = """
    SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_stat_wal_receiver),
           greatest((SELECT latest_end_lsn FROM pg_stat_wal_receiver), pg_last_wal_receive_lsn())
               - pg_last_wal_replay_lsn()
"""
# WAL arrives by pages, and the last record may have come in part: it ends no transaction, and waits for the rest of it
# until the primary has something to write, or for seconds.
_PARTIAL_RECORD_BYTES = 1 << 16


@dataclass(frozen=True)
class Wanted:
    """What to wait for, all of it.

    Attributes:
        ready: The server lets us in and takes changes.
        revision: The index is at this revision.
        unlocked: Nobody holds the locks 42, 43 and 44.
        replica: The server is a standby that receives from its primary and has replayed what it got.
    """

    ready: bool = False
    revision: int | None = None
    unlocked: bool = False
    replica: bool = False

    def __str__(self) -> str:
        """As messages name it."""
        parts = {
            "a server that takes changes": self.ready,
            "a standby that is up to date": self.replica,
            "no locks of Orthanc": self.unlocked,
            f"an index at revision {self.revision}": self.revision is not None,
        }
        return " and ".join(name for name, asked in parts.items() if asked)


@dataclass(frozen=True)
class Waiting:
    """It is not so far: `missing` says why."""

    missing: str


@dataclass(frozen=True)
class Reached:
    """It is so far.

    Attributes:
        reached: What was waited for.
        waited_s: How long that took.
    """

    reached: str
    waited_s: float


def wait(target: db.Target, wanted: Wanted, *, timeout_s: float) -> Iterator[Waiting | Reached]:
    """Look, on a new connection each time, until it is so far; yields each reason that is new, then the end.

    Looks come ever more seldom, up to 2 s apart, and quickly again as soon as something has changed.

    Raises:
        ConnectError: The time is over; the server cannot be reached, refuses the login, is not what was wanted.
        RevisionError: The time is over; the index is at another revision, or there is none.
        InUseError: The time is over; somebody holds a lock.
        PasswordRequired: At once, because no time helps.
        RevisionError: At once; no index can be at that revision.
        UsageError: At once; a standby takes no changes, and does not know the locks of its primary.
    """
    if wanted.replica and (wanted.ready or wanted.unlocked):
        raise UsageError(
            f"no server can be {wanted}: a standby takes no changes and does not know the locks of its primary",
            "wait for the primary and for the standby, one after the other",
        )
    if wanted.revision is not None:
        catalog.require_revision(wanted.revision)
    started = time.monotonic()
    deadline = started + timeout_s
    pause = _FIRST_PAUSE_S
    told = ""
    while True:
        try:
            _look(_impatient(target), wanted)
            break
        except db.PasswordRequired:
            raise
        except (ConnectError, RevisionError, InUseError) as failure:
            missing = failure
        left = deadline - time.monotonic()
        if left <= 0:
            raise type(missing)(
                f"waited {timeout_s:g} s for {wanted} in vain: {missing.message}", missing.hint
            )
        if missing.message != told:
            pause, told = _FIRST_PAUSE_S, missing.message
            yield Waiting(told)
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
    yield Reached(str(wanted), round(time.monotonic() - started, 1))


def _impatient(target: db.Target) -> db.Target:
    """A look is one try, and ends soon."""
    given = db.parse_dsn(target.dsn)
    dsn = make_dsn(**{"connect_timeout": str(_CONNECT_TIMEOUT_S), **given})
    return replace(target, dsn=dsn, retries=0)


def _look(target: db.Target, wanted: Wanted) -> None:
    """Raise what is missing."""
    with closing(db.connect(target, autocommit=True, readonly=True)) as conn, db.translate_errors(conn):
        if wanted.replica:
            _check_replica(conn)
        elif wanted.ready or wanted.unlocked:
            _check_primary(conn)  # it has the locks
        if wanted.unlocked:
            _check_unlocked(conn)
        if wanted.revision is not None:
            _check_revision(conn, target.schema, wanted.revision)


def _check_primary(conn: Connection) -> None:
    with conn.cursor() as cur:
        cur.execute("SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean")
        [(standby, readonly)] = cur.fetchall()
    hint = "name the primary with --host, or list all hosts in the URI beside target_session_attrs=read-write"
    if standby:
        raise ConnectError("the server is a standby (in recovery)", hint)
    if readonly:
        raise ConnectError("the server is read-only (default_transaction_read_only is on)", hint)


def _check_replica(conn: Connection) -> None:
    with conn.cursor() as cur:
        cur.execute(_REPLICA)
        [(standby, receives, behind_bytes)] = cur.fetchall()
    hint = "compare primary_conninfo, the slot and pg_stat_replication of the primary, and the log of the standby"
    if not standby:
        raise ConnectError("the server is a primary, wanted is a standby", "name the standby with --host")
    if not receives:
        raise ConnectError("the standby receives nothing from its primary", hint)
    if behind_bytes is None or behind_bytes > _PARTIAL_RECORD_BYTES:
        behind = "an unknown amount" if behind_bytes is None else f"{behind_bytes} bytes"
        raise ConnectError(f"the standby has still to replay {behind}", hint)


def _check_unlocked(conn: Connection) -> None:
    holders = db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)
    if holders:
        who = "; ".join(
            f"lock {holder.lock} ({db.LOCK_NAMES[holder.lock]}) by {holder}" for holder in holders
        )
        raise InUseError(f"locked: {who}", "see who that is: pgorthanc check-lock")


def _check_revision(conn: Connection, schema: str, wanted: int) -> None:
    try:
        found = catalog.snapshot(conn, schema)
        here = catalog.layout(found, schema)
    except ConnectError as error:  # there is no such schema yet
        raise RevisionError(error.message, error.hint) from None
    if here is None:
        raise RevisionError(
            f"schema {schema} of database {conn.info.dbname} holds no Orthanc index", "run: pgorthanc init"
        )
    recorded = found.get("property 4", "none")
    if (here.name, recorded) != (str(wanted), str(wanted)):
        more = "" if recorded == here.name else f" and says that it is at {recorded}"
        command = "upgrade" if here.revision < wanted else "downgrade"
        raise RevisionError(
            f"index is at revision {here.name}{more}, wanted {wanted}",
            f"run: pgorthanc {command} --to {wanted}",
        )
