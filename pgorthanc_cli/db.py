"""The one way to a PostgreSQL server: targets, connections, advisory locks.

`psycopg2.connect` is called here and nowhere else, and driver errors are translated at this border.
"""

from __future__ import annotations

import logging
import os
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_UNKNOWN,
    make_dsn,
    parse_dsn,
)

from pgorthanc_cli import connect_errors
from pgorthanc_cli.connect_errors import MissingDatabase, PasswordRequired
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, UsageError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

__all__ = [
    "KEEPALIVE", "LOCK_CREATE_INSTANCE", "LOCK_DATABASE_SETUP", "LOCK_INDEX", "LOCK_NAMES", "LOCK_STORAGE",
    "MASK", "SECRETS", "LockHolder", "MissingDatabase", "PasswordRequired", "Target", "advisory_lock", "check_schema",
    "check_writable", "connect", "connect_async", "effective", "finish", "lock_holders", "parse", "replication_session",
    "row", "rows", "session", "translated", "value",
]  # fmt: skip

# Orthanc's advisory locks: session-level, single-bigint form, one database wide (SCHEMA.md 8).
LOCK_INDEX = 42
LOCK_STORAGE = 43
LOCK_DATABASE_SETUP = 44
LOCK_CREATE_INSTANCE = 45
# Ours: whoever brings the index to another revision, in whatever phase, holds it. Orthanc does not know it.
LOCK_TRANSITION = 0x50474F52
LOCK_NAMES = {
    LOCK_INDEX: "index",
    LOCK_STORAGE: "storage",
    LOCK_DATABASE_SETUP: "database set-up",
    LOCK_CREATE_INSTANCE: "create instance",
    LOCK_TRANSITION: "upgrade",
}

# Firewalls and load balancers drop silent connections after 4 to 6 minutes; libpq's default is 2 hours.
KEEPALIVE = {"keepalives": "1", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
# What is sent into a cut network is not acknowledged; without this the kernel gives up after about 15 minutes.
# It is 60 s then, as long as it takes the probes to find that an idle connection is cut.
_UNANSWERED = {"tcp_user_timeout": "60000"}
# A server that takes the connection and says nothing would keep libpq waiting for ever, deaf to Ctrl-C.
_PATIENCE = {"connect_timeout": "30"}

# libpq's parameters that are never shown, and what is shown instead.
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
MASK = "***"

# A password with a bare @ or / moves the rest of the URI: part of it would become the host or the database.
_BARE_AT = re.compile(r"postgres(?:ql)?://(?:[^/?]*@[^/?]*@|[^?]*/[^?]*@)")
_LOST = ("08", "57P0")  # SQLSTATE classes: connection exception, shutdown
_SEVERITY = re.compile(r"\S+:  ")  # how a text of the server begins, in whatever language

_URI_HINT = (
    "write it as postgresql://role:password@host:5432/database, "
    "and in the password %40 for @, %2F for /, %3A for :, %25 for %"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Target:
    """Where an Orthanc database is and how to log in; picklable, and its text never shows the password.

    Attributes:
        dsn: A libpq connection string (keyword/value or URI); what it leaves out, libpq takes from its own
            environment, service file and .pgpass.
        schema: The PostgreSQL namespace of the index, in its exact case.
        retries: How often to try again while the server cannot be reached (MaximumConnectionRetries).
        retry_interval_s: Seconds between two tries (ConnectionRetryInterval).
        application: The command, as in `pgorthanc import`; the application_name unless DSN, PGAPPNAME or the
            service file gives one.
    """

    dsn: str
    schema: str = "public"
    retries: int = 0
    retry_interval_s: float = 5.0
    application: str = "pgorthanc"

    def parameters(self) -> dict[str, str]:
        """The DSN as keywords and values, with our defaults where it says nothing.

        With a service file there is none of them: a parameter given here would override the file's.
        """
        given = parse(self.dsn)
        defaults = {"fallback_application_name": self.application}
        if "service" not in given and not os.environ.get("PGSERVICE"):
            told = any(name.startswith("keepalives") for name in given)
            defaults |= KEEPALIVE if told else {**KEEPALIVE, **_UNANSWERED}
            defaults |= {} if os.environ.get("PGCONNECT_TIMEOUT") else _PATIENCE
        return {**defaults, **given}

    def with_password(self, password: str) -> Target:
        """The same target, logging in with that password."""
        return replace(self, dsn=make_dsn(**{**parse(self.dsn), "password": password}))

    def __str__(self) -> str:
        """As errors and prompts name it."""
        shown = {name: MASK if name in SECRETS else value for name, value in parse(self.dsn).items()}
        return f"{make_dsn(**shown)} schema={self.schema}".strip()

    def __repr__(self) -> str:
        """As tracebacks name it, without the password, too."""
        return f"Target({self})"


def parse(dsn: str, origin: str = "the connection string") -> dict[str, str]:
    """A connection string, keyword/value or URI, as libpq understands it; `origin` names it in errors.

    Raises:
        UsageError: libpq does not understand it, or it holds a bare @ or / that libpq misunderstands.
    """
    try:
        found: dict[str, str] = parse_dsn(dsn)
    except psycopg2.ProgrammingError as error:
        reason = re.sub(
            r'".*"', '"..."', str(error).strip(), flags=re.DOTALL
        )  # it quotes parts of the password
        reason = reason.removeprefix("invalid dsn: ")
        raise UsageError(f"{origin} is no connection string: {reason}", _URI_HINT) from None
    if _BARE_AT.match(dsn):
        raise UsageError(
            f"{origin} holds an @ too many: libpq would take a part of the password for a host", _URI_HINT
        )
    return found


def connect(target: Target, *, autocommit: bool = False, readonly: bool = False) -> Connection:
    """Open a connection whose search_path is exactly the target's schema (as the plugin >= 10.0 sets it).

    Neither the schema needs to exist nor the server to be writable: `session` checks both.

    Raises:
        ConnectError: The server cannot be reached or refuses the login; never shows the password.
        PasswordRequired: The server asks for a password and none was given.
        MissingDatabase: There is no such database.
    """
    conn = _connect_patiently(target)
    with translated(conn):
        conn.set_session(autocommit=True, readonly=readonly or None)
        with conn.cursor() as cur:
            cur.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(target.schema)))
        conn.set_session(autocommit=autocommit)
    return conn


def connect_async(target: Target, *, timeout_s: float = 10.0) -> Connection:
    """Open a connection in psycopg2's asynchronous mode, for work that must never wait for the network.

    No statement is sent, search_path stays the server's: behind a pooler the session may be somebody else's next.

    Raises:
        ConnectError: As `connect`; also no login within `timeout_s` seconds.
    """

    def begin(dsn: str) -> Connection:
        conn = psycopg2.connect(dsn, async_=True)
        try:
            finish(conn, timeout_s)
        except TimeoutError:
            conn.close()
            raise psycopg2.OperationalError("timeout expired") from None
        return conn

    return _connect_patiently(target, begin)


def effective(target: Target) -> dict[str, str]:
    """What libpq makes of a target: with its environment, service file, .pgpass and defaults.

    `host` is always among it, `password` where one is known. Reaches for the server and leaves before the first word.

    Raises:
        ConnectError: No host of that name, no such socket, no such service.
    """
    conn = _connect_patiently(replace(target, retries=0), lambda dsn: psycopg2.connect(dsn, async_=True))
    try:
        info = conn.info
        place = {"host": info.host, "port": str(info.port), "user": info.user, "dbname": info.dbname}
        found = {**place, **info.dsn_parameters, "password": info.password or ""}
    finally:
        conn.close()
    # Before the login psycopg2 has U+FFFD for all that is not ASCII; then the text that libpq has read counts.
    variables = {"user": "PGUSER", "dbname": "PGDATABASE", "password": "PGPASSWORD"}
    written = {name: os.environ.get(variable, "") for name, variable in variables.items()} | parse(target.dsn)
    exact = {name: written.get(name, "") if "\ufffd" in value else value for name, value in found.items()}
    return {name: value for name, value in exact.items() if value}


def finish(conn: Connection, timeout_s: float) -> None:
    """Wait until an asynchronous connection has done what it was asked.

    Raises:
        TimeoutError: It has not within that many seconds.
    """
    deadline = time.monotonic() + timeout_s
    while (state := conn.poll()) != POLL_OK:
        waiting = [conn.fileno()]
        reads, writes = (waiting, []) if state == POLL_READ else ([], waiting)
        if not any(select.select(reads, writes, [], max(deadline - time.monotonic(), 0))):
            raise TimeoutError(f"no answer within {timeout_s:g} s")


def _connect_patiently(target: Target, begin: Callable[[str], Connection] = psycopg2.connect) -> Connection:
    """Try `retries` times more, but only after failures that heal by themselves."""
    parameters = target.parameters()
    for left in range(target.retries, -1, -1):
        try:
            return begin(make_dsn(**parameters))
        except psycopg2.OperationalError as error:
            text = str(error)
        except UnicodeDecodeError as error:  # before the login the server writes in an encoding of its own
            text = error.object.decode("utf-8", "replace")
        failure, heals = connect_errors.explain(text, parameters)
        if not heals or not left:
            raise failure
        _log.warning("%s; next try in %g s, %d left", failure, target.retry_interval_s, left)
        time.sleep(target.retry_interval_s)
    raise AssertionError


@contextmanager
def session(
    target: Target, *, autocommit: bool = False, readonly: bool = False, need_schema: bool = True
) -> Iterator[Connection]:
    """A connection for the length of a block; driver errors leave it translated.

    Args:
        target: The database.
        autocommit: Whether each statement is a transaction of its own.
        readonly: The block only reads; a standby will do.
        need_schema: The schema has to exist; `init` says itself what to do when it does not.

    Raises:
        ConnectError: As `connect`; also a missing schema, a read-only server, a lost connection.
        PgOrthancError: The server refuses a statement.
    """
    conn = connect(target, autocommit=autocommit, readonly=readonly)
    try:
        with translated(conn, target.schema):
            if not readonly:
                check_writable(conn)
            if need_schema:
                check_schema(conn, target.schema)
            yield conn
    finally:
        conn.close()


@contextmanager
def replication_session(target: Target) -> Iterator[Connection]:
    """A connection that speaks the streaming replication protocol: no SQL, but SHOW, IDENTIFY_SYSTEM and slots.

    Raises:
        ConnectError: As `connect`; pg_hba.conf decides by a line for the database `replication`.
    """
    dsn = make_dsn(**{**parse(target.dsn), "replication": "true"})
    conn = _connect_patiently(replace(target, dsn=dsn))
    try:
        with translated(conn):
            conn.autocommit = True
            yield conn
    finally:
        conn.close()


def check_writable(conn: Connection) -> None:
    """Make sure that the server takes changes.

    Raises:
        ConnectError: It is a standby, or its sessions are read-only by default.
    """
    standby, readonly, primary = _row(
        conn,
        """SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only'),
                  (SELECT sender_host || ':' || sender_port FROM pg_stat_wal_receiver)""",
    )
    if not standby and readonly == "off":
        return
    what = "is a standby (in recovery)" if standby else "is read-only (default_transaction_read_only is on)"
    raise ConnectError(
        f"the server {_place(conn)} {what}, and this command writes",
        f"name the primary{f', {primary},' if primary else ''} with --host, "
        "or list all hosts in the URI beside target_session_attrs=read-write",
    )


def check_schema(conn: Connection, schema: str) -> None:
    """Make sure that a namespace is there and may be used.

    Raises:
        ConnectError: It does not exist, or the role has no USAGE on it.
    """
    query = (
        """SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_catalog.pg_namespace n WHERE n.nspname = %s"""
    )
    row = _row(conn, query, schema)
    if row and row[0]:
        return
    quoted = sql.Identifier(schema).as_string(conn)
    role = sql.Identifier(conn.info.user).as_string(conn)
    if row:
        raise ConnectError(
            f"role {role} may not use schema {quoted}", f"GRANT USAGE ON SCHEMA {quoted} TO {role};"
        )
    raise ConnectError(
        f"database {conn.info.dbname} has no schema {quoted}",
        f"name another one with --schema, or create it: CREATE SCHEMA {quoted} AUTHORIZATION {role};",
    )


@contextmanager
def translated(conn: Connection, schema: str | None = None) -> Iterator[None]:
    """Driver errors leave the block as ours, without DETAIL and statement, which may hold patient data.

    Raises:
        ConnectError: The connection is lost.
        PgOrthancError: The server refused a statement: its primary message and SQLSTATE.
    """
    try:
        yield
    except psycopg2.Error as error:
        raise _translate(error, conn, schema) from None


def primary_message(error: psycopg2.Error) -> str:
    """What the server says in one line; never the values of a row, which may be patient data."""
    primary: str = error.diag.message_primary or _SEVERITY.sub("", str(error).strip().partition("\n")[0])
    if (error.pgcode or "").startswith("22"):  # data exceptions quote the value
        primary = re.sub(r'".*"', '"..."', primary, flags=re.DOTALL)
    return primary


def _translate(error: psycopg2.Error, conn: Connection, schema: str | None = None) -> PgOrthancError:
    state = error.pgcode or ""
    primary = primary_message(error)
    # Without a SQLSTATE it is libpq that complains, and not about `conn` if a block works with two connections.
    # A server that is killed may make it a bare DatabaseError; of what the server says about a large object
    # nothing but the text is passed on.
    lost = (psycopg2.OperationalError, psycopg2.InterfaceError)
    about_object = _SEVERITY.match(str(error)) and conn.info.transaction_status != TRANSACTION_STATUS_UNKNOWN
    gone = not (state or about_object) and (isinstance(error, lost) or type(error) is psycopg2.DatabaseError)
    if conn.closed or gone or state.startswith(_LOST):
        return ConnectError(
            f"the connection to {_place(conn)} was lost: {primary}",
            "see whether the server still runs (its log says what happened), then run the same command again",
        )
    return PgOrthancError(
        f"PostgreSQL: {primary}" + (f" (SQLSTATE {state})" if state else ""),
        _hint(state, primary, conn, schema),
    )


# The commands that only read, by the application_name of their sessions.
_READING = re.compile(
    r"pgorthanc (?:status|doctor|verify|check-|config|wait|support-bundle|replication status)"
)
_READ = "GRANT SELECT ON ALL {kind} IN SCHEMA {schema} TO {role};"
_WRITE = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
    "GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}; "
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};"
)


def hint(error: psycopg2.Error, conn: Connection, schema: str | None = None) -> str | None:
    """Return what to do about a statement that the server refused."""
    return _hint(error.pgcode or "", primary_message(error), conn, schema)


def _hint(state: str, primary: str, conn: Connection, schema: str | None = None) -> str | None:
    if state == "42501":
        role = sql.Identifier(conn.info.user).as_string(conn)
        denied = re.match(r"permission denied for (table|sequence|function) \S+", primary)
        if not denied or schema is None:
            return f"log in as its owner, or as a role that may do this: role {role} may not"
        reads = conn.readonly or _READING.match(conn.info.parameter_status("application_name") or "")
        grants = _READ if reads and denied[1] != "function" else _WRITE
        kind = "SEQUENCES" if denied[1] == "sequence" else "TABLES"
        name = sql.Identifier(schema).as_string(conn)
        return f"as the owner of the index: {grants.format(kind=kind, schema=name, role=role)}"
    if state in ("53100", "53200", "53300") or "No space left on device" in primary:
        return "the server lacks disk space, memory or connections: make room, then run it again"
    if state == "25006":
        return (
            "the server is read-only or a standby: name the primary, or use target_session_attrs=read-write"
        )
    return None


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
        """As errors name it."""
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
            """SELECT l.objid::bigint, l.pid, a.usename, a.application_name, host(a.client_addr),
                      a.backend_start, a.state
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

    Taken and released in transactions of its own: what the connection has open is committed first, and what
    the block leaves uncommitted is rolled back. A lost connection has lost the lock, too; no second error then.

    Raises:
        InUseError: Somebody else still holds it after `wait_s` seconds; the message says who.
    """
    conn.commit()
    deadline = time.monotonic() + wait_s
    while not _row(conn, "SELECT pg_try_advisory_lock(%s)", lock)[0]:
        if time.monotonic() >= deadline:
            who = "; ".join(str(h) for h in lock_holders(conn, lock)) or "a session that has just ended"
            conn.rollback()
            raise InUseError(
                f"Orthanc's {LOCK_NAMES[lock]} lock ({lock}) is held by {who}",
                "stop that Orthanc, or wait until its work is done; then run the same command again",
            )
        time.sleep(0.5)
    try:
        yield
    finally:
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            conn.rollback()
            _row(conn, "SELECT pg_advisory_unlock(%s)", lock)


def rows(conn: Connection, query: str | sql.Composable, *arguments: object) -> list[tuple[Any, ...]]:
    """Return all rows of a query, `%s` standing for the arguments."""
    with conn.cursor() as cur:
        cur.execute(query, arguments or None)
        return cur.fetchall()


def row(conn: Connection, query: str | sql.Composable, *arguments: object) -> tuple[Any, ...] | None:
    """Return the first row of a query, None if there is none."""
    with conn.cursor() as cur:
        cur.execute(query, arguments or None)
        return cur.fetchone()


def value(conn: Connection, query: str | sql.Composable, *arguments: object) -> Any:
    """Return the first column of the first row of a query, None if there is no row."""
    first = row(conn, query, *arguments)
    return first[0] if first else None


def _row(conn: Connection, query: str, *arguments: object) -> tuple[Any, ...]:
    """The first row, empty if there is none, in a transaction of its own unless one is open."""
    idle = conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    first = row(conn, query, *arguments)
    if idle:
        conn.commit()
    return first or ()


def _place(conn: Connection) -> str:
    return f"{conn.info.host or 'local socket'}:{conn.info.port}"
