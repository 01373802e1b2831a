"""The one way to a PostgreSQL server: targets, connections, advisory locks.

`psycopg2.connect` is called here and nowhere else, and driver errors are translated at this border.
"""

from __future__ import annotations

import logging
import os
import re
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import psycopg2
from psycopg2 import extensions, sql
from psycopg2.extensions import POLL_OK, POLL_READ, make_dsn

from pgorthanc_cli.db import connect_errors, libpq, planted
from pgorthanc_cli.db.safe_session import SAFE_SEARCH_PATH, Session, alone
from pgorthanc_cli.db.statement_errors import place, translate_errors
from pgorthanc_cli.errors import ConnectError, UsageError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Firewalls and load balancers drop silent connections after 4 to 6 minutes; libpq's default is 2 hours.
KEEPALIVE = {"keepalives": "1", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
# What is sent into a cut network is not acknowledged; without this the kernel gives up after about 15 minutes.
# It is 60 s then, as long as it takes the probes to find that an idle connection is cut.
_USER_TIMEOUT = {"tcp_user_timeout": "60000"}
# A server that takes the connection and says nothing would keep libpq waiting for ever, deaf to Ctrl-C.
CONNECT_TIMEOUT = {"connect_timeout": "30"}

# Python's text is sent as UTF-8, so each session says so: PGCLIENTENCODING, a service file, a URI, ALTER ROLE and
# ALTER DATABASE would make the server take it for another encoding. Text of the index: see encoding.py.
_TEXT = {"client_encoding": "UTF8"}

# libpq's parameters that are never shown, and what is shown instead.
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
MASK = "***"

# A password with a bare @ or / moves the rest of the URI: part of it would become the host or the database.
_BARE_AT = re.compile(r"postgres(?:ql)?://(?:[^/?]*@[^/?]*@|[^?]*/[^?]*@)")

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
        """Return the DSN as keywords and values, with our defaults where it says nothing.

        With a service file there is none of them: a parameter given here would override the file's. The client
        encoding is always UTF8, whatever is given.
        """
        given = parse_dsn(self.dsn)
        defaults = {"fallback_application_name": self.application}
        if "service" not in given and not os.environ.get("PGSERVICE"):
            told = any(name.startswith("keepalives") for name in given)
            defaults |= KEEPALIVE if told else {**KEEPALIVE, **_USER_TIMEOUT}
            defaults |= {} if os.environ.get("PGCONNECT_TIMEOUT") else CONNECT_TIMEOUT
        return {**defaults, **given, **_TEXT}

    def with_password(self, password: str) -> Target:
        """The same target, logging in with that password."""
        return replace(self, dsn=make_dsn(**{**parse_dsn(self.dsn), "password": password}))

    def __str__(self) -> str:
        """As errors and prompts name it."""
        shown = {name: MASK if name in SECRETS else value for name, value in parse_dsn(self.dsn).items()}
        return f"{make_dsn(**shown)} schema={self.schema}".strip()

    def __repr__(self) -> str:
        """As tracebacks name it, without the password, too."""
        return f"Target({self})"


def parse_dsn(dsn: str, origin: str = "the connection string") -> dict[str, str]:
    """A connection string, keyword/value or URI, as libpq understands it; `origin` names it in errors.

    Raises:
        UsageError: libpq does not understand it, or it holds a bare @ or / that libpq misunderstands.
    """
    if "\0" in dsn:  # libpq would ignore what follows
        raise UsageError(f"{origin} contains a NUL character", "remove it")
    try:
        parameters: dict[str, str] = extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError as error:
        reason = _without_quoted(str(error).strip().removeprefix("invalid dsn: "), dsn)
        raise UsageError(f"{origin} is no connection string: {reason}", _URI_HINT) from None
    if _BARE_AT.match(dsn):
        raise UsageError(
            f"{origin} holds an @ too many: libpq would take a part of the password for a host", _URI_HINT
        )
    return parameters


def _without_quoted(reason: str, dsn: str) -> str:
    """Libpq's complaint without what it quotes, unless that is the name of a parameter and no part of a password."""
    uri = re.fullmatch(r"\w+://(?:[^?]*@[^?@]*|[^?:@]*(?::\d+)?/[^?:@]*)\?[^@]*", dsn)
    option = r'invalid (?:URI query parameter:|connection option) "\w+"'
    if re.fullmatch(option, reason) and (uri or not re.search("pass|://", dsn, re.IGNORECASE)):
        return reason
    return re.sub(r'".*"', '"..."', reason, flags=re.DOTALL)


def connect(target: Target, *, autocommit: bool = False, readonly: bool = False) -> Session:
    """Open a connection for statements that run nobody else's code and leave nothing behind, see `safe_session`.

    With `readonly` search_path is PostgreSQL's own schema, in transactions that read and are complete in themselves;
    else it is exactly the target's schema (as the plugin >= 10.0 sets it). Neither the schema needs to exist nor
    the server to be writable: `session` checks both.

    Raises:
        ConnectError: The server cannot be reached or refuses the login; never shows the password. Or a pooler
            gives each transaction to another session, and this connection may write.
        PasswordRequired: The server asks for a password and none was given.
        MissingDatabase: There is no such database.
    """
    conn = _open(target)
    with _closed_on_failure(conn), translate_errors(conn):
        if not readonly:
            allow_writes(conn)
        conn.autocommit = autocommit or (readonly and conn.pooled)  # some poolers take no BEGIN
    return conn


def _open(target: Target) -> Session:
    """An autocommit connection that reads."""

    def begin(dsn: str) -> Session:
        return psycopg2.connect(dsn, connection_factory=Session)

    conn: Session = _connect_patiently(target, begin)
    with _closed_on_failure(conn), translate_errors(conn):
        conn.target = target
        if conn.encoding != _TEXT["client_encoding"]:  # a pooler that does not pass parameters on
            conn.set_client_encoding(_TEXT["client_encoding"])
        conn.prepare(target.schema)
    return conn


@contextmanager
def _closed_on_failure(conn: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        conn.close()
        raise


def allow_writes(conn: Connection, *, path: str | None = None) -> None:
    """Make a connection that reads one that writes: search_path becomes the target's schema, or `path`.

    Raises:
        ConnectError: A pooler gives each transaction to another session.
    """
    session = cast("Session", conn)
    _require_own_session(session)
    session.write(path)


def _require_own_session(conn: Session) -> None:
    if conn.pooled:
        from pgorthanc_cli.db import pooler  # it is a user of this module

        pooler.require_own_session(conn)


def connect_async(target: Target, *, timeout_s: float = 10.0) -> Connection:
    """Open a connection in psycopg2's asynchronous mode, for work that must never wait for the network.

    No statement is sent, search_path stays the server's: behind a pooler the session may be somebody else's next.

    Raises:
        ConnectError: As `connect`; also no login within `timeout_s` seconds.
    """

    def begin(dsn: str) -> Connection:
        conn: Connection = psycopg2.connect(dsn, async_=True)
        try:
            wait_for_answer(conn, timeout_s)
        except TimeoutError:
            conn.close()
            raise psycopg2.OperationalError("timeout expired") from None
        return conn

    conn: Connection = _connect_patiently(target, begin)
    return conn


def effective_parameters(target: Target) -> dict[str, str]:
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
        del found["client_encoding"]  # ours
    finally:
        conn.close()
    # Before the login psycopg2 has U+FFFD for all that is not ASCII; then the text that libpq has read counts.
    variables = {"user": "PGUSER", "dbname": "PGDATABASE", "password": "PGPASSWORD"}
    written = {name: os.environ.get(variable, "") for name, variable in variables.items()} | parse_dsn(
        target.dsn
    )
    exact = {name: written.get(name, "") if "\ufffd" in value else value for name, value in found.items()}
    return {name: value for name, value in exact.items() if value}


def _effective_at(target: Target, place: Mapping[str, str]) -> dict[str, str]:
    """What libpq makes of a target at one of its servers."""
    return effective_parameters(replace(target, dsn=make_dsn(**{**parse_dsn(target.dsn), **place})))


def wait_for_answer(conn: Connection, timeout_s: float) -> None:
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


def _connect_patiently(target: Target, begin: Callable[[str], Any] = psycopg2.connect) -> Any:
    """Try `retries` times more, but only after failures that heal by themselves."""
    libpq.refuse_pipes(parameters := target.parameters())
    for left in range(target.retries, -1, -1):
        try:
            with libpq.overheard():
                return begin(make_dsn(**parameters))
        except psycopg2.OperationalError as error:
            text = str(error)
        except UnicodeDecodeError as error:  # before the login the server writes in an encoding of its own
            text = error.object.decode("utf-8", "replace")
        failure, heals = connect_errors.explain(text, partial(_effective_at, target))
        if not heals or not left:
            raise failure
        _log.warning("%s; next try in %g s, %d left", failure, target.retry_interval_s, left)
        time.sleep(target.retry_interval_s)
    raise AssertionError


@contextmanager
def session(
    target: Target, *, autocommit: bool = False, readonly: bool = False, need_schema: bool = True
) -> Iterator[Session]:
    """A connection for the length of a block; driver errors leave it translated.

    Args:
        target: The database.
        autocommit: Whether each statement is a transaction of its own.
        readonly: The block only reads; a standby will do.
        need_schema: The schema has to exist. Without it a session that writes has nothing to do with the index,
            and PostgreSQL's own schema alone in search_path.

    Raises:
        ConnectError: As `connect`; also a missing schema, a read-only server, a lost connection.
        RevisionError: The block writes, and the schema holds objects that would run with the rights of the role.
        PgOrthancError: The server refuses a statement.
    """
    conn = _open(target)
    try:
        with translate_errors(conn, target.schema):
            if not readonly:
                _require_own_session(conn)
                check_writable(conn)
            if need_schema:
                check_schema(conn, target.schema)
            if not readonly and need_schema:
                planted.refuse(conn)
            if not readonly:
                conn.write(None if need_schema else SAFE_SEARCH_PATH)
            conn.autocommit = autocommit or (readonly and conn.pooled)
            yield conn
    finally:
        conn.close()


@contextmanager
def replication_session(target: Target, *, timeout_s: float = 30.0) -> Iterator[Connection]:
    """A connection that speaks the streaming replication protocol: no SQL, but SHOW, IDENTIFY_SYSTEM and slots.

    It is asynchronous: a network that freezes never keeps it, or Ctrl-C, waiting; see `finish`.

    Raises:
        ConnectError: As `connect_async`; pg_hba.conf decides by a line for the database `replication`.
    """
    dsn = make_dsn(**{**parse_dsn(target.dsn), "replication": "true"})
    conn = connect_async(replace(target, dsn=dsn), timeout_s=timeout_s)
    try:
        with translate_errors(conn):
            yield conn
    except TimeoutError as error:
        raise ConnectError(
            f"the server {place(conn)} does not answer: {error}",
            "check the server and the network, then run the same command again",
        ) from None
    finally:
        conn.close()


def check_writable(conn: Connection) -> None:
    """Make sure that the server takes changes.

    Raises:
        ConnectError: It is a standby, or its sessions are read-only by default.
    """
    standby, readonly, primary = alone(
        conn,
        """SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only'),
                  (SELECT pg_catalog.format('%s:%s', sender_host, sender_port)
                       FROM pg_catalog.pg_stat_wal_receiver)""",
    )
    if not standby and readonly == "off":
        return
    what = "is a standby (in recovery)" if standby else "is read-only (default_transaction_read_only is on)"
    raise ConnectError(
        f"the server {place(conn)} {what}, and this command writes",
        f"name the primary{f', {primary},' if primary else ''} with --host, "
        "or list all hosts in the URI beside target_session_attrs=read-write",
    )


def check_schema(conn: Connection, schema: str) -> None:
    """Make sure that a namespace is there and may be used.

    Raises:
        ConnectError: It does not exist, or the role has no USAGE on it.
    """
    query = """SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               FROM pg_catalog.pg_namespace n WHERE n.nspname = %s"""
    row = alone(conn, query, schema)
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
