"""Wait for a server, an index, its locks or a standby: for init containers, ExecStartPre and CI."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, InUseError, RevisionError, UsageError
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.text import duration

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
# A server that does not answer must not delay the end by much.
_CONNECT_TIMEOUT_S = 5

# The third column is the WAL still to be replayed: up to the end that the primary announced (NULL without the
# privilege to see it), else up to what has arrived.
_REPLICA = """
    SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_stat_wal_receiver),
           greatest((SELECT latest_end_lsn FROM pg_stat_wal_receiver), pg_last_wal_receive_lsn())
               - pg_last_wal_replay_lsn()
"""
# WAL arrives in pages. The last record may be incomplete: it ends no transaction, and its rest arrives only when the
# primary writes again, or after seconds.
_PARTIAL_RECORD_BYTES = 1 << 16


@dataclass(frozen=True)
class Conditions:
    """What to wait for, all of it.

    Attributes:
        ready: The server accepts the login and takes changes.
        revision: The index is at this revision.
        unlocked: No session holds the locks 42, 43 and 44.
        replica: The server is a standby that receives from its primary and has replayed what it got.
    """

    ready: bool = False
    revision: int | None = None
    unlocked: bool = False
    replica: bool = False

    def __str__(self) -> str:
        """The name in messages."""
        names = {
            "a server that takes changes": self.ready,
            "a standby that is up to date": self.replica,
            "no locks of Orthanc": self.unlocked,
            f"an index at revision {self.revision}": self.revision is not None,
        }
        return " and ".join(name for name, required in names.items() if required)


@dataclass(frozen=True)
class Reached:
    """The conditions that are met, how long that took, and where."""

    reached: str
    waited_s: float
    endpoint: db.Endpoint


def wait(target: db.Target, conditions: Conditions, *, timeout_s: float, report: Report = silent) -> Reached:
    """Check on a new connection each time, until all conditions are met; report each new reason to wait.

    The checks come ever less often, up to 2 s apart, and quickly again after any change.

    Raises:
        ConnectError: Timed out: the server cannot be reached, refuses the login, or has the wrong role.
        RevisionError: Timed out: the index is at another revision, or there is none.
            Immediately: there is no such revision.
        InUseError: Timed out: a session holds a lock.
        PasswordRequired: Immediately, as waiting does not help.
        UsageError: Immediately: a standby takes no changes, and does not know the locks of its primary.
    """
    if conditions.replica and (conditions.ready or conditions.unlocked):
        raise UsageError(
            f"no server can be {conditions}: a standby takes no changes and does not know the locks of its "
            "primary",
            "wait for the primary and for the standby, one after the other",
        )
    if conditions.revision is not None:
        catalog.require_revision(conditions.revision)
    # One attempt per check, and a short one.
    dsn = make_dsn(**{"connect_timeout": str(_CONNECT_TIMEOUT_S), **db.parse_dsn(target.dsn)})
    target = replace(target, dsn=dsn, retries=0)
    started = time.monotonic()
    deadline = started + timeout_s
    pause_s = _FIRST_PAUSE_S
    reason = ""
    while True:
        try:
            endpoint = _check(target, conditions)
            return Reached(str(conditions), round(time.monotonic() - started, 1), endpoint)
        except db.PasswordRequired:
            raise
        except (ConnectError, RevisionError, InUseError) as error:
            unmet = error
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            message = f"timed out after {duration(timeout_s)}, waiting for {conditions}: {unmet.message}"
            raise type(unmet)(message, unmet.hint)
        if unmet.message != reason:
            pause_s, reason = _FIRST_PAUSE_S, unmet.message
            report(Progress("waiting", reason))
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def _check(target: db.Target, conditions: Conditions) -> db.Endpoint:
    """Return where the conditions are met; raise an error for the first one that is not."""
    connection = db.connect(target, autocommit=True, readonly=True)
    with closing(connection) as conn, db.translate_errors(conn):
        if conditions.replica:
            _check_replica(conn)
        elif conditions.ready or conditions.unlocked:
            _check_primary(conn)  # a standby does not know the locks
        if conditions.unlocked:
            _check_unlocked(conn)
        if conditions.revision is not None:
            _check_revision(conn, target.schema, conditions.revision)
        return db.endpoint(conn)


def _check_primary(conn: Connection) -> None:
    [(is_standby, is_readonly)] = db.rows(
        conn, "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean"
    )
    hint = "name the primary with --host, or list all hosts in the URI beside target_session_attrs=read-write"
    if is_standby:
        raise ConnectError("the server is a standby (in recovery)", hint)
    if is_readonly:
        raise ConnectError("the server is read-only (default_transaction_read_only is on)", hint)


def _check_replica(conn: Connection) -> None:
    [(is_standby, is_receiving, behind_bytes)] = db.rows(conn, _REPLICA)
    hint = "compare primary_conninfo, the slot and pg_stat_replication of the primary, and the log of the standby"
    if not is_standby:
        raise ConnectError("the server is a primary, wanted is a standby", "name the standby with --host")
    if not is_receiving:
        raise ConnectError("the standby receives nothing from its primary", hint)
    if behind_bytes is None or behind_bytes > _PARTIAL_RECORD_BYTES:
        behind = "an unknown amount" if behind_bytes is None else f"{behind_bytes} bytes"
        raise ConnectError(f"the standby has still to replay {behind}", hint)


def _check_unlocked(conn: Connection) -> None:
    holders = db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)
    if holders:
        names = "; ".join(map(str, holders))
        raise InUseError(
            f"{db.endpoint(conn)} is in use: {names}", "to see its sessions: pgorthanc check-lock"
        )


def _check_revision(conn: Connection, schema: str, revision: int) -> None:
    try:
        actual = catalog.snapshot(conn, schema)
        layout = catalog.layout(actual, schema)
    except ConnectError as error:  # the schema does not exist yet
        raise RevisionError(error.message, error.hint) from None
    if layout is None:
        raise RevisionError(
            f"schema {schema} of database {conn.info.dbname} holds no Orthanc index",
            f"run: pgorthanc init --revision {revision}",
        )
    recorded = actual.get("property 4", "none")
    if (layout.name, recorded) != (str(revision), str(revision)):
        difference = "" if recorded == layout.name else f" and says that it is at {recorded}"
        command = "downgrade" if layout.revision > revision else "upgrade"
        raise RevisionError(
            f"index is at revision {layout.name}{difference}, wanted {revision}",
            f"run: pgorthanc {command} --to {revision}",
        )
