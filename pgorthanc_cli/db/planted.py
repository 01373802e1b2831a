"""Planted objects: what in the schema of an index would run with the rights of a role that writes to it.

The plugin's trigger functions and our scripts name no schema, so a session that writes has the index's
schema in search_path. A function there whose arguments fit better than those of PostgreSQL's own function
of that name runs instead, and so does an operator (CVE-2018-1058): with the rights of the writing
session, perhaps a superuser's.

What counts is the owner. An owner who can become our role anyway (the role itself, its members, superusers)
gains nothing. The owner of the index is trusted with the plugin's functions and triggers, because every
write to an index runs them; not with anything else. Only a trusted role can create members of
extensions.
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import psycopg2.errors

from pgorthanc_cli import catalogs
from pgorthanc_cli.db.safe_session import Session, statement, trusted_rows
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.text import shortened

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SHOWN = 10
_POLL_S = 0.02

# Any transaction that creates a function or an operator waits for this lock.
_LOCK_CATALOGS = "LOCK TABLE pg_catalog.pg_proc, pg_catalog.pg_operator IN SHARE MODE"
# The lock does not wait for transactions that have created some already and are still open: CREATE FUNCTION
# releases its lock on the catalog at once.
_OPEN_TRANSACTIONS = """
    SELECT l.transactionid::text, format('pid %s, role %s', coalesce(a.pid::text, 'prepared'),
               coalesce(a.usename, p.owner))
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid AND l.pid IS NULL
        WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock'
            AND coalesce(a.datname, p.database) = current_database()
            AND NOT pg_has_role(coalesce(a.usename, p.owner), session_user, 'MEMBER')
"""
_STILL_OPEN = """SELECT l.transactionid::text FROM pg_locks l
    WHERE l.locktype = 'transactionid' AND l.granted AND l.transactionid::text = ANY (%s)"""


class Planted(NamedTuple):
    """An object that could run with the rights of the session's role.

    Attributes:
        kind: `function`, `operator`, `cast`, `trigger`, ...
        name: Its name and arguments.
        owner: The role that owns it.
        remedy: The statement that drops it; or, if an index needs it, gives it to the owner of the index.
    """

    kind: str
    name: str
    owner: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of role {self.owner}"


def find(conn: Connection, schema: str) -> list[Planted]:
    """Return the planted objects of a schema, seen from the role of this session."""
    functions, signatures, relations = _objects_of_the_plugin()
    arguments = {
        "schema": schema,
        "functions": functions,
        "signatures": signatures,
        "relations": relations,
    }
    query = statement(__package__, "planted.sql")
    return [Planted(*row) for row in trusted_rows(conn, query, arguments)]


def refuse(conn: Session) -> None:
    """Refuse to write to an index whose schema holds planted objects.

    Raises:
        RevisionError: There are some; the message names them, and the hint the statements.
    """
    # Batches ask before each transaction; the query itself is expensive.
    [(state,)] = trusted_rows(conn, statement(__package__, "planted_state.sql")) or [(None,)]
    if state is not None and state == conn.nothing_planted:
        return
    planted = find(conn, conn.schema)
    if not planted:
        conn.nothing_planted = state
        return
    number = "1 object" if len(planted) == 1 else f"{len(planted):,} objects"
    remedies = " ".join(each.remedy for each in planted[:_SHOWN])
    more = " ..." if len(planted) > _SHOWN else ""
    raise RevisionError(
        f"{number} in schema {conn.schema} would run in place of PostgreSQL's or the plugin's own, "
        f"with the rights of role {conn.info.user}: {shortened(planted, _SHOWN)}",
        f"run: {remedies}{more} Then run: pgorthanc verify schema. "
        "Or log in as the role that owns them, if you trust it",
    )


def refuse_until_commit(conn: Connection, *, wait_s: float = 5.0) -> None:
    """Refuse planted objects within a transaction that writes, and where possible keep out new ones.

    Anybody who may create a function can do so right after a check. A superuser, who has most to lose, locks
    the catalogs of functions and operators until the transaction ends, and waits for open transactions that
    may have created some. No other role may lock them: for it the time between this check and its commit
    remains. So it does at the isolation level SERIALIZABLE, which sees the catalogs as of its first statement.

    Raises:
        InUseError: Another transaction may have created functions, and does not end within `wait_s` seconds.
        RevisionError: As `refuse`.
    """
    if not isinstance(conn, Session):
        return
    [(superuser, lock_timeout)] = trusted_rows(
        conn, "SELECT current_setting('is_superuser') = 'on', current_setting('lock_timeout')"
    )
    if superuser:
        try:
            with conn.cursor() as cur:
                cur.execute(f"SET LOCAL lock_timeout = {1000 * wait_s:.0f}; {_LOCK_CATALOGS}")
                cur.execute("SELECT pg_catalog.set_config('lock_timeout', %s, true)", (lock_timeout,))
        except psycopg2.errors.LockNotAvailable:
            raise _in_use("another session is creating or changing functions") from None
        _wait_for_open_transactions(conn, wait_s)
    refuse(conn)


def _wait_for_open_transactions(conn: Connection, wait_s: float) -> None:
    """Wait for other roles' transactions that began before our lock and may have created functions."""
    deadline = time.monotonic() + wait_s
    others = dict(trusted_rows(conn, _OPEN_TRANSACTIONS))
    while others:
        still_open = {xid for (xid,) in trusted_rows(conn, _STILL_OPEN, list(others))}
        others = {xid: session for xid, session in others.items() if xid in still_open}
        if others and time.monotonic() > deadline:
            sessions = "; ".join(others.values())
            raise _in_use(f"a transaction that may have created functions is still open: {sessions}")
        if others:
            time.sleep(_POLL_S)


def _in_use(reason: str) -> InUseError:
    return InUseError(
        f"{reason} in this database",
        "let it finish, then run the same command again; pgorthanc doctor shows long transactions",
    )


@cache
def _objects_of_the_plugin() -> tuple[list[str], list[str], list[str]]:
    """Return names and signatures of the functions of all revisions, and names of tables and sequences."""
    objects: dict[str, set[str]] = {}
    files = ["storagearea.json", *(f"rev{revision}.json" for revision in catalogs.revisions())]
    for name in files:
        for entry in catalogs.load(name):
            kind, _, rest = entry.partition(" ")
            objects.setdefault(kind, set()).add(rest)
    signatures = objects["function"]
    names = {signature.partition("(")[0] for signature in signatures}
    return sorted(names), sorted(signatures), sorted(objects["table"] | objects["sequence"])
