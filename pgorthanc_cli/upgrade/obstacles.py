"""What only an administrator can settle, found before a change of revision rather than by it.

Whatever the switch would refuse at its end is refused here by the same judgement, `catalog.deviations`; whatever
would stop a step on the way is asked of the server's own dependencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog, steps
from pgorthanc_cli.schema.verify.mend import known_elsewhere
from pgorthanc_cli.upgrade import mend

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Objects that PostgreSQL does not drop along with a table, column or function of the index. A view depends through
# its rule, and what depends on the row type of a table depends on the table.
_DEPENDENT = """
    WITH gone AS (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass AS class, t.oid, 0 AS part, 'table ' || t.relname AS name
            FROM pg_catalog.pg_class t WHERE t.relnamespace = %(schema)s::pg_catalog.regnamespace
                AND t.relname = ANY (%(tables)s)
        UNION ALL
        SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.reltype, 0, 'the row type of table ' || t.relname
            FROM pg_catalog.pg_class t WHERE t.relnamespace = %(schema)s::pg_catalog.regnamespace
                AND t.relname = ANY (%(tables)s)
        UNION ALL
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, t.oid, a.attnum, 'column ' || t.relname || '.' || a.attname
            FROM pg_catalog.pg_class t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid
            WHERE t.relnamespace = %(schema)s::pg_catalog.regnamespace
                AND (t.relname = ANY (%(tables)s) OR t.relname || '.' || a.attname = ANY (%(columns)s))
        UNION ALL
        SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, 0, 'function ' || p.proname
            FROM pg_catalog.pg_proc p WHERE p.pronamespace = %(schema)s::pg_catalog.regnamespace
                AND pg_catalog.format('%%s(%%s)', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
                    = ANY (%(functions)s)
    )
    SELECT DISTINCT CASE WHEN v.relkind = 'm' THEN 'materialized view ' || v.oid::pg_catalog.regclass
                         WHEN v.relkind = 'v' THEN 'view ' || v.oid::pg_catalog.regclass
                         ELSE pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) END, gone.name
        FROM gone JOIN pg_catalog.pg_depend d
            ON d.refclassid = gone.class AND d.refobjid = gone.oid AND d.refobjsubid = gone.part AND d.deptype = 'n'
        LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
            AND r.oid = d.objid
        LEFT JOIN pg_catalog.pg_class v ON v.oid = r.ev_class
        LEFT JOIN pg_catalog.pg_constraint k
            ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid
        LEFT JOIN pg_catalog.pg_trigger g
            ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND g.oid = d.objid
        LEFT JOIN pg_catalog.pg_class o ON o.oid = coalesce(k.conrelid, g.tgrelid, v.oid)
        WHERE NOT (o.relnamespace IS NOT DISTINCT FROM %(schema)s::pg_catalog.regnamespace
            AND o.relname = ANY (%(known)s))
        ORDER BY 1, 2
"""
_PREPARED = """
    SELECT DISTINCT p.gid, p.owner::text, p.prepared
        FROM pg_catalog.pg_prepared_xacts p
        JOIN pg_catalog.pg_locks x
            ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
        JOIN pg_catalog.pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL
        LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
        LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
        LEFT JOIN pg_catalog.pg_class t ON t.oid = coalesce(i.indrelid, c.oid)
        WHERE p.database = pg_catalog.current_database() AND (
            (t.relnamespace = %s::pg_catalog.regnamespace AND t.relname = ANY (%s))
            OR (l.locktype = 'advisory' AND l.classid = 0 AND l.objid::bigint = ANY (%s))) ORDER BY 3, 1
"""
# Without a key the server does not know which row of a subscriber is meant, and refuses to change any.
_PUBLISHED = """
    SELECT DISTINCT p.pubname::text, c.relname::text
        FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
        JOIN pg_catalog.pg_class c ON c.relname = t.tablename AND c.relnamespace = %(schema)s::pg_catalog.regnamespace
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
        WHERE (p.pubupdate OR p.pubdelete) AND c.relname = ANY (%(tables)s) AND (
            c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))) ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Prepared:
    """A prepared transaction that holds locks on the index: no session, and so never in the way of any list of them."""

    gid: str
    owner: str
    since: datetime

    def __str__(self) -> str:
        """Name it, with the statements that end it."""
        gid = "'" + self.gid.replace("'", "''") + "'"
        return (
            f"prepared transaction {gid} of role {self.owner} since {self.since:%Y-%m-%d %H:%M:%S} holds locks on the "
            f"index: end it as that role, by ROLLBACK PREPARED {gid}; or COMMIT PREPARED {gid};"
        )


def prepared(conn: Connection, schema: str, tables: list[str]) -> list[Prepared]:
    """Return the prepared transactions that hold locks on tables of the index, or advisory locks of Orthanc."""
    locks = [db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP, db.LOCK_TRANSITION]
    return [Prepared(*row) for row in db.rows(conn, _PREPARED, _quoted(conn, schema), tables, locks)]


def obstacles(
    conn: Connection, schema: str, found: catalog.Catalog, damage: mend.Damage, to: int
) -> tuple[str, ...]:
    """Return what keeps the index from revision `to`, in words; nothing is changed and no lock is waited for."""
    tables = index_tables(found)
    return (
        *_left(found, damage, to),
        *_dependent(conn, schema, damage.start, to),
        *_published(conn, schema, tables),
        *map(str, prepared(conn, schema, tables)),
    )


def index_tables(found: catalog.Catalog) -> list[str]:
    """Return the tables of the index in a schema, of whatever revision; the storage area is none of them."""
    known = {
        name for revision in catalog.revisions() for name in catalog.expected(revision, with_storage=False)
    }
    return [name.removeprefix("table ") for name in found if name.startswith("table ") and name in known]


def _left(found: catalog.Catalog, damage: mend.Damage, to: int) -> list[str]:
    """Return what no step and no repair changes, so that the result would not match."""
    deviating = {difference.name: difference for difference in catalog.deviations(found, to)}
    if damage.start == 0:  # older layouts have no catalog: what no revision knows is an administrator's
        known = known_elsewhere()
        return [
            _in_words(one) for one in deviating.values() if one.expected is None and one.name not in known
        ]
    expected = catalog.expected(to, with_storage="table storagearea" in found)
    left = []
    for finding in damage.findings:
        if finding in damage.repairs:
            continue
        if finding.name in deviating:
            left.append(_in_words(deviating[finding.name]))
        elif finding.matters and finding.name not in found | expected:
            left += mend.words([finding])
    return left


def _in_words(difference: catalog.Difference) -> str:
    if difference.expected is not None:
        return str(difference)
    kind, _, rest = difference.name.partition(" ")
    table, _, name = rest.partition(".")
    remedy = {
        "column": f"move it to a table of your own: ALTER TABLE {table} DROP COLUMN {name};",
        "constraint": f"ALTER TABLE {table} DROP CONSTRAINT {name};",
        "trigger": f"DROP TRIGGER {name} ON {table};",
        "rule": f"DROP RULE {name} ON {table};",
        "index": f"DROP INDEX {rest};",
        "function": f"DROP FUNCTION {rest};",
        "child": f"ALTER TABLE {name} NO INHERIT {table};",
        "rowsecurity": f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;",
    }
    what = {
        "child": f"table {name}, which inherits from {table}",
        "rowsecurity": f"row level security of {table}",
    }
    return f"extra {what.get(kind, difference.name)} (not created by the plugin); {remedy[kind]}"


def _dependent(conn: Connection, schema: str, start: int, to: int) -> list[str]:
    """Return what depends on something that a step drops."""
    gone = [
        name.partition(" ")
        for step in steps.path(start, to)
        for name in catalog.expected(max(step.start, 1), with_storage=False).keys()
        - catalog.expected(step.end, with_storage=False).keys()
    ]
    known = {name for number in catalog.revisions() for name in catalog.expected(number, with_storage=True)}
    arguments = {
        "schema": _quoted(conn, schema),
        "known": [name.removeprefix("table ") for name in known if name.startswith("table ")],
    }
    for kind in ("table", "column", "function"):
        arguments[f"{kind}s"] = [rest for one, _, rest in gone if one == kind]
    with conn.cursor() as cur:
        cur.execute(_DEPENDENT, arguments)
        return [
            f"{what} depends on {on}, which revision {to} does not have: drop it, and create it again afterwards"
            for what, on in cur.fetchall()
        ]


def _published(conn: Connection, schema: str, tables: list[str]) -> list[str]:
    with conn.cursor() as cur:
        cur.execute(_PUBLISHED, {"schema": _quoted(conn, schema), "tables": tables})
        return [
            f"publication {publication} publishes changes of table {table}, which has no key, so that no row of it can "
            f"be changed: ALTER TABLE {table} REPLICA IDENTITY FULL;"
            for publication, table in cur.fetchall()
        ]


def _quoted(conn: Connection, schema: str) -> str:
    return sql.Identifier(schema).as_string(conn)
