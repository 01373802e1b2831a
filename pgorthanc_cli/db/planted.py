"""Objects in the schema of an index that would run with the rights of a role which writes to it.

The plugin's trigger functions and our scripts name no schema, so a session that writes has the index's schema in
search_path. A function there whose arguments fit better than those of PostgreSQL's own of the same name runs instead,
and so does an operator (CVE-2018-1058): with the rights of whoever writes, a superuser's, perhaps.

What counts is the owner. One who may become our role anyway (the role itself, its members, superusers) gains nothing.
The owner of the index is trusted with what is the plugin's, its functions and triggers, because nobody can write to an
index without running them; not with anything else. Members of extensions were put there by who may.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SHOWN = 10
_LOCK_WAIT_S = 5.0
_POLL_S = 0.02

# An extension's member has a dependency 'e'. pg_has_role with MEMBER: its owner can become the role of this session.
_PLANTED = """
WITH place AS (
    SELECT n.oid, n.nspname FROM pg_namespace n WHERE n.nspname = %(schema)s
), me AS (
    SELECT r.oid FROM pg_roles r WHERE r.rolname = session_user
), index_owner AS (
    SELECT c.relowner AS oid FROM pg_class c JOIN place ON c.relnamespace = place.oid
        WHERE c.relname = 'resources' AND c.relkind IN ('r', 'p')
), planted AS (
    SELECT 1 AS turn, 'cast' AS kind, p.proowner AS owner,
           format('%%s AS %%s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) AS name,
           format('(%%s AS %%s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) AS identity,
           false AS needed
        FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc
        JOIN pg_type source ON source.oid = c.castsource JOIN pg_type target ON target.oid = c.casttarget
        WHERE p.pronamespace <> 'pg_catalog'::regnamespace
            AND source.typnamespace = 'pg_catalog'::regnamespace
            AND target.typnamespace = 'pg_catalog'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT 2, 'trigger', p.proowner, format('%%s on %%s', t.tgname, c.relname),
           format('%%I ON %%I.%%I', t.tgname, place.nspname, c.relname), false
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN place ON place.oid = c.relnamespace
        JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal AND c.relname = ANY (%(relations)s)
            AND p.proowner IS DISTINCT FROM (SELECT oid FROM index_owner)
    UNION ALL
    SELECT 3, 'operator', o.oprowner,
           format('%%s (%%s, %%s)', o.oprname,
               CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END,
               CASE o.oprright WHEN 0 THEN 'NONE' ELSE format_type(o.oprright, NULL) END),
           format('%%I.%%s (%%s, %%s)', place.nspname, o.oprname,
               CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END,
               CASE o.oprright WHEN 0 THEN 'NONE' ELSE format_type(o.oprright, NULL) END), false
        FROM pg_operator o JOIN place ON place.oid = o.oprnamespace
        WHERE EXISTS (SELECT FROM pg_operator own
                WHERE own.oprname = o.oprname AND own.oprnamespace = 'pg_catalog'::regnamespace)
            AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e')
    UNION ALL
    SELECT CASE p.prokind WHEN 'a' THEN 4 ELSE 5 END,
           CASE p.prokind WHEN 'a' THEN 'aggregate' WHEN 'p' THEN 'procedure' ELSE 'function' END, p.proowner,
           format('%%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
           format('%%I.%%I(%%s)', place.nspname, p.proname,
               CASE WHEN p.prokind = 'a' AND p.pronargs = 0 THEN '*'
                    ELSE pg_get_function_identity_arguments(p.oid) END),
           format('%%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)) = ANY (%(signatures)s)
        FROM pg_proc p JOIN place ON place.oid = p.pronamespace
        WHERE NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
            AND CASE WHEN p.proname = ANY (%(functions)s)
                     THEN p.proowner IS DISTINCT FROM (SELECT oid FROM index_owner)
                     ELSE EXISTS (SELECT FROM pg_proc own
                         WHERE own.proname = p.proname AND own.pronamespace = 'pg_catalog'::regnamespace) END
    UNION ALL
    SELECT 6, CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, t.typowner, t.typname,
           format('%%I.%%I', place.nspname, t.typname), false
        FROM pg_type t JOIN place ON place.oid = t.typnamespace
        LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE coalesce(c.relkind, 'c') = 'c' AND t.typcategory <> 'A'
            AND EXISTS (SELECT FROM pg_type own
                WHERE own.typname = t.typname AND own.typnamespace = 'pg_catalog'::regnamespace)
            AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
    UNION ALL
    SELECT 7, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                  WHEN 'S' THEN 'sequence' ELSE 'table' END, c.relowner, c.relname,
           format('%%I.%%I', place.nspname, c.relname), c.relkind IN ('r', 'p', 'S')
        FROM pg_class c JOIN place ON place.oid = c.relnamespace
        WHERE c.relname = ANY (%(relations)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            AND c.relowner IS DISTINCT FROM (SELECT oid FROM index_owner)
            AND NOT EXISTS (SELECT FROM pg_depend d  -- a column's sequence follows its table
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                    AND c.relkind = 'S')
)
SELECT planted.kind::text, planted.name::text, pg_get_userbyid(planted.owner)::text,
       CASE WHEN planted.needed AND index_owner.oid IS NOT NULL
            THEN format('ALTER %%s %%s OWNER TO %%I;', upper(planted.kind), planted.identity,
                     pg_get_userbyid(index_owner.oid))
            ELSE format('DROP %%s %%s;', upper(planted.kind), planted.identity) END
    FROM planted CROSS JOIN me LEFT JOIN index_owner ON true
    WHERE NOT pg_has_role(planted.owner, me.oid, 'MEMBER')
    ORDER BY planted.turn, planted.name
"""
# What the look depends on, except the memberships of roles: it is the same as long as nothing was created or changed.
_STATE = """
    SELECT concat_ws(' ',
        (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_proc
            WHERE pronamespace = place.oid),
        (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_operator
            WHERE oprnamespace = place.oid),
        (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_type
            WHERE typnamespace = place.oid),
        (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_class
            WHERE relnamespace = place.oid),
        (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_trigger),
        (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_cast WHERE castfunc >= 16384))
    FROM pg_namespace place WHERE place.nspname = index_schema()
"""
# Whoever may lock these keeps everybody from creating functions and operators until its transaction ends.
_STILL = "LOCK TABLE pg_catalog.pg_proc, pg_catalog.pg_operator IN SHARE MODE"
# The lock does not wait for those who have created some and not committed yet: a catalog is locked for a moment only.
_UNCOMMITTED = """
    SELECT l.transactionid::text, format('pid %s, role %s', coalesce(a.pid::text, 'prepared'),
               coalesce(a.usename, p.owner))
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid AND l.pid IS NULL
        WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock'
            AND coalesce(a.datname, p.database) = current_database()
            AND NOT pg_has_role(coalesce(a.usename, p.owner), session_user, 'MEMBER')
"""
_LEFT = """SELECT l.transactionid::text FROM pg_locks l
    WHERE l.locktype = 'transactionid' AND l.granted AND l.transactionid::text = ANY (%s)"""


@dataclass(frozen=True)
class Planted:
    """An object that could run with the rights of the session's role.

    Attributes:
        kind: `function`, `operator`, `cast`, `trigger`, ...
        name: Its name and arguments.
        owner: The role that it belongs to.
        remedy: The statement that removes it; or, for what an index needs, that gives it to the owner of the index.
    """

    kind: str
    name: str
    owner: str
    remedy: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.kind} {self.name} of role {self.owner}"


def find(conn: Connection, schema: str) -> list[Planted]:
    """Return what would run in a schema with the rights of this session's role and belongs to another."""
    functions, signatures, relations = _of_index()
    arguments = {"schema": schema, "functions": functions, "signatures": signatures, "relations": relations}
    return [Planted(*row) for row in db.trusted(conn, _PLANTED, arguments)]


def refuse(conn: db.Session) -> None:
    """Make sure that writing to the index runs no code but PostgreSQL's and the plugin's.

    Raises:
        RevisionError: There is such an object; the message names them, and the hint the statements.
    """
    [(state,)] = db.trusted(conn, _STATE) or [(None,)]
    if state is not None and state == conn.nothing_planted:
        return
    planted = find(conn, conn.schema)
    if not planted:
        conn.nothing_planted = state
        return
    named = "; ".join(map(str, planted[:_SHOWN]))
    more = f"; and {len(planted) - _SHOWN:,} more" if len(planted) > _SHOWN else ""
    number = "1 object" if len(planted) == 1 else f"{len(planted):,} objects"
    raise RevisionError(
        f"{number} in schema {conn.schema} would run in place of PostgreSQL's or the plugin's own, with the rights "
        f"of role {conn.info.user}: {named}{more}",
        f"run: {' '.join(each.remedy for each in planted[:_SHOWN])}{' ...' if more else ''} "
        "Then run: pgorthanc verify schema. Or log in as the role that owns them, if you trust it",
    )


def hold_still(conn: Connection) -> None:
    """Look again within a transaction that writes, and keep out what is new until it ends, where the role may.

    A look alone can be too early: whoever may create a function can do so a moment later. A superuser, who has most to
    lose, locks the catalogs of functions and operators against changes, and waits for transactions that have made
    some. No other role may do that; for it the time between this look and the end of its transaction remains, and
    so it does at the isolation level SERIALIZABLE, whose view of the catalogs is that of the first statement.

    Raises:
        InUseError: Another transaction has just created or changed functions, and does not end.
        RevisionError: As `refuse`.
    """
    if not isinstance(conn, db.Session):
        return
    [(superuser, patience)] = db.trusted(
        conn, "SELECT current_setting('is_superuser') = 'on', current_setting('lock_timeout')"
    )
    if superuser:
        try:
            with conn.cursor() as cur:
                cur.execute(f"SET LOCAL lock_timeout = {1000 * _LOCK_WAIT_S:.0f}; {_STILL}")
                cur.execute("SELECT pg_catalog.set_config('lock_timeout', %s, true)", (patience,))
        except psycopg2.errors.LockNotAvailable:
            raise _busy("another session is creating or changing functions") from None
        _outlast(conn)
    refuse(conn)


def _outlast(conn: Connection) -> None:
    """Wait for the transactions of others that began before our lock, and may have created functions."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    others = dict(db.trusted(conn, _UNCOMMITTED))
    while others:
        left = {number for (number,) in db.trusted(conn, _LEFT, list(others))}
        others = {number: who for number, who in others.items() if number in left}
        if others and time.monotonic() > deadline:
            raise _busy(
                f"a transaction that may have created functions is still open: {'; '.join(others.values())}"
            )
        if others:
            time.sleep(_POLL_S)


def _busy(what: str) -> InUseError:
    return InUseError(
        f"{what} in this database",
        "let it finish, then run the same command again; pgorthanc doctor shows long transactions",
    )


@cache
def _of_index() -> tuple[list[str], list[str], list[str]]:
    """The functions of all revisions by name and with their arguments, and the names of their tables and sequences."""
    objects: dict[str, set[str]] = {}
    for revision in catalog.revisions():
        for entry in catalog.wanted(revision, with_storage=True):
            kind, _, rest = entry.partition(" ")
            objects.setdefault(kind, set()).add(rest)
    functions = objects["function"]
    names = {entry.partition("(")[0] for entry in functions}
    return sorted(names), sorted(functions), sorted(objects["table"] | objects["sequence"])
