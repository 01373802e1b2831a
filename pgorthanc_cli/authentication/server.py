"""What the server tells about a role's login to whoever may ask: catalog, settings, the line of pg_hba.conf."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# What a client is asked for under each method of pg_hba.conf, as `wire.Answer.method` has it without `-plus`.
_ASKED = {
    "trust": ("trust",), "peer": ("trust", "peer"), "ident": ("trust", "ident"), "cert": ("trust", "cert"),
    "md5": ("md5", "scram-sha-256"), "scram-sha-256": ("scram-sha-256", ), "reject": ("no line",),
    "gss": ("gss",), "sspi": ("sspi",),
    **dict.fromkeys(("password", "ldap", "radius", "pam", "bsd"), ("password",)),
}  # fmt: skip
# Kind of a stored password by its beginning (PostgreSQL, "pg_authid").
_KIND = """CASE WHEN rolpassword IS NULL THEN 'none' WHEN starts_with(rolpassword, 'SCRAM-SHA-256$')
           THEN 'scram-sha-256' WHEN starts_with(rolpassword, 'md5') THEN 'md5' ELSE 'another kind' END"""


@dataclass(frozen=True)
class Seen:
    """What could be seen; None: what could not.

    Attributes:
        looker: The role that looked; None: nobody could.
        role_exists: Whether there is such a role at all.
        stored: Kind of the stored password.
        password_encryption: As the session has it.
        valid_until: When the password expires: ISO 8601, or `never`.
        expired: Whether it has.
        rule: The line of pg_hba.conf that decides; also None if there is none.
        sees_rules: Whether pg_hba.conf could be seen.
        notes: What makes this doubtful.
    """

    looker: str | None = None
    role_exists: bool = True
    stored: str | None = None
    password_encryption: str | None = None
    valid_until: str | None = None
    expired: bool = False
    rule: hba.Rule | None = None
    sees_rules: bool = False
    notes: tuple[str, ...] = ()


def look(conn: Connection, client: hba.Client) -> Seen:
    """What this session may see of another role's login, or of its own."""
    notes: list[str] = []
    encryption = value(conn, "SELECT current_setting('password_encryption')")
    row = _row(
        conn,
        """SELECT coalesce(to_char(nullif(rolvaliduntil, 'infinity') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                           'never'), coalesce(rolvaliduntil <= now(), false)
           FROM pg_catalog.pg_roles WHERE rolname = %s""",
        client.role,
    )
    valid_until, expired = row or (None, False)
    sees_rules = _sees_rules(conn)
    return Seen(
        looker=conn.info.user,
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
    """Whether the line is why the client is asked for that; if not, somebody else answers, such as a pooler."""
    asked = method.removesuffix("-plus")
    return asked in ("refused", *_ASKED.get(rule.method, (asked,))) or (
        asked == "cert" and any(option.startswith("clientcert") for option in rule.options)
    )


def logged_in_by(conn: Connection) -> str | None:
    """The method of pg_hba.conf that this session has come in by; None: the server does not say (before 16)."""
    if conn.server_version < 160000:
        return None
    found: str = value(conn, "SELECT coalesce(split_part(system_user, ':', 1), 'trust')")
    return found


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
    """The line that decides, and notes on what makes it doubtful."""
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
    """Whether pg_hba.conf is newer than what the server works with, if we may ask."""
    if not value(conn, "SELECT has_function_privilege('pg_catalog.pg_stat_file(text)', 'EXECUTE')"):
        return False
    stat = "(pg_stat_file(setting)).modification > date_trunc('second', pg_conf_load_time())"
    return bool(value(conn, f"SELECT {stat} FROM pg_catalog.pg_settings WHERE name = 'hba_file'"))  # noqa: S608


def value(conn: Connection, query: str, *arguments: object) -> Any:
    """The first value of the first row; None if there is no row.

    Raises:
        PgOrthancError: The server refuses it.
    """
    row = _row(conn, query, *arguments)
    return row[0] if row else None


def _row(conn: Connection, query: str, *arguments: object) -> tuple[Any, ...] | None:
    with db.translate_errors(conn), conn.cursor() as cur:
        cur.execute(query, arguments or None)
        return cur.fetchone()


def as_seen(conn: Connection, client: hba.Client) -> hba.Client:
    """The client with the addresses and the database that the server knows of its session."""
    row = _row(conn, "SELECT host(inet_client_addr()), host(inet_server_addr()), current_database()")
    address, reached, database = row or (None, None, client.database)
    return replace(client, address=address, server=reached, database=database)
