"""Create what an index needs: a role, a database, a namespace.

The role can only log in and work in the database that it owns. Its password reaches the server as a SCRAM verifier
only, so that no log ever holds it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql
from psycopg2.extensions import encrypt_password, make_dsn

from pgorthanc_cli import db, files
from pgorthanc_cli.errors import PgOrthancError, UsageError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# To create a database, a session needs another one, and `postgres` may have been dropped.
_MAINTENANCE_DATABASES = ("postgres", "template1")


def prepare(
    target: db.Target,
    *,
    create_database: bool = False,
    role: str | None = None,
    password_file: Path | None = None,
    password: str | None = None,
) -> db.Target:
    """Create what is missing, and return the target to continue with, which acts as the role.

    Args:
        target: The database, by an administrator's login.
        create_database: Create the database, and in it the namespace, if they are missing.
        role: Create this role if it is missing, and let it own the database.
        password_file: File whose first line is the role's password; if there is no such file, a password is
            generated and the file is written, readable for its owner only.
        password: The role's password, if Orthanc's configuration has it.

    Raises:
        UsageError: The target names no database, or a role has to be created without a file for its password.
        ConnectError: The server cannot be reached, or it takes no writes.
        PgOrthancError: The login lacks rights, or the role exists and its password is unknown.
    """
    database = db.parse_dsn(target.dsn).get("dbname")
    if not database:
        raise UsageError(
            "which database? it cannot be guessed when one is to be created", "name it with --dbname"
        )
    with _maintenance(target) as conn:
        if role:
            create_role(conn, role, password_file, password)
            _join(conn, role)
        if create_database:
            create_database_for(conn, database, role)
        elif role:
            _run(conn, "ALTER DATABASE {} OWNER TO {}", database, role)
    acting = _acting_as(target, role) if role else target
    if create_database:
        with db.session(acting, autocommit=True, need_schema=False) as conn:
            _create_namespace(conn, target.schema)
    return acting


def create_role(conn: Connection, name: str, password_file: Path | None, password: str | None = None) -> bool:
    """Create a role that may only log in; return False if it exists already.

    Raises:
        UsageError: There is no file for its password, or the file holds another password than `password`.
        PgOrthancError: The role exists, but no file holds its password.
    """
    if _exists(conn, "SELECT FROM pg_roles WHERE rolname = %s", name):
        if password_file and not password_file.exists():
            raise PgOrthancError(
                f"role {name} is there already, so no password was generated for {password_file}",
                "write its password to that file, or leave out --role-password-file",
            )
        return False
    if password_file is not None:
        password = _password(password_file, password)
    if not password:
        raise UsageError(
            f"role {name} needs a password",
            "name a file with --role-password-file, or the configuration that holds it with --config",
        )
    verifier = encrypt_password(password, name, scope=conn, algorithm="scram-sha-256")
    with conn.cursor() as cur:
        statement = (
            "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD %s"
        )
        cur.execute(sql.SQL(statement).format(sql.Identifier(name)), (verifier,))
    return True


def create_database_for(conn: Connection, name: str, owner: str | None) -> bool:
    """Create a database in UTF-8; return False if it exists already. Either way, it belongs to the owner afterwards.

    template1 may hold what the administrator expects in each database (pg_trgm, for instance); template0 replaces it
    if it has another encoding.
    """
    if _exists(conn, "SELECT FROM pg_database WHERE datname = %s", name):
        if owner:
            _run(conn, "ALTER DATABASE {} OWNER TO {}", name, owner)
        return False
    suits = "SELECT FROM pg_database WHERE datname = %s AND pg_encoding_to_char(encoding) = 'UTF8'"
    template = "template1" if _exists(conn, suits, "template1") else "template0"
    statement = "CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE {}"
    if owner:
        _run(conn, statement + " OWNER {}", name, template, owner)
    else:
        _run(conn, statement, name, template)
    return True


def _join(conn: Connection, role: str) -> None:
    """Let the login act as the role: a superuser may, and an administrator of a managed server may grant it."""
    # Since PostgreSQL 16, a member may only act as the role with the option SET.
    privilege = "SET" if conn.server_version >= 160000 else "MEMBER"
    if not _exists(conn, f"SELECT WHERE pg_has_role(%s, '{privilege}')", role):
        _run(conn, "GRANT {} TO CURRENT_USER", role)


def _create_namespace(conn: Connection, schema: str) -> None:
    if not _exists(conn, "SELECT FROM pg_namespace WHERE nspname = %s", schema):
        _run(conn, "CREATE SCHEMA {}", schema)


@contextmanager
def _maintenance(target: db.Target) -> Iterator[Connection]:
    """Connect to the same server, to a database that exists."""
    *others, last = _MAINTENANCE_DATABASES
    for name in others:
        try:
            db.connect(_at(target, name), readonly=True).close()
        except db.MissingDatabase:
            continue
        last = name
        break
    # CREATE DATABASE cannot run inside a transaction.
    with db.session(_at(target, last), autocommit=True, need_schema=False) as conn:
        yield conn


def _at(target: db.Target, database: str) -> db.Target:
    return replace(target, dsn=make_dsn(**{**db.parse_dsn(target.dsn), "dbname": database}))


def _acting_as(target: db.Target, role: str) -> db.Target:
    """Return the target with the same login whose objects belong to the role."""
    parameters = db.parse_dsn(target.dsn)
    # The server splits `options` at blanks without a backslash before them.
    escaped = role.replace("\\", "\\\\").replace(" ", "\\ ")
    return replace(
        target,
        dsn=make_dsn(
            **{**parameters, "options": f"{parameters.get('options', '')} -c role={escaped}".strip()}
        ),
    )


def _password(file: Path, known: str | None) -> str:
    """Return the password in a file; if there is no file, write the known password or a new one to it.

    Raises:
        UsageError: The file cannot be read or created, or it holds another password than the known one.
    """
    if file.exists():
        password = files.read_password(file, "--role-password-file")
        if known and password != known:
            raise UsageError(
                f"{file} holds another password than the configuration, so Orthanc could not log in",
                "leave out --role-password-file: the role gets the password of the configuration",
            )
        return password
    password = known or secrets.token_urlsafe(24)
    try:
        # O_EXCL: nothing is written to a file or link that another user has put there
        # meanwhile.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot create {file}: {error.strerror}", "name a file in an existing folder"
        ) from None
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(password + "\n")
    return password


def _exists(conn: Connection, query: str, name: str) -> bool:
    with conn.cursor() as cur:
        cur.execute(query, (name,))
        return cur.fetchone() is not None


def _run(conn: Connection, statement: str, *names: str) -> None:
    with conn.cursor() as cur:
        cur.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
