"""The session that `db.connect` returns: its statements run no planted code and leave no settings behind.

A role that may create objects in the schema of an index can create a function or an operator that matches a call
better than PostgreSQL's own, and it would run with our rights (CVE-2018-1058), even with pg_catalog first in
search_path. So a session that reads has only PostgreSQL's own schema in search_path: our SQL writes the tables of the
index as `index.resources`, and `index.` is replaced by the schema of the target (`index_schema()` by its name).
Sessions that write have the schema in search_path, because the scripts and the plugin's trigger functions name none:
see `planted`.

Behind a pooler another client gets the session after each transaction. So a session that reads has no setting that
outlives a transaction: it sends its settings together with the first statement of each one.
"""

from __future__ import annotations

import pkgutil
import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS

from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection as Connection
    from typing_extensions import Self

SAFE_SEARCH_PATH = "pg_catalog, pg_temp"
# A name without schema means an object of pg_temp only if pg_catalog has none of that name.
_SET_SAFE_PATH = f"SET LOCAL search_path = {SAFE_SEARCH_PATH}; "
# A row security policy runs functions with the reader's rights, and silently hides rows. A session or a prepared
# transaction may keep a table locked for ever (ALTER TABLE, VACUUM FULL): report it, do not wait.
READ_PREAMBLE = (
    "SET LOCAL transaction_read_only = on; SET LOCAL row_security = off; "
    f"SET LOCAL lock_timeout = '10s'; {_SET_SAFE_PATH}"
)
# In the minor releases since August 2024: a table cannot become a view between our check and the query
# (CVE-2024-7348).
_NO_VIEWS = "SET LOCAL restrict_nonsystem_relation_kind = 'view, foreign-table'; "

# Qualified and without operators: it is safe with any search_path of the server.
_SESSION_STATE = """SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('search_path'),
    pg_catalog.current_setting('restrict_nonsystem_relation_kind', true),
    pg_catalog.current_setting('session_replication_role')"""

_INDEX = re.compile(r"\bindex(?:\.(?=[\w{]|$)|_schema\(\))")


class Session(psycopg2.extensions.connection):
    """A connection that knows the schema of its index.

    Attributes:
        target: The `db.Target` of the connection.
        schema: The PostgreSQL namespace that `index.` stands for.
        preamble: Statements sent before the first one of each transaction; empty: none.
        process: The pid of the server process that serves us; a pooler reports another one at the login.
        pooled: Whether these pids differ: there is a pooler in between.
        path: The search_path of our statements, quoted.
        nothing_planted: The digest of the schema when `planted` last accepted it.
        restored: The search_path to restore in a pooler's session when closing; None: never changed.
    """

    target: Any = None
    schema: str = "public"
    preamble: str = ""
    process: int = 0
    pooled: bool = False
    nothing_planted: str | None = None
    restored: str | None = None
    path: str = ""
    _path_before: str = ""
    _fires_triggers: bool = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = Cursor

    @property
    def idle(self) -> bool:
        """Whether the next statement begins a transaction."""
        return self.get_transaction_status() == TRANSACTION_STATUS_IDLE

    def prepare(self, schema: str) -> None:
        """Set up an autocommit session that reads."""
        self.schema = schema
        self.autocommit = True
        with self.cursor() as cur:
            cur.execute(_SESSION_STATE)
            self.process, self._path_before, restricts, triggers = cur.fetchone() or ()
        self._fires_triggers = triggers != "replica"
        self.pooled = self.process != self.info.backend_pid
        self.path = SAFE_SEARCH_PATH
        self.preamble = READ_PREAMBLE + (_NO_VIEWS if restricts is not None else "")

    def limit_statements(self, seconds: float) -> None:
        """Let the server cancel each statement of a session that reads after so many seconds.

        The limit is local to each transaction: the next client of a pooler does not get it.
        """
        self.preamble += f"SET LOCAL statement_timeout = {round(1000 * seconds)}; "

    def write(self, path: str | None) -> None:
        """Turn an autocommit session that reads into one that writes, with this search_path, or its schema.

        Raises:
            ConnectError: The triggers of the index would not run, and this role may not change that.
        """
        self._require_triggers()
        self.path = path or quote_ident(self.schema)
        self.preamble = ""
        with self.cursor() as cur:
            cur.execute(f"SET search_path TO {self.path}")
        self.restored = self._path_before if self.pooled else None

    def _require_triggers(self) -> None:
        """Undo `session_replication_role = replica`: without triggers and foreign keys counters and rows are wrong."""
        if self._fires_triggers:
            return
        try:
            if self.pooled:  # the next client would get the setting
                raise psycopg2.errors.InsufficientPrivilege
            with self.cursor() as cur:
                cur.execute("SET session_replication_role = origin")
        except psycopg2.errors.InsufficientPrivilege:
            raise ConnectError(
                f"the sessions of role {printable(self.info.user)} have session_replication_role = replica: "
                "no trigger of the index would run, and its counters would be wrong",
                reset_hint(self, "session_replication_role"),
            ) from None
        self._fires_triggers = True

    def begin(self) -> None:
        """Begin a transaction with the preamble, unless one is open or the session is in autocommit mode."""
        if self.preamble and self.idle and not self.autocommit:
            with self.cursor() as cur:
                # The cursor puts the preamble before it.
                cur.execute("SELECT")

    def __enter__(self) -> Self:
        """Begin a block that is committed at its end; an autocommit session that reads needs no transaction."""
        return self if self._reads_in_autocommit else super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        if not self._reads_in_autocommit:
            super().__exit__(*failure)

    @property
    def _reads_in_autocommit(self) -> bool:
        return bool(self.preamble) and bool(self.autocommit)

    def close(self) -> None:
        """Close the connection; restore the settings of a pooler's session first."""
        if self.restored is not None and not self.closed:
            before, self.restored = self.restored, None
            with suppress(psycopg2.Error):
                self.rollback()
                self.autocommit = True
                with self.cursor() as cur:
                    cur.execute("SELECT pg_catalog.set_config('search_path', %s, false)", (before,))
                    # The next client of the pooler gets this session, and would see our
                    # temporary tables.
                    cur.execute("DISCARD TEMP")
        super().close()


class Cursor(psycopg2.extensions.cursor):
    """A cursor that replaces `index.` in our SQL and begins transactions with the session's preamble."""

    connection: Any

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's name
        """Execute a statement, see `Session`."""
        conn = self.connection
        if isinstance(conn, Session):
            query = addressed(query, conn.schema, escape=vars is not None)
            if conn.preamble and conn.idle:
                if self.name:
                    conn.begin()
                else:
                    query = _after(conn.preamble, query)
        super().execute(query, vars)


def addressed(query: Any, schema: str, *, escape: bool = False) -> Any:
    """Return a query with `index.` replaced by the schema, and `index_schema()` by its name.

    Args:
        query: Text or a composed query; literals and identifiers of the latter, and bytes, stay as they are.
        schema: The namespace.
        escape: Whether psycopg2 will look for placeholders in the result.
    """
    escaped = schema.replace("\\", "\\\\").replace("'", "''")
    replacements = {"index.": f"{quote_ident(schema)}.", "index_schema()": f"E'{escaped}'::pg_catalog.name"}
    if escape:
        replacements = {marker: text.replace("%", "%%") for marker, text in replacements.items()}

    def replaced(text: str) -> str:
        return _INDEX.sub(lambda marker: replacements[marker[0]], text)

    if isinstance(query, str):
        return replaced(query)
    return _mapped(query, replaced, escape=escape)


def quote_ident(name: str) -> str:
    """Return a name as an SQL identifier: always quoted, as psycopg2's `sql.Identifier` does it."""
    return '"' + name.replace('"', '""') + '"'


# By the source of a setting (PostgreSQL, "pg_settings"): what undoes it for later sessions.
_RESETS = {
    "user": "ALTER ROLE {role} RESET {name};",
    "database": "ALTER DATABASE {database} RESET {name};",
    "database user": "ALTER ROLE {role} IN DATABASE {database} RESET {name};",
    "global": "ALTER ROLE ALL RESET {name};",
}


def reset_hint(conn: Connection, name: str) -> str:
    """Return how to undo a setting that sessions of this role have from their start.

    Args:
        conn: A connection whose sessions have it.
        name: A setting; not one that a client library sends.
    """
    [source] = first_row_alone(
        conn, "SELECT source FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) %s", name
    )
    if source == "client":
        return f"remove {name} from the options of the connection (options in the URI, PGOPTIONS)"
    if statement := reset_statement(conn, name, source):
        return f"to undo it, as an administrator: {statement}"
    return f"remove {name} from the configuration of the server, then load it: SELECT pg_reload_conf();"


def reset_statement(conn: Connection, name: str, source: str) -> str:
    """Return the statement that undoes a setting for later sessions, by its source; empty if there is none."""
    names = {"role": quote_ident(conn.info.user), "database": quote_ident(conn.info.dbname), "name": name}
    return _RESETS[source].format(**names) if source in _RESETS else ""


def _mapped(query: Any, replaced: Callable[[str], str], *, escape: bool) -> Any:
    if isinstance(query, sql.SQL):
        return sql.SQL(replaced(query.string))
    if isinstance(query, sql.Composed):
        return sql.Composed([_mapped(part, replaced, escape=escape) for part in query.seq])
    # A % in a name is no placeholder.
    if escape and isinstance(query, sql.Identifier):
        return sql.Identifier(*(name.replace("%", "%%") for name in query.strings))
    if escape and isinstance(query, sql.Literal) and isinstance(query.wrapped, str):
        return sql.Literal(query.wrapped.replace("%", "%%"))
    return query


def _after(preamble: str, query: Any) -> Any:
    if isinstance(query, bytes):
        return preamble.encode() + query
    if isinstance(query, sql.Composable):
        return sql.SQL(preamble) + query
    return preamble + query


@cache
def statement(package: str, name: str) -> str:
    """Return the SQL of a file beside a module, as `db.statement(__package__, "planted.sql")`.

    It is sent whole: never split, never edited. With arguments a `%` is written `%%`, in comments, too, and a
    comment holds no placeholder: its value could end the comment.
    """
    # Not importlib.resources, whose import takes as long as a connection.
    return (pkgutil.get_data(package, name) or b"").decode()


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


def backend_pid(conn: Connection) -> int:
    """Return the pid of the server process that serves a connection, also behind a pooler."""
    return conn.process if isinstance(conn, Session) else conn.info.backend_pid


def trusted_rows(conn: Connection, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Return all rows of a query whose names refer to PostgreSQL's own objects, with any search_path."""
    return _within(conn, _SET_SAFE_PATH, "", query, arguments)


def described_rows(conn: Connection, schema: str, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Return all rows of a query with functions that describe objects (pg_get_indexdef, format_type, ...).

    The names in the query refer to PostgreSQL's own objects, but the descriptions are relative to the schema.
    PostgreSQL resolves names when a cursor is declared, and calls the functions when it is fetched.
    """
    declare = f"{_SET_SAFE_PATH}DECLARE pgorthanc NO SCROLL CURSOR FOR "
    fetch = f"; SET LOCAL search_path = {quote_ident(schema)}, pg_temp; FETCH ALL FROM pgorthanc"
    return _within(conn, declare, fetch, query, arguments, "CLOSE pgorthanc; ")


def _within(
    conn: Connection, before: str, after: str, query: str, arguments: tuple[object, ...], closing: str = ""
) -> list[tuple[Any, ...]]:
    """Run a query between other statements, all in one transaction, and restore search_path."""
    path = getattr(conn, "path", "") or value(conn, "SELECT pg_catalog.current_setting('search_path')")
    named = len(arguments) == 1 and isinstance(arguments[0], dict)
    passed: Any = arguments[0] if named else arguments or None
    with conn.cursor() as cur:
        text = addressed(query, getattr(conn, "schema", "public"), escape=bool(arguments))
        cur.execute(before.encode() + cur.mogrify(text, passed) + after.encode())
        result = cur.fetchall()
        # In autocommit mode the text was one transaction, and SET LOCAL has ended with
        # it.
        if conn.info.transaction_status == TRANSACTION_STATUS_INTRANS:
            cur.execute(f"{closing}SET LOCAL search_path = {path}")
    return result


def first_row_alone(conn: Connection, query: str, *arguments: object) -> tuple[Any, ...]:
    """Return the first row, empty if there is none, in a transaction of its own unless one is open."""
    idle = conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    first = row(conn, query, *arguments)
    if idle:
        conn.commit()
    return first or ()
