"""Connections to PostgreSQL: targets, sessions, and checks of the server when a session opens.

`psycopg2.connect` is called here and nowhere else, and driver errors leave these functions translated.
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
from psycopg2 import extensions
from psycopg2.extensions import POLL_OK, POLL_READ, make_dsn

from pgorthanc_cli.db import libpq, planted
from pgorthanc_cli.db.safe_session import (
    SAFE_SEARCH_PATH,
    Session,
    first_row_alone,
    quote_ident,
    reset_hint,
)
from pgorthanc_cli.db.statement_errors import endpoint, translate_errors
from pgorthanc_cli.errors import ConnectError, UsageError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Firewalls and load balancers drop silent connections after 4 to 6 minutes; libpq's default is 2 hours.
KEEPALIVE = {"keepalives": "1", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
# Data sent into a cut network is never acknowledged; by default the kernel gives up after about 15 minutes. 60 s is as
# long as the probes above need to notice that an idle connection is cut.
_USER_TIMEOUT = {"tcp_user_timeout": "60000"}
# libpq would wait for ever, deaf to Ctrl-C, for a server that accepts the connection and never answers.
CONNECT_TIMEOUT = {"connect_timeout": "30"}

# Python's text is sent as UTF-8, so each session declares it: PGCLIENTENCODING, a service file, a URI, ALTER ROLE and
# ALTER DATABASE would make the server take it for another encoding. Text of the index: see encoding.py.
_CLIENT_ENCODING = {"client_encoding": "UTF8"}

# libpq's parameters that are never printed, and what is printed instead.
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
    """An Orthanc database and how to log in; picklable, and its text never shows the password.

    Attributes:
        dsn: A libpq connection string (keyword/value or URI); libpq takes the rest from its environment,
            service file and .pgpass.
        schema: The PostgreSQL namespace of the index, in its exact case.
        retries: Further attempts while the server cannot be reached (MaximumConnectionRetries).
        retry_interval_s: Seconds between two attempts (ConnectionRetryInterval).
        application: The command, as in `pgorthanc import`; the application_name unless DSN, PGAPPNAME or the
            service file sets one.
    """

    dsn: str
    schema: str = "public"
    retries: int = 0
    retry_interval_s: float = 5.0
    application: str = "pgorthanc"

    def parameters(self) -> dict[str, str]:
        """Return the parameters of the DSN, completed by our defaults; the client encoding is always UTF8."""
        dsn = parse_dsn(self.dsn)
        defaults = {"fallback_application_name": self.application}
        # A default given here would override the parameter of a service file.
        if "service" not in dsn and not os.environ.get("PGSERVICE"):
            defaults |= KEEPALIVE
            if not any(name.startswith("keepalives") for name in dsn):
                defaults |= _USER_TIMEOUT
            if not os.environ.get("PGCONNECT_TIMEOUT"):
                defaults |= CONNECT_TIMEOUT
        return {**defaults, **dsn, **_CLIENT_ENCODING}

    def with_password(self, password: str) -> Target:
        """Return the target with a password."""
        return replace(self, dsn=make_dsn(**{**parse_dsn(self.dsn), "password": password}))

    def __str__(self) -> str:
        parameters = parse_dsn(self.dsn)
        masked = {name: MASK if name in SECRETS else value for name, value in parameters.items()}
        return f"{make_dsn(**masked)} schema={self.schema}".strip()

    def __repr__(self) -> str:
        # Tracebacks print it: it must not show the password either.
        return f"Target({self})"


def parse_dsn(dsn: str, origin: str = "the connection string") -> dict[str, str]:
    """Return the parameters of a connection string (keyword/value or URI); `origin` names it in errors.

    Raises:
        UsageError: libpq cannot parse it, or misinterprets a bare @ or / in it.
    """
    if "\0" in dsn:  # libpq would ignore the rest
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
    """Return libpq's error message without what it quotes, which may be part of a password."""
    # Quoting is harmless where it must be the name of a parameter.
    uri = re.fullmatch(r"\w+://(?:[^?]*@[^?@]*|[^?:@]*(?::\d+)?/[^?:@]*)\?[^@]*", dsn)
    option = r'invalid (?:URI query parameter:|connection option) "\w+"'
    if re.fullmatch(option, reason) and (uri or not re.search("pass|://", dsn, re.IGNORECASE)):
        return reason
    return re.sub(r'".*"', '"..."', reason, flags=re.DOTALL)


def connect(target: Target, *, autocommit: bool = False, readonly: bool = False) -> Session:
    """Open a connection that is safe from planted objects, see `safe_session`.

    With `readonly` search_path is PostgreSQL's own schema, in read-only transactions; else it is exactly the target's
    schema (as the plugin >= 10.0 sets it). The schema need not exist, nor the server be writable: `session` checks
    both.

    Raises:
        ConnectError: The server cannot be reached or refuses the login; never shows the password. Or the
            connection may write, and a pooler shares its sessions between clients.
        PasswordRequired: The server asks for a password and none was given.
        MissingDatabase: The database does not exist.
    """
    conn = _open(target)
    with _closed_on_failure(conn), translate_errors(conn):
        if not readonly:
            allow_writes(conn)
        conn.autocommit = autocommit or (readonly and conn.pooled)  # some poolers refuse BEGIN
    return conn


def _open(target: Target) -> Session:
    """Open an autocommit connection that reads."""

    def attempt(dsn: str) -> Session:
        return psycopg2.connect(dsn, connection_factory=Session)

    conn: Session = _connect_with_retries(target, attempt)
    with _closed_on_failure(conn), translate_errors(conn):
        conn.target = target
        # A pooler may ignore start-up parameters.
        if conn.encoding != _CLIENT_ENCODING["client_encoding"]:
            conn.set_client_encoding(_CLIENT_ENCODING["client_encoding"])
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
    """Turn a connection that reads into one that writes, with search_path the target's schema, or `path`.

    Raises:
        ConnectError: A pooler shares its sessions between clients.
    """
    session = cast("Session", conn)
    _require_own_session(session)
    session.write(path)


def _require_own_session(conn: Session) -> None:
    from pgorthanc_cli.db import pooler  # imports this module

    pooler.require_own_session(conn)


def connect_async(target: Target, *, timeout_s: float = 10.0) -> Connection:
    """Open a connection in psycopg2's asynchronous mode, for work that must never hang on the network.

    No statement is sent, and search_path stays the server's: behind a pooler the next client may get the session.

    Raises:
        ConnectError: As `connect`; also no login within `timeout_s` seconds.
    """

    def attempt(dsn: str) -> Connection:
        conn: Connection = psycopg2.connect(dsn, async_=True)
        try:
            wait_for_answer(conn, timeout_s)
        except TimeoutError:
            conn.close()
            raise psycopg2.OperationalError("timeout expired") from None
        return conn

    conn: Connection = _connect_with_retries(target, attempt)
    return conn


def effective_parameters(target: Target) -> dict[str, str]:
    """Return the parameters that libpq uses, with its environment, service file, .pgpass and defaults.

    `host` is always among them, `password` if one is known. Opens a socket to the server, and sends nothing.

    Raises:
        ConnectError: The host, the socket or the service does not exist.
    """
    conn = _connect_with_retries(replace(target, retries=0), lambda dsn: psycopg2.connect(dsn, async_=True))
    try:
        info = conn.info
        basic = {"host": info.host, "port": str(info.port), "user": info.user, "dbname": info.dbname}
        parameters = {**basic, **info.dsn_parameters, "password": info.password or ""}
        del parameters["client_encoding"]  # ours
    finally:
        conn.close()
    # Before the login psycopg2 decodes as ASCII: U+FFFD stands for other characters of what libpq has read.
    variables = {"user": "PGUSER", "dbname": "PGDATABASE", "password": "PGPASSWORD"}
    written = {name: os.environ.get(variable, "") for name, variable in variables.items()} | parse_dsn(
        target.dsn
    )
    for name, value in parameters.items():
        if "\ufffd" in value:
            parameters[name] = written.get(name, "")
    return {name: value for name, value in parameters.items() if value}


def _effective_at(target: Target, endpoint: Mapping[str, str]) -> dict[str, str]:
    """Return the effective parameters of a target with several servers at one of them."""
    return effective_parameters(replace(target, dsn=make_dsn(**{**parse_dsn(target.dsn), **endpoint})))


def wait_for_answer(conn: Connection, timeout_s: float) -> None:
    """Wait until an asynchronous connection has finished its login or statement.

    Raises:
        TimeoutError: It has not within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while (state := conn.poll()) != POLL_OK:
        descriptors = [conn.fileno()]
        reads, writes = (descriptors, []) if state == POLL_READ else ([], descriptors)
        if not any(select.select(reads, writes, [], max(deadline - time.monotonic(), 0))):
            raise TimeoutError(f"no answer within {timeout_s:g} s")


def _connect_with_retries(target: Target, attempt: Callable[[str], Any]) -> Any:
    """Call `attempt` with the DSN, and again up to `retries` times while the failure is transient."""
    libpq.refuse_pipes(parameters := target.parameters())
    for left in range(target.retries, -1, -1):
        try:
            with libpq.log_messages():
                return attempt(make_dsn(**parameters))
        except psycopg2.OperationalError as error:
            text = str(error)
        except UnicodeDecodeError as error:
            # Before the login, the server uses its own encoding.
            text = error.object.decode("utf-8", "replace")
        from pgorthanc_cli.db import connect_errors  # only now: its import takes longer than a connection

        failure, transient = connect_errors.explain(text, partial(_effective_at, target))
        if not transient or not left:
            raise failure
        _log.warning("%s; next try in %g s, %d left", failure, target.retry_interval_s, left)
        time.sleep(target.retry_interval_s)
    raise AssertionError


@contextmanager
def session(
    target: Target, *, autocommit: bool = False, readonly: bool = False, need_schema: bool = True
) -> Iterator[Session]:
    """Open a connection for a block; driver errors leave it translated.

    Args:
        target: The database.
        autocommit: Whether each statement is a transaction of its own.
        readonly: Whether the block only reads; a standby suffices.
        need_schema: Whether the schema must exist. A session that writes without it has only PostgreSQL's own
            schema in search_path.

    Raises:
        ConnectError: As `connect`; also a missing schema, a read-only server, a lost connection.
        RevisionError: The block writes, and the schema holds planted objects, see `planted`.
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
    """Open a connection with the streaming replication protocol: SHOW, IDENTIFY_SYSTEM and slots, but no SQL.

    It is asynchronous, so a frozen network never blocks Ctrl-C; see `wait_for_answer`.

    Raises:
        ConnectError: As `connect_async`; pg_hba.conf needs a line for the database `replication`.
    """
    dsn = make_dsn(**{**parse_dsn(target.dsn), "replication": "true"})
    conn = connect_async(replace(target, dsn=dsn), timeout_s=timeout_s)
    try:
        with translate_errors(conn):
            yield conn
    except TimeoutError as error:
        raise ConnectError(
            f"the server {endpoint(conn)} does not answer: {error}",
            "check the server and the network, then run the same command again",
        ) from None
    finally:
        conn.close()


def check_writable(conn: Connection) -> None:
    """Check that the server is writable.

    Raises:
        ConnectError: It is a standby, or its sessions are read-only by default.
    """
    # sender_host is NULL for roles that may not read all statistics (pg_monitor).
    standby, readonly, primary = first_row_alone(
        conn,
        """SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only'),
                  (SELECT pg_catalog.format('%s:%s', sender_host, sender_port)
                       FROM pg_catalog.pg_stat_wal_receiver)""",
    )
    if not standby and readonly == "off":
        return
    if not standby:
        raise ConnectError(
            f"the sessions on {endpoint(conn)} are read-only (default_transaction_read_only is on), "
            "and this command writes",
            reset_hint(conn, "default_transaction_read_only"),
        )
    raise ConnectError(
        f"the server {endpoint(conn)} is a standby (in recovery), and this command writes",
        f"name the primary{f', {primary},' if primary else ''} with --host, "
        "or list all hosts in the URI beside target_session_attrs=read-write",
    )


def check_schema(conn: Connection, schema: str) -> None:
    """Check that a schema exists and may be used.

    Raises:
        ConnectError: It does not exist, or the role has no USAGE on it.
    """
    query = """SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               FROM pg_catalog.pg_namespace n WHERE n.nspname = %s"""
    row = first_row_alone(conn, query, schema)
    if row and row[0]:
        return
    quoted, role = quote_ident(schema), quote_ident(conn.info.user)
    if row:
        raise ConnectError(
            f"role {role} may not use schema {quoted}", f"GRANT USAGE ON SCHEMA {quoted} TO {role};"
        )
    raise ConnectError(
        f"database {conn.info.dbname} has no schema {quoted}",
        f"name another one with --schema, or create it: CREATE SCHEMA {quoted} AUTHORIZATION {role};",
    )
