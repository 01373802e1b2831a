"""Calls on the schema of a database, each on a connection of its own."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import catalog, initialize, status

REVISIONS = tuple(catalog.revisions())
CURRENT = REVISIONS[-1]
ODD_SCHEMA = 'Or th"an$create$c'
# One patient with two instances, an attachment of 10 bytes and a change for each resource.
FILL = (
    "SELECT createdeletedfilestemporarytable(), createinstance('p', 's', 'e', 'i'), createinstance('p', 's', 'e', 'j')",
    "INSERT INTO attachedfiles SELECT internalid, 1, publicid, 10, 20, 1, '', '', 0, NULL FROM resources",
    "INSERT INTO changes SELECT 40 + internalid, 2, internalid, resourcetype, 'now' FROM resources",
)


def run(target: db.Target, *statements: str) -> None:
    """Statements as an administrator would send them, one transaction each."""
    with (
        closing(db.connect(target, autocommit=True)) as conn,
        db.translate_errors(conn),
        conn.cursor() as cur,
    ):
        for statement in statements:
            cur.execute(statement)


def rows(target: db.Target, query: str) -> list[tuple[Any, ...]]:
    with closing(db.connect(target)) as conn, db.translate_errors(conn), conn.cursor() as cur:
        cur.execute(query)
        return cur.fetchall()


def init(target: db.Target, **options: Any) -> initialize.Initialised:
    with db.session(target) as conn:
        return initialize.init(conn, schema=target.schema, require_idle=locks.require_idle, **options)


def look(target: db.Target) -> status.Status:
    with db.session(target, readonly=True) as conn:
        return status.status(conn, target.schema)


def snapshot(target: db.Target) -> catalog.Catalog:
    with db.session(target, readonly=True) as conn:
        return catalog.snapshot(conn, target.schema)


def as_role(target: db.Target, role: str) -> db.Target:
    return db.Target(make_dsn(target.dsn, options=f"-c role={role}"), schema=target.schema)


def libc(conn: Connection) -> str:
    """An option of CREATE DATABASE for any encoding: the provider of template0 may be builtin, for UTF-8 only."""
    return " LOCALE_PROVIDER libc" if conn.server_version >= 150000 else ""


def drop_database(admin: Connection, name: str) -> None:
    """Drop a database and end its sessions; PostgreSQL 12 does not know DROP DATABASE … WITH (FORCE)."""
    with admin.cursor() as cur:
        cur.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        cur.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))


def drop_role(admin: Connection, name: str) -> None:
    """Drop a role and all databases that it owns or has rights in."""
    identifier = sql.Identifier(name)
    with admin.cursor() as cur:
        cur.execute(
            """SELECT DISTINCT d.datname FROM pg_database d LEFT JOIN pg_shdepend s ON d.oid IN (s.dbid, s.objid)
               WHERE s.refobjid = (SELECT oid FROM pg_roles WHERE rolname = %s)""",
            (name,),
        )
        for (database,) in cur.fetchall():
            drop_database(admin, database)
        cur.execute(sql.SQL("DROP ROLE {}").format(identifier))
