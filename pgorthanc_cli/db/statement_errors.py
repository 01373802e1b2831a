"""Errors of statements: psycopg2's exceptions become ours, with a hint and without the values of a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_UNKNOWN

from pgorthanc_cli.db.safe_session import quote_ident
from pgorthanc_cli.errors import ConnectError, PgOrthancError, StatementCancelled

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_LOST = ("08", "57P0")  # SQLSTATE classes: connection exception, shutdown
_NO_SUCH_CHARACTER = ("22021", "22P05")  # character not in repertoire, untranslatable character
_SEVERITY = re.compile(r"\S+:  ")  # the beginning of a server's message in any language
# application_name of the commands that only read. Of `verify`, which may repair, the sessions are read-only that do.
_READING_COMMANDS = re.compile(
    r"pgorthanc (?:status|doctor|check-|config|wait|support-bundle|replication status|storage show)"
)
_GRANT_READ = "GRANT SELECT ON ALL {kind} IN SCHEMA {schema} TO {role};"
_GRANT_WRITE = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
    "GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}; "
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};"
)


_WHO_LOCKS = "SELECT pid, relation::regclass FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted;"


@contextmanager
def translate_errors(conn: Connection, schema: str | None = None) -> Iterator[None]:
    """Translate driver errors of a block, without DETAIL and statement, which may hold patient data.

    Raises:
        ConnectError: The connection is lost.
        PgOrthancError: The server refused a statement: its primary message and SQLSTATE.
    """
    try:
        yield
    except psycopg2.Error as error:
        raise _translate(error, conn, schema) from None


def primary_message(error: psycopg2.Error) -> str:
    """Return the server's message on one line, without values of a row, which may be patient data."""
    if error.pgcode in _NO_SUCH_CHARACTER:  # the message quotes the bytes
        encoding = error.cursor.connection.info.parameter_status("server_encoding") if error.cursor else None
        return f"this database (encoding {encoding or 'unknown'}) cannot store a character of the text"
    primary: str = error.diag.message_primary or _SEVERITY.sub("", str(error).strip().partition("\n")[0])
    # Data exceptions quote the value, which may be a patient's name.
    if (error.pgcode or "").startswith("22"):
        primary = re.sub(r'".*"', '"..."', primary, flags=re.DOTALL)
    return primary


def _translate(error: psycopg2.Error, conn: Connection, schema: str | None = None) -> PgOrthancError:
    state = error.pgcode or ""
    primary = primary_message(error)
    # An error without SQLSTATE comes from libpq: the connection is lost (which may be another one than `conn` if a
    # block uses two). A killed server may cause a bare DatabaseError.
    classes = (psycopg2.OperationalError, psycopg2.InterfaceError)
    from_libpq = not state and (isinstance(error, classes) or type(error) is psycopg2.DatabaseError)
    # psycopg2 drops the SQLSTATE of errors of large objects; their text is still the server's.
    usable = conn.info.transaction_status != TRANSACTION_STATUS_UNKNOWN
    if from_libpq and usable and _SEVERITY.match(str(error)):
        from_libpq = False
    if conn.closed or from_libpq or state.startswith(_LOST):
        return ConnectError(
            f"the connection to {endpoint(conn)} was lost",
            "see whether the server still runs (its log says what happened), then run the same command again",
            server_message=primary,
        )
    kind = StatementCancelled if state == "57014" else PgOrthancError
    return kind(
        "the server refused a statement",
        error_hint(error, conn, schema),
        server_message=f"{primary} (SQLSTATE {state})" if state else primary,
    )


def error_hint(error: psycopg2.Error, conn: Connection, schema: str | None = None) -> str | None:
    """Return the hint for a statement that the server refused, None if there is none."""
    state, primary = error.pgcode or "", primary_message(error)
    if state == "42501":
        return _grants(error, primary, conn, schema)
    if state == "55P03":
        return (
            "wait for the session that keeps a table locked, or end it (no pid: a prepared transaction, "
            f"see pg_prepared_xacts); to find it: {_WHO_LOCKS}"
        )
    if state in ("53100", "53200", "53300") or "No space left on device" in primary:
        return "the server lacks disk space, memory or connections: make room, then run it again"
    if state == "25006":
        return (
            "the server is read-only or a standby: name the primary, or use target_session_attrs=read-write"
        )
    return None


def _grants(error: psycopg2.Error, primary: str, conn: Connection, schema: str | None) -> str:
    """Return the statements that give a role the privileges that it lacks on the objects of an index."""
    role = quote_ident(conn.info.user)
    english = re.match(r"permission denied for (\w+) \S+", primary)
    kind = english[1] if english else ""
    # A server of another language: the function of PostgreSQL that refused is the same.
    translated = not english and error.diag.source_function == "aclcheck_error"
    if schema is None or not (translated or kind in ("table", "sequence", "function")):
        return f"log in as its owner, or as a role that may do this: role {role} may not"
    reads = getattr(conn, "preamble", "") or _READING_COMMANDS.match(
        conn.info.parameter_status("application_name") or ""
    )
    grants = _GRANT_READ if reads and kind != "function" else _GRANT_WRITE
    objects = "SEQUENCES" if kind == "sequence" else "TABLES"
    return f"as the owner of the index: {grants.format(kind=objects, schema=quote_ident(schema), role=role)}"


def endpoint(conn: Connection) -> str:
    """Return host and port of a connection."""
    return f"{conn.info.host or 'local socket'}:{conn.info.port}"
