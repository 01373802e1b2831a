"""`replication primary`: prepare a server for a standby, and test the standby's login."""

from __future__ import annotations

import secrets
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql
from psycopg2.extensions import encrypt_password, make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.db.scram import verifier_matches
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, UsageError
from pgorthanc_cli.replication import password, upstream
from pgorthanc_cli.replication.plan import PlanItem, PrimaryPlan, Requirements, plan
from pgorthanc_cli.replication.probe import asks_for_password
from pgorthanc_cli.replication.survey import Facts, RoleRights, pending, survey
from pgorthanc_cli.server import hba, hba_file
from pgorthanc_cli.server.private import PrivateCluster

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_ALTER_SYSTEM = "ALTER SYSTEM SET "
# An administrator has to choose an address, or to get a certificate.
_MANUAL = ("listen_addresses", "ssl")
_RELOAD_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Prepared:
    """A primary after its preparation.

    Attributes:
        server: Host and port.
        role: The replication role.
        passfile: The file with its password (a line of .pgpass), mode 0600.
        slot: The slot, whether created now or before.
        changed: What was done: settings, role, slot, lines of pg_hba.conf.
        backup: The copy of pg_hba.conf as it was; `none` if it was not changed.
        login: `works`, or why it could not be tested from here.
        restart: Settings that take effect only after a restart of the server.
        left: What the administrator has to do by hand.
        ready: Whether a standby can follow now.
        standby: What to do on the machine of the standby.
        standbys: With a new password: the standbys that used the old one, and how each
            gets the new one.
        standby_command: The command for the machine of the standby.
    """

    server: str
    role: str
    passfile: str
    slot: str
    changed: tuple[str, ...]
    backup: str
    login: str
    restart: tuple[str, ...]
    left: tuple[str, ...]
    ready: bool
    standby: str
    standbys: tuple[password.StandbyLogin, ...] = ()
    standby_command: str = ""


def prepare(
    target: db.Target,
    requirements: Requirements,
    *,
    passfile: Path,
    new_password: bool = False,
    confirmed: bool = False,
    folder: Path | None = None,
) -> Prepared:
    """Prepare a server for a standby; run again, it only does what is missing.

    Args:
        target: The primary, by a superuser's login.
        requirements: What the standby requires.
        passfile: The file that holds, or will hold, the password of the role.
        new_password: Give the role another password, and the standbys on this machine,
            too.
        confirmed: Do so even if it cuts off other standbys that stream, until they get
            the new password.
        folder: The folder of the server, if it is a private server and may be restarted.

    Raises:
        ConnectError: It cannot be reached, or is a standby.
        UsageError: No address is given, a requirement is invalid, or a new password would
            cut off standbys.
        PgOrthancError: The login is not a superuser, the role's password is unknown, the
            server does not understand pg_hba.conf, or refuses the replication login.
    """
    requirements.check()
    if not requirements.allow:
        raise UsageError("the address of the standby is missing", "give it with --allow")
    with db.session(target, autocommit=True, need_schema=False) as conn:
        facts = survey(conn, requirements.role)
        if not facts.superuser:
            steps = ["pgorthanc", "replication", "plan", *requirements.options(), "--print", "steps"]
            raise PgOrthancError(
                f"role {conn.info.user} is not a superuser; this command needs one",
                f"log in as one; or print the steps for one: {shlex.join(steps)}",
            )
        items = [item for item in plan(conn, requirements).items if item.state != "ok"]
        logins = password.standby_logins(conn, requirements.role) if new_password and facts.role else []
        if not confirmed:
            password.refuse_unconfirmed(logins, requirements.role, passfile)
        secret, changed = _ensure_role(
            conn, requirements.role, facts.role, passfile, new_password=new_password
        )
        standbys = password.distribute(logins, requirements.role, secret, passfile)
        # The slot after the settings: with wal_level minimal there is none.
        changed += [*_alter_system(conn, items, facts.pending), *_create_slot(conn, items)]
        edit, remaining = _allow_in_pg_hba(conn, facts, items)
        changed += [f"pg_hba.conf: {line}" for line in (edit.after.splitlines() if edit else ())]
        _reload(conn)
        waiting = pending(conn)
        if waiting and folder:
            _refuse_commands(conn)
    if waiting and folder:
        _restart(folder)
        changed.append("restarted")
        waiting = ()
    command = _standby_command(facts.endpoint, requirements, passfile)
    after, login = _test(target, requirements, None if remaining else secret)
    return Prepared(
        server=facts.endpoint,
        role=requirements.role,
        passfile=str(passfile),
        slot=requirements.slot,
        changed=tuple(changed),
        backup=str(edit.backup) if edit else "none",
        login=login,
        restart=waiting,
        left=(*remaining, *_remaining(after.items)),
        ready=after.ready,
        standby=f"copy {passfile} to the standby's machine (mode 0600), and run there: {command}",
        standbys=standbys,
        standby_command=command,
    )


def _restart(folder: Path) -> None:
    server = PrivateCluster(folder)
    with server.exclusive():
        server.halt()
        server.ensure_running()


def _test(target: db.Target, requirements: Requirements, secret: str | None) -> tuple[PrimaryPlan, str]:
    """Return the current plan, and whether the login works (if there is a secret)."""
    # The server may just have been restarted.
    patient = replace(target, retries=100, retry_interval_s=0.1)
    with db.session(patient, autocommit=True, need_schema=False) as conn:
        after = plan(conn, requirements)
        if secret is None:
            return after, "not tried: pg_hba.conf lacks the line"
        return after, _test_login(conn, target, requirements.role, secret, after)


def _standby_command(endpoint: str, requirements: Requirements, passfile: Path) -> str:
    host, port = requirements.endpoint_for_standby(endpoint)
    dsn = make_dsn(host=host, port=port, user=requirements.role, passfile=passfile.name)
    slot = f" --slot {requirements.slot}" if requirements.slot != upstream.SLOT else ""
    return f"pgorthanc replication standby --pgdata DIR --from {shlex.quote(dsn)}{slot}"


# The role


def _ensure_role(
    conn: Connection, name: str, role: RoleRights | None, passfile: Path, *, new_password: bool
) -> tuple[str, list[str]]:
    """Create or alter the role; return its password and the changes."""
    if role and role.excess:
        raise PgOrthancError(
            f"role {name} has more rights than replication needs: {', '.join(role.excess)}",
            "choose another name with --role",
        )
    current = password.read_passfile(passfile, name)
    if role and current is None and not new_password:
        raise PgOrthancError(
            f"role {name} exists, but {passfile} does not hold its password",
            "name the file that does with --passfile, or give the role a new password with --new-password",
        )
    if role and role.login and role.replication and not new_password and current:
        return current, []
    secret = secrets.token_urlsafe(24) if current is None or new_password else current
    if secret != current:
        # Before the server has it: a password that is in no file would be lost.
        password.write_passfile(passfile, name, secret)
    # Not the password: the server may log the statement.
    verifier_text = encrypt_password(secret, name, scope=conn, algorithm="scram-sha-256")
    verb = "ALTER" if role else "CREATE"
    rights = "LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS"
    with conn.cursor() as cur:
        statement = sql.SQL(f"{verb} ROLE {{}} {rights} PASSWORD %s")
        cur.execute(statement.format(sql.Identifier(name)), (verifier_text,))
    return secret, [f"role {name}, its password in {passfile}"]


# Settings, slot, pg_hba.conf


def _alter_system(conn: Connection, items: list[PlanItem], waiting: tuple[str, ...]) -> list[str]:
    """Change the settings of the plan that need no decision; return the changes."""
    changed = []
    for item in items:
        if item.statement.startswith(_ALTER_SYSTEM) and item.name not in (*_MANUAL, *waiting):
            with conn.cursor() as cur:
                cur.execute(item.statement)
            changed.append(f"{item.statement.removeprefix(_ALTER_SYSTEM)} (was {item.found})")
    return changed


def _create_slot(conn: Connection, items: list[PlanItem]) -> list[str]:
    """Create the slot, unless wal_level minimal has to be changed by a restart first."""
    for item in items:
        is_slot = item.name.startswith("slot ") and item.statement
        if is_slot and db.value(conn, "SHOW wal_level") != "minimal":
            db.value(conn, item.statement)
            return [item.name]
    return []


def _allow_in_pg_hba(
    conn: Connection, facts: Facts, items: list[PlanItem]
) -> tuple[hba_file.Edit | None, tuple[str, ...]]:
    """Insert the missing lines, or return them as remaining work."""
    lines = [item.statement for item in items if item.name.startswith("pg_hba.conf for ")]
    if not lines:
        return None, ()
    file = facts.hba_file
    if file is None:
        name = facts.settings.get("hba_file", "pg_hba.conf")
        return None, tuple(f"insert as first line of {name}: {line}" for line in lines)
    # The first line that matches decides, so ours comes before all others.
    edit = hba_file.insert(file, "\n".join(lines), before=1)
    errors = hba.errors(conn)
    if errors:
        edit.undo()
        raise PgOrthancError(
            f"the server does not understand {file}: {errors[0]}",
            "repair it; our line was taken out again",
        )
    return edit, ()


def _reload(conn: Connection) -> None:
    """Reload the configuration, and wait until the server has done so."""
    before = db.value(conn, "SELECT pg_conf_load_time()")
    db.value(conn, "SELECT pg_reload_conf()")
    # pg_reload_conf() only signals the server, which reads the files afterwards.
    deadline = time.monotonic() + _RELOAD_TIMEOUT_S
    while db.value(conn, "SELECT pg_conf_load_time()") == before and time.monotonic() < deadline:
        time.sleep(0.02)


def _refuse_commands(conn: Connection) -> None:
    """Raise InUseError if one of our commands runs; an Orthanc reconnects by itself."""
    sessions = db.value(
        conn,
        """SELECT string_agg(format('pid %s, application %s', pid, application_name), '; ') FROM pg_stat_activity
           WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name LIKE 'pgorthanc %'""",
    )
    if sessions:
        raise InUseError(
            f"cannot restart the server, commands use it: {sessions}", "wait until they end; run it again"
        )


def _remaining(items: tuple[PlanItem, ...]) -> tuple[str, ...]:
    """Return what is still missing and needs a decision or a restart."""
    return tuple(
        f"{item.name} is {item.found}; needed: {item.wanted}"
        for item in items
        if item.state == "missing" and not item.name.startswith("pg_hba.conf for ")
    )


# The login


def _test_login(conn: Connection, target: db.Target, role: str, secret: str, after: PrimaryPlan) -> str:
    """Log in as the standby will, over TCP, which may not be allowed from here.

    Raises:
        PgOrthancError: The login was tried, and refused; or the password is not that of
            the role.
    """
    parameters = db.parse_dsn(target.dsn)
    host = parameters.get("host", "")
    host = "127.0.0.1" if not host or host.startswith("/") else host
    tls = {k: v for k, v in parameters.items() if k.startswith("ssl") and k != "sslpassword"}
    dsn = make_dsn(**tls, host=host, port=str(conn.info.port), user=role, password=secret)
    try:
        with db.replication_session(db.Target(dsn, application=target.application)):
            return "works"
    except ConnectError as error:
        # The server's message is in its own language; the stored verifier and the first
        # answer are in none.
        query = "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = %s"
        stored = db.value(conn, query, role) or ""
        tried = asks_for_password(host, conn.info.port, role)
        if (tried or _requires_password(after)) and not verifier_matches(stored, role, secret):
            raise PgOrthancError(
                f"role {role} cannot log in: {error.message}",
                "the password was changed elsewhere: give the role a new one with --new-password",
            ) from None
        if tried:
            raise PgOrthancError(
                f"role {role} cannot log in, though its password is right: {error.message}",
                "the log of the server says why; then run the same command again",
            ) from None
        return f"not tried from here: {error.message}"


def _requires_password(after: PrimaryPlan) -> bool:
    """Return whether a line for the standby requires a password."""
    lines = [item.found.split() for item in after.items if item.name.startswith("pg_hba.conf for ")]
    return any({"scram-sha-256", "md5", "password"} & set(words) for words in lines)
