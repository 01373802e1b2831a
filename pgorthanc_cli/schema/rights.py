"""The privileges that a role lacks to change an index, and the statements that grant these and no others.

Orthanc works with the role that owns the tables. So the tables never get another owner: that would lock Orthanc out.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# USAGE: the rights of the role apply by themselves; MEMBER: after SET ROLE only.
_OWNER = """
    SELECT pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'),
           pg_catalog.pg_has_role(c.relowner, 'MEMBER'), pg_catalog.has_table_privilege(c.oid, 'SELECT')
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace = pg_catalog.to_regnamespace(%s) AND c.relname = 'resources' AND c.relkind IN ('r', 'p')
"""
_ROLE = "SELECT current_user::text"
# The steps act as the owner of the index, who then has to own all of it.
# A sequence that a column owns changes its owner with the table.
_OTHERS = """
    SELECT 'TABLE', c.oid::pg_catalog.regclass::text, c.relkind::text, c.relname::text FROM pg_catalog.pg_class c
        WHERE c.relnamespace = %(schema)s::pg_catalog.regnamespace AND c.relkind IN ('r', 'p', 'S')
            AND c.relname = ANY (%(names)s) AND NOT pg_catalog.pg_has_role(%(owner)s::name, c.relowner, 'USAGE')
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i')
                AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.relkind = 'S')
    UNION ALL
    SELECT 'FUNCTION', p.oid::pg_catalog.regprocedure::text, 'f', p.proname::text FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = %(schema)s::pg_catalog.regnamespace AND p.proname = ANY (%(functions)s)
            AND NOT pg_catalog.pg_has_role(%(owner)s::name, p.proowner, 'USAGE') ORDER BY 1 DESC, 2
"""
_LACKS = """
    SELECT NOT pg_catalog.has_schema_privilege(%(role)s::name, %(name)s, 'CREATE'),
           NOT pg_catalog.has_schema_privilege(%(role)s::name, %(name)s, 'USAGE'),
           NOT pg_catalog.has_database_privilege(%(role)s::name, pg_catalog.current_database(), 'TEMPORARY')
"""


def require_owner(conn: Connection, schema: str) -> None:
    """Raise an error unless this role may act as the owner of the index, if there is one.

    Needs no privilege on the tables, so a role that may not even read them gets the same message.

    Raises:
        RevisionError: It may not.
    """
    role, owner, acts, member, _ = _owner(conn, schema)
    if acts:
        return
    membership = ""
    if not member:
        grant = f"GRANT {_quoted(conn, owner)} TO {_quoted(conn, role)};"
        membership = f"; or have an administrator run: {grant}"
    raise RevisionError(
        f"role {role} may not change the index in schema {schema}: its tables belong to role {owner}",
        f"{_login(owner)}{membership}",
    )


def require_reading(conn: Connection, schema: str) -> None:
    """Raise an error if there is an index that this role may not read: it cannot repair it either.

    Raises:
        RevisionError: It may not.
    """
    role, owner, _, _, reads = _owner(conn, schema)
    if not reads:
        raise _not_the_owner(role, owner, schema)


def _owner(conn: Connection, schema: str) -> tuple[str, str, bool, bool, bool]:
    """Return this role, the owner of the index, and whether it acts as that, may become it, and may read.

    Without an index this role counts as its owner.
    """
    role = str(db.value(conn, _ROLE))
    return (role, *(db.row(conn, _OWNER, sql.Identifier(schema).as_string(conn)) or (role, True, True, True)))


def _not_the_owner(role: str, owner: str, schema: str) -> RevisionError:
    return RevisionError(
        f"role {role} may not repair the index in schema {schema}: its tables belong to role {owner}",
        _login(owner),
    )


def _login(owner: str) -> str:
    return (
        f"log in as role {owner} (--username {shlex.quote(owner)}, or --config with Orthanc's configuration)"
    )


def require_change(conn: Connection, schema: str, objects: catalog.Catalog) -> None:
    """Raise an error unless the owner of the index has all rights to bring it to another revision.

    Raises:
        RevisionError: It lacks some; the hint can be run as it stands, and grants only what is missing.
    """
    name = sql.Identifier(schema).as_string(conn)
    _, owner, *_ = _owner(conn, schema)
    grants = [*_ownership(conn, name, owner, objects), *missing(conn, name, owner)]
    if grants:
        raise RevisionError(
            f"role {owner}, which owns the index in schema {schema}, lacks rights to change it",
            f"have an administrator run: {' '.join(grants)}",
        )


def require_creation(conn: Connection, schema: str, objects: catalog.Catalog) -> None:
    """Raise an error unless this role may create an index, or add what is missing in one.

    Raises:
        RevisionError: It may not; the hint can be run as it stands, and grants only what is missing.
    """
    name = sql.Identifier(schema).as_string(conn)
    role, owner, *_ = _owner(conn, schema)
    superuser = db.value(conn, "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
    if owner != role and not superuser:
        raise _not_the_owner(role, owner, schema)
    grants = [*_ownership(conn, name, role, objects), *missing(conn, name, role)]
    if grants:
        raise RevisionError(
            f"role {role} lacks rights to create the index in schema {schema}",
            f"have an administrator run: {' '.join(grants)}",
        )


def missing(conn: Connection, name: str, role: str) -> list[str]:
    """Return the grants that a role lacks to create tables in a schema, given by its quoted name."""
    create, usage, temporary = _lacks(conn, name, role)
    who = _quoted(conn, role)
    kinds = ", ".join(kind for kind, lacks in (("USAGE", usage), ("CREATE", create)) if lacks)
    grants = [f"GRANT {kinds} ON SCHEMA {name} TO {who};"] if kinds else []
    if temporary:
        database = conn.info.dbname
        grants.append(f"GRANT TEMPORARY ON DATABASE {_quoted(conn, database)} TO {who};")
    return grants


def _lacks(conn: Connection, name: str, role: str) -> tuple[bool, bool, bool]:
    with conn.cursor() as cur:
        cur.execute(_LACKS, {"role": role, "name": _bare(name)})
        create, usage, temporary = cur.fetchone() or (False, False, False)
    return create, usage, temporary


def _ownership(conn: Connection, name: str, owner: str, objects: catalog.Catalog) -> list[str]:
    names = [*catalog.revisions_of_objects(), *catalog.storage()]
    entries = [entry.partition(" ") for entry in objects if entry in names]
    parameters = {
        "schema": name,
        "owner": owner,
        "names": [rest for kind, _, rest in entries if kind in ("table", "sequence")],
        "functions": [rest.partition("(")[0] for kind, _, rest in entries if kind == "function"],
    }
    with conn.cursor() as cur:
        cur.execute(_OTHERS, parameters)
        rows = cur.fetchall()
    kinds = {"S": "SEQUENCE"}
    return [
        f"ALTER {kinds.get(relkind, kind)} {_qualified(conn, name, text, plain, kind)} OWNER TO {_quoted(conn, owner)};"
        for kind, text, relkind, plain in rows
    ]


def _qualified(conn: Connection, name: str, text: str, plain: str, kind: str) -> str:
    """Name an object with its schema, whatever search_path shows."""
    parameters = text[text.index("(") :] if kind == "FUNCTION" else ""
    return f"{name}.{_quoted(conn, plain)}{parameters}"


def _bare(name: str) -> str:
    """Return a quoted name as has_schema_privilege wants it."""
    # psycopg2 quotes every identifier.
    return name[1:-1].replace('""', '"')


def _quoted(conn: Connection, name: str) -> str:
    """Quote a name where it has to be, as people write it."""
    return str(db.value(conn, "SELECT pg_catalog.quote_ident(%s)", name))
