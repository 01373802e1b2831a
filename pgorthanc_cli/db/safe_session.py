"""What `db.connect` returns: a connection whose statements run nobody else's code and leave nothing behind.

Whoever may create objects in the schema of an index can create a function or an operator that fits a call better
than PostgreSQL's own, and it would run with our rights (CVE-2018-1058); pg_catalog first in search_path does not
help. So a session that reads has PostgreSQL's own schema in search_path, and no other: our SQL names the tables of
the index as `index.resources`, and `index.` becomes the schema of the target (`index_schema()` its name). Sessions that
write have the schema in search_path, because the scripts and the plugin's trigger functions name none: see `planted`.

Behind a pooler the session belongs to another client after each transaction. So a session that reads sets nothing
for longer than a transaction, and sends its settings together with the first statement of each one.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from importlib.resources import files
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
# Objects of pg_temp may be called by their bare names only where nothing else has that name.
OWN = f"SET LOCAL search_path = {SAFE_SEARCH_PATH}; "
# A policy's functions run with the rights of the reader, and rows that a policy hides would be missing silently. A
# session or a prepared transaction may keep a table locked for ever (ALTER TABLE, VACUUM FULL): say so, do not wait.
READ_PREAMBLE = (
    "SET LOCAL transaction_read_only = on; SET LOCAL row_security = off; "
    f"SET LOCAL lock_timeout = '10s'; {OWN}"
)
# Since the minor releases of August 2024: what was a table when we looked cannot become a view (CVE-2024-7348).
NO_VIEWS = "SET LOCAL restrict_nonsystem_relation_kind = 'view, foreign-table'; "

# Qualified, without operators: it runs with whatever search_path the server gives.
_WHERE_WE_ARE = """SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('search_path'),
    pg_catalog.current_setting('restrict_nonsystem_relation_kind', true),
    pg_catalog.current_setting('session_replication_role')"""

_INDEX = re.compile(r"\bindex(?:\.(?=[\w{]|$)|_schema\(\))")


class Session(psycopg2.extensions.connection):
    """A connection that knows the schema of its index.

    Attributes:
        target: The `db.Target` that it leads to.
        schema: The PostgreSQL namespace that `index.` stands for.
        preamble: Statements that precede the first one of each transaction; empty: none.
        process: The process of the server that serves us, whatever a pooler said at the login.
        pooled: Another process than the one promised at the login serves us: a pooler stands in between.
        path: The search_path of our statements, quoted.
        nothing_planted: What the schema was like when `planted` last found nothing in it.
        restored: The search_path to leave behind in a pooler's session; None: we never changed it.
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
        """Make it an autocommit session that reads."""
        self.schema = schema
        self.autocommit = True
        with self.cursor() as cur:
            cur.execute(_WHERE_WE_ARE)
            self.process, self._path_before, restricts, triggers = cur.fetchone() or ()
        self._fires_triggers = triggers != "replica"
        self.pooled = self.process != self.info.backend_pid
        self.path = SAFE_SEARCH_PATH
        self.preamble = READ_PREAMBLE + (NO_VIEWS if restricts is not None else "")

    def write(self, path: str | None) -> None:
        """Make an autocommit session that reads one that writes, with that search_path, or its schema.

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
            if self.pooled:  # another client's next
                raise psycopg2.errors.InsufficientPrivilege
            with self.cursor() as cur:
                cur.execute("SET session_replication_role = origin")
        except psycopg2.errors.InsufficientPrivilege:
            raise ConnectError(
                f"the sessions of role {printable(self.info.user)} have session_replication_role = replica: "
                "no trigger of the index would run, and its counters would be wrong",
                f"as an administrator: ALTER ROLE {quote_ident(self.info.user)} RESET session_replication_role; if the "
                "setting comes from the database or the server, reset it there; then run the same command again",
            ) from None
        self._fires_triggers = True

    def begin(self) -> None:
        """Begin a transaction with the preamble, unless one is open or each statement is one of its own."""
        if self.preamble and self.idle and not self.autocommit:
            with self.cursor() as cur:
                cur.execute("SELECT")

    def __enter__(self) -> Self:
        """Begin a block that is committed, except where each statement reads for itself."""
        return self if self._each_for_itself else super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        if not self._each_for_itself:
            super().__exit__(*failure)

    @property
    def _each_for_itself(self) -> bool:
        return bool(self.preamble) and bool(self.autocommit)

    def close(self) -> None:
        """Close the connection; what was set in a pooler's session is put back first."""
        if self.restored is not None and not self.closed:
            before, self.restored = self.restored, None
            with suppress(psycopg2.Error):
                self.rollback()
                self.autocommit = True
                with self.cursor() as cur:
                    cur.execute("SELECT pg_catalog.set_config('search_path', %s, false)", (before,))
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
    """Return a query with the schema for `index.`, and its name for `index_schema()`.

    Args:
        query: Text, or composed of parts; bytes are complete already. Nothing is replaced in literals and identifiers.
        schema: The namespace.
        escape: Whether psycopg2 will look for placeholders in it.
    """
    escaped = schema.replace("\\", "\\\\").replace("'", "''")
    words = {"index.": f"{quote_ident(schema)}.", "index_schema()": f"E'{escaped}'::pg_catalog.name"}
    if escape:
        words = {marker: word.replace("%", "%%") for marker, word in words.items()}

    def replaced(text: str) -> str:
        return _INDEX.sub(lambda marker: words[marker[0]], text)

    if isinstance(query, str):
        return replaced(query)
    return _mapped(query, replaced, escape=escape)


def quote_ident(name: str) -> str:
    """Return a name as an SQL identifier: always quoted, as psycopg2's `sql.Identifier` does it."""
    return '"' + name.replace('"', '""') + '"'


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
    return files(package).joinpath(name).read_text(encoding="utf-8")


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
    """Return the process of the server that serves a connection; a pooler promises another one at the login."""
    return conn.process if isinstance(conn, Session) else conn.info.backend_pid


def trusted_rows(conn: Connection, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Return all rows of a query whose names mean PostgreSQL's own objects, whatever search_path the session has."""
    return _within(conn, OWN, "", query, arguments)


def described_rows(conn: Connection, schema: str, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Return all rows of a query that has the server describe objects (pg_get_indexdef, format_type, ...).

    The names of the query mean PostgreSQL's own objects; what it describes is named as a session does it that has the
    schema in search_path. A cursor is resolved when it is declared, and it describes when it is fetched from.
    """
    declare = f"{OWN}DECLARE pgorthanc NO SCROLL CURSOR FOR "
    fetch = f"; SET LOCAL search_path = {quote_ident(schema)}, pg_temp; FETCH ALL FROM pgorthanc"
    return _within(conn, declare, fetch, query, arguments, "CLOSE pgorthanc; ")


def _within(
    conn: Connection, before: str, after: str, query: str, arguments: tuple[object, ...], closing: str = ""
) -> list[tuple[Any, ...]]:
    """Run a query between other statements, all in one transaction, and put search_path back."""
    path = getattr(conn, "path", "") or value(conn, "SELECT pg_catalog.current_setting('search_path')")
    with conn.cursor() as cur:
        text = addressed(query, getattr(conn, "schema", "public"), escape=bool(arguments))
        cur.execute(before.encode() + cur.mogrify(text, _passed(arguments)) + after.encode())
        found = cur.fetchall()
        if conn.info.transaction_status == TRANSACTION_STATUS_INTRANS:
            cur.execute(f"{closing}SET LOCAL search_path = {path}")
    return found


def _passed(arguments: tuple[object, ...]) -> Any:
    """Named arguments come as one dict."""
    return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], dict) else arguments or None


def alone(conn: Connection, query: str, *arguments: object) -> tuple[Any, ...]:
    """The first row, empty if there is none, in a transaction of its own unless one is open."""
    idle = conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    first = row(conn, query, *arguments)
    if idle:
        conn.commit()
    return first or ()
