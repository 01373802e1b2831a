"""The one way to a PostgreSQL server: targets, connections, advisory locks.

`psycopg2.connect` is called here and nowhere else, and driver errors are translated at this border.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import make_dsn, parse_dsn

from pgorthanc_cli.errors import ConnectError, InUseError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

# Orthanc's advisory locks: session-level, single-bigint form, one database wide (SCHEMA.md 8).
LOCK_INDEX = 42
LOCK_STORAGE = 43
LOCK_DATABASE_SETUP = 44
LOCK_CREATE_INSTANCE = 45
LOCK_NAMES = {
    LOCK_INDEX: "index",
    LOCK_STORAGE: "storage",
    LOCK_DATABASE_SETUP: "database set-up",
    LOCK_CREATE_INSTANCE: "create instance",
}

# Firewalls and load balancers drop silent connections after 4 to 6 minutes; libpq's default is 2 hours.
KEEPALIVE = {"keepalives": "1", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


@dataclass(frozen=True, repr=False)
class Target:
    """Where an Orthanc database is and how to log in; picklable, and its text never shows the password.

    Attributes:
        dsn: A libpq connection string (keyword/value or URI); what it leaves out, libpq takes from its own
            environment, service file and .pgpass.
        schema: The PostgreSQL namespace of the index, in its exact case.
        retries: How often to try again while the server cannot be reached (MaximumConnectionRetries).
        retry_interval_s: Seconds between two tries (ConnectionRetryInterval).
        application: The command, as in `pgorthanc import`; becomes application_name.
    """

    dsn: str
    schema: str = "public"
    retries: int = 0
    retry_interval_s: float = 5.0
    application: str = "pgorthanc"

    def parameters(self) -> dict[str, str]:
        """The DSN as keywords and values, with our defaults where it says nothing."""
        return {"application_name": self.application, **KEEPALIVE, **parse_dsn(self.dsn)}

    def __str__(self) -> str:
        shown = {k: "***" if k in ("password", "sslpassword") else v for k, v in parse_dsn(self.dsn).items()}
        return f"{make_dsn(**shown)} schema={self.schema}".strip()

    def __repr__(self) -> str:
        return f"Target({self})"


def connect(target: Target, *, autocommit: bool = False, readonly: bool = False) -> Connection:
    """Open a connection whose search_path is exactly the target's schema (as the plugin >= 10.0 sets it).

    Raises:
        ConnectError: The server cannot be reached or refuses the login; never shows the password.
    """
    for attempt in range(target.retries + 1):
        try:
            conn = psycopg2.connect(make_dsn(**target.parameters()))
            break
        except psycopg2.OperationalError as error:
            if attempt == target.retries:
                raise ConnectError(str(error).strip()) from None
            time.sleep(target.retry_interval_s)
    conn.set_session(autocommit=True, readonly=readonly)
    with conn.cursor() as cur:
        cur.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(target.schema)))
    conn.set_session(autocommit=autocommit)
    return conn


@contextmanager
def session(target: Target, *, autocommit: bool = False, readonly: bool = False) -> Iterator[Connection]:
    """A connection for the length of a block; driver errors leave it translated."""
    conn = connect(target, autocommit=autocommit, readonly=readonly)
    try:
        yield conn
    except psycopg2.OperationalError as error:
        raise ConnectError(str(error).strip()) from error
    finally:
        conn.close()


@dataclass(frozen=True)
class LockHolder:
    """A session that holds one of Orthanc's advisory locks."""

    lock: int
    pid: int
    role: str | None
    application: str | None
    address: str | None
    since: datetime | None
    state: str | None

    def __str__(self) -> str:
        since = f" since {self.since:%Y-%m-%d %H:%M:%S}" if self.since else ""
        return (
            f"pid {self.pid}, application {self.application or 'without a name'}, "
            f"role {self.role or 'hidden'}, address {self.address or 'local'}{since}"
        )


def lock_holders(conn: Connection, *locks: int) -> list[LockHolder]:
    """Who holds Orthanc's advisory locks in this database, read from pg_locks: no lock is tried."""
    wanted = list(locks or LOCK_NAMES)
    with conn.cursor() as cur:
        cur.execute(
            """SELECT l.objid::bigint, l.pid, a.usename, a.application_name, a.client_addr::text, a.backend_start, a.state
               FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
               WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objsubid = 1 AND l.granted
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                 AND l.objid::bigint = ANY(%s) ORDER BY 1, 2""",
            (wanted,),
        )
        return [LockHolder(*row) for row in cur.fetchall()]


@contextmanager
def advisory_lock(conn: Connection, lock: int, *, wait_s: float = 5.0) -> Iterator[None]:
    """Hold one of Orthanc's advisory locks, tried every 0.5 s as Orthanc does it.

    Raises:
        InUseError: Somebody else still holds it after `wait_s` seconds; the message says who.
    """
    deadline = time.monotonic() + wait_s
    while not _try_lock(conn, lock):
        if time.monotonic() >= deadline:
            who = "; ".join(str(h) for h in lock_holders(conn, lock)) or "a session that has just ended"
            raise InUseError(
                f"Orthanc's {LOCK_NAMES[lock]} lock ({lock}) is held by {who}",
                "stop that Orthanc, or wait until its work is done; then run the same command again",
            )
        time.sleep(0.5)
    try:
        yield
    finally:
        if not conn.closed:
            conn.rollback()
            with conn.cursor() as cur:
                cur.execute("SELECT pg_advisory_unlock(%s)", (lock,))
            conn.commit()


def _try_lock(conn: Connection, lock: int) -> bool:
    with conn.cursor() as cur:
        cur.execute("SELECT pg_try_advisory_lock(%s)", (lock,))
        row = cur.fetchone()
    conn.commit()
    return bool(row and row[0])
