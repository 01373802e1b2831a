"""The server's side of a login: catalog, settings and the line of pg_hba.conf, as far as a session may see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Method of pg_hba.conf -> methods that the server can then require, as `wire.Answer.method` without `-plus`.
_REQUIRED = {
    "trust": ("trust",), "peer": ("trust", "peer"), "ident": ("trust", "ident"), "cert": ("trust", "cert"),
    "md5": ("md5", "scram-sha-256"), "scram-sha-256": ("scram-sha-256", ), "reject": ("no line",),
    "gss": ("gss",), "sspi": ("sspi",),
    **dict.fromkeys(("password", "ldap", "radius", "pam", "bsd"), ("password",)),
}  # fmt: skip
# Kind of a stored password by its beginning (PostgreSQL, "pg_authid").
_KIND = """CASE WHEN rolpassword IS NULL THEN 'none' WHEN starts_with(rolpassword, 'SCRAM-SHA-256$')
           THEN 'scram-sha-256' WHEN starts_with(rolpassword, 'md5') THEN 'md5' ELSE 'another kind' END"""


@dataclass(frozen=True)
class ServerSide:
    """What the server shows of a login; None: hidden from us.

    Attributes:
        viewer: The role of the session that asked; None: there was no session.
        role_exists: Whether the role exists.
        stored: Kind of the stored password.
        password_encryption: The setting in that session.
        valid_until: When the password expires: ISO 8601, or `never`.
        expired: Whether it has expired.
        rule: The line of pg_hba.conf that matches; also None if none does.
        sees_rules: Whether the session may read pg_hba_file_rules.
        notes: Reasons to doubt this.
    """

    viewer: str | None = None
    role_exists: bool = True
    stored: str | None = None
    password_encryption: str | None = None
    valid_until: str | None = None
    expired: bool = False
    rule: hba.Rule | None = None
    sees_rules: bool = False
    notes: tuple[str, ...] = ()


def inspect(conn: Connection, client: hba.Client) -> ServerSide:
    """Return what a session sees of a client's login, which may be its own."""
    notes: list[str] = []
    encryption = value(conn, "SELECT current_setting('password_encryption')")
    with db.translate_errors(conn):
        row = db.row(
            conn,
            """SELECT coalesce(to_char(nullif(rolvaliduntil, 'infinity') AT TIME ZONE 'UTC',
                                       'YYYY-MM-DD"T"HH24:MI:SS"Z"'), 'never'), coalesce(rolvaliduntil <= now(), false)
           FROM pg_catalog.pg_roles WHERE rolname = %s""",
            client.role,
        )
    valid_until, expired = row or (None, False)
    sees_rules = _sees_rules(conn)
    return ServerSide(
        viewer=conn.info.user,
        role_exists=row is not None,
        stored=_stored(conn, client.role),
        password_encryption="md5" if encryption == "on" else encryption,
        valid_until=valid_until,
        expired=expired,
        rule=_rule(conn, client, notes) if sees_rules else None,
        sees_rules=sees_rules,
        notes=tuple(notes),
    )


def explains(rule: hba.Rule, method: str) -> bool:
    """Return whether a line of pg_hba.conf leads to this method; if not, a pooler may be answering."""
    plain = method.removesuffix("-plus")
    if plain == "cert" and any(option.startswith("clientcert") for option in rule.options):
        return True
    return plain in ("refused", rule.method, *_REQUIRED.get(rule.method, (plain,)))


def logged_in_by(conn: Connection) -> str | None:
    """Return the method by which a session authenticated; None before PostgreSQL 16, which does not show it."""
    if conn.server_version < 160000:
        return None
    # system_user is NULL if the server has let the client in without authentication.
    method: str = value(conn, "SELECT coalesce(split_part(system_user, ':', 1), 'trust')")
    return method


def _stored(conn: Connection, role: str) -> str | None:
    if not value(conn, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')"):
        return None
    query = f"SELECT {_KIND} FROM pg_catalog.pg_authid WHERE rolname = %s"  # noqa: S608
    return value(conn, query, role) or "none"


def _sees_rules(conn: Connection) -> bool:
    query = """SELECT has_table_privilege('pg_catalog.pg_hba_file_rules', 'SELECT')
                  AND has_function_privilege('pg_catalog.pg_hba_file_rules()', 'EXECUTE')"""
    return bool(value(conn, query))


def _rule(conn: Connection, client: hba.Client, notes: list[str]) -> hba.Rule | None:
    """Return the line that matches the client; add reasons to doubt it to the notes."""
    notes.extend(
        f"pg_hba.conf has an error, and the server would not load it: {error}" for error in hba.errors(conn)
    )
    if has_unloaded_rules(conn):
        notes.append("pg_hba.conf was changed after the server loaded it; SELECT pg_reload_conf() loads it")
    try:
        return hba.match(hba.rules(conn), replace(client, groups=hba.groups(conn, client.role)))
    except hba.IndeterminateMatch as error:
        notes.append(f"which line of pg_hba.conf decides is not known: {error.message}")
        return None


def has_unloaded_rules(conn: Connection) -> bool:
    """Return whether pg_hba.conf has changed since the server loaded it; False if we may not ask."""
    if not value(conn, "SELECT has_function_privilege('pg_catalog.pg_stat_file(text)', 'EXECUTE')"):
        return False
    # pg_stat_file has whole seconds only.
    stat = "(pg_stat_file(setting)).modification > date_trunc('second', pg_conf_load_time())"
    return bool(value(conn, f"SELECT {stat} FROM pg_catalog.pg_settings WHERE name = 'hba_file'"))  # noqa: S608


def value(conn: Connection, query: str, *arguments: object) -> Any:
    """Return the first value of the first row, None if there is no row.

    Raises:
        PgOrthancError: The server refuses the query.
    """
    with db.translate_errors(conn):
        return db.value(conn, query, *arguments)


def as_seen(conn: Connection, client: hba.Client) -> hba.Client:
    """Return the client with the addresses and the database that the server shows for its session."""
    query = "SELECT host(inet_client_addr()), host(inet_server_addr()), current_database()"
    with db.translate_errors(conn):
        row = db.row(conn, query)
    address, reached, database = row or (None, None, client.database)
    return replace(client, address=address, server=reached, database=database)
