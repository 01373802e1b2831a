"""`replication primary`: make a server ready for a standby, and prove it with a login."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql
from psycopg2.extensions import encrypt_password, make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.authentication import verifier
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, UsageError
from pgorthanc_cli.replication import password, probe, source, survey
from pgorthanc_cli.replication.compare import one
from pgorthanc_cli.replication.plan import Asked, Item, Plan, plan
from pgorthanc_cli.server import hba, programs
from pgorthanc_cli.server.datafolder import DataFolder

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SETTING_PREFIX = "ALTER SYSTEM "
_DECIDED = ("listen_addresses", "ssl")  # somebody has to choose an address, or to get a certificate
_RELOAD_WITHIN_S = 10.0


@dataclass(frozen=True)
class Prepared:
    """A primary, after the work.

    Attributes:
        server: Host and port.
        role: The replication role.
        passfile: The file with its password (a line of .pgpass), mode 0600.
        slot: The slot, whether made now or before.
        changed: What was done: settings, role, slot, lines of pg_hba.conf.
        backup: The copy of pg_hba.conf as it was; `none` if it was not changed.
        login: `works`, or why it could not be tried from here.
        restart: Settings that count only after a restart of the server.
        left: What the administrator has to do by hand.
        ready: Whether a standby can follow now.
        standby: The command for the machine of the standby.
        standbys: With a new password: who used the old one, and how each gets the new one.
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
    standbys: tuple[password.User, ...] = ()


def prepare(
    target: db.Target,
    asked: Asked,
    *,
    passfile: Path,
    new_password: bool = False,
    confirmed: bool = False,
    folder: Path | None = None,
) -> Prepared:
    """Make a server ready for a standby; run again, it only does what is missing.

    Args:
        target: The primary, by a superuser's login.
        asked: What the standby is to be like.
        passfile: Where the password of the role is, or will be.
        new_password: Give the role another password, and the standbys on this machine, too.
        confirmed: Do so even if others stream, which are cut off at their next login until they get it.
        folder: The folder of the server, if it is one of `pgorthanc server` and may be restarted.

    Raises:
        ConnectError: It cannot be reached, or is a standby.
        UsageError: No address is given, what is asked makes no sense, or a new password would cut off standbys.
        PgOrthancError: The login is no superuser, the role's password is unknown, the server does not understand
            pg_hba.conf, or refuses the replication login.
    """
    asked.check()
    if not asked.allow:
        raise UsageError("from where will the standby connect?", "give its address with --allow")
    with db.session(target, autocommit=True, need_schema=False) as conn:
        facts = survey.look(conn, asked.role)
        _require_superuser(conn, facts)
        items = [item for item in plan(conn, asked).items if item.state != "ok"]
        users = password.users(conn, asked.role) if new_password and facts.role else []
        if not confirmed:
            password.refuse_unasked(users, asked.role, passfile)
        secret, role_changes = _role(conn, asked.role, facts.role, passfile, new_password=new_password)
        standbys = password.handed_on(users, asked.role, secret, passfile)
        changed = [*role_changes, *_settings(conn, items, facts.pending), *_slot(conn, items)]
        edit, left = _admit(conn, facts, items)
        changed += [f"pg_hba.conf: {line}" for line in (edit.after.splitlines() if edit else ())]
        _reload(conn)
        waiting = survey.pending(conn)
        if waiting and folder:
            _refuse_users(conn)
    if waiting and folder:
        _restart(DataFolder(folder))
        changed.append("restarted")
        waiting = ()
    after, login = _proved(target, asked, None if left else secret)
    return Prepared(
        server=facts.place,
        role=asked.role,
        passfile=str(passfile),
        slot=asked.slot,
        changed=tuple(changed),
        backup=str(edit.backup) if edit else "none",
        login=login,
        restart=waiting,
        left=(*left, *_left(after.items)),
        ready=after.ready,
        standby=_command(facts.place, asked, passfile),
        standbys=standbys,
    )


def _require_superuser(conn: Connection, facts: survey.Facts) -> None:
    if not facts.superuser:
        raise PgOrthancError(
            f"role {conn.info.user} is no superuser, and ALTER SYSTEM and REPLICATION need one",
            "log in as one; or print the steps for one: pgorthanc replication plan --print steps",
        )


def _proved(target: db.Target, asked: Asked, secret: str | None) -> tuple[Plan, str]:
    """What is missing now, and how a login went; it is not tried where pg_hba.conf still lacks the line."""
    patient = replace(target, retries=100, retry_interval_s=0.1)  # it may just have been restarted
    with db.session(patient, autocommit=True, need_schema=False) as conn:
        found = plan(conn, asked)
        if secret is None:
            return found, "not tried: pg_hba.conf lacks the line"
        return found, _try_login(conn, target, asked.role, secret, found)


def _command(place: str, asked: Asked, passfile: Path) -> str:
    host, _, port = place.rpartition(":")
    known = host != "local socket" and not host.startswith("/")
    dsn = make_dsn(host=host if known else "PRIMARY", port=port, user=asked.role, passfile=passfile.name)
    slot = f" --slot {asked.slot}" if asked.slot != source.SLOT else ""
    return (
        f"copy {passfile} to the standby's machine (mode 0600), and run there: "
        f"pgorthanc replication standby --dir DIR --from '{dsn}'{slot}"
    )


# The role


def _role(
    conn: Connection, name: str, found: survey.Role | None, passfile: Path, *, new_password: bool
) -> tuple[str, list[str]]:
    """The role as it has to be; its password, and what was done."""
    if found and found.excess:
        raise PgOrthancError(
            f"role {name} has more rights than replication needs: {', '.join(found.excess)}",
            "choose another name with --role",
        )
    known = _read(passfile, name)
    if found and known is None and not new_password:
        raise PgOrthancError(
            f"role {name} is there, and {passfile} does not hold its password",
            "name the file that does with --passfile, or give the role a new password with --new-password",
        )
    if found and found.login and found.replication and not new_password and known:
        return known, []
    secret = secrets.token_urlsafe(24) if known is None or new_password else known
    if secret != known:
        _write(passfile, name, secret)
    stored = encrypt_password(secret, name, scope=conn, algorithm="scram-sha-256")
    verb = "ALTER" if found else "CREATE"
    rights = "LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS"
    with conn.cursor() as cur:
        statement = sql.SQL(f"{verb} ROLE {{}} {rights} PASSWORD %s")
        cur.execute(statement.format(sql.Identifier(name)), (stored,))
    return secret, [f"role {name}, its password in {passfile}"]


def _read(passfile: Path, role: str) -> str | None:
    """The password of the role in a file that we wrote, None if there is no such file."""
    try:
        lines = passfile.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{passfile} cannot be read: {error.strerror}") from None
    start = source.pgpass_line(role, "").removesuffix("\n")
    found = next((line.removeprefix(start) for line in lines if line.startswith(start)), None)
    if found is None:
        raise UsageError(
            f"{passfile} holds no line {start}PASSWORD",
            "name another file with --passfile; this one stays as it is",
        )
    return found.replace(r"\:", ":").replace(r"\\", "\\")


def _write(passfile: Path, role: str, secret: str) -> None:
    me = programs.Account(os.geteuid(), os.getegid())
    new = passfile.with_name(f"{passfile.name}.{os.getpid()}.new")
    try:
        source.write_passfile(new, me, role, secret)
        new.rename(passfile)
    except OSError as error:
        raise UsageError(
            f"{passfile} cannot be written: {error.strerror}", "name another with --passfile"
        ) from None


# Settings, slot, pg_hba.conf


def _settings(conn: Connection, items: list[Item], pending: tuple[str, ...]) -> list[str]:
    """ALTER SYSTEM for all that the plan names and that needs nobody's decision."""
    done = []
    for item in items:
        if item.statement.startswith(_SETTING_PREFIX) and item.name not in (*_DECIDED, *pending):
            with conn.cursor() as cur:
                cur.execute(item.statement)
            done.append(f"{item.statement.removeprefix(_SETTING_PREFIX + 'SET ')} (was {item.found})")
    return done


def _slot(conn: Connection, items: list[Item]) -> list[str]:
    """The slot, and with it the WAL from now on; it waits for the settings that it needs."""
    for item in items:
        if item.name.startswith("slot ") and item.statement and one(conn, "SHOW wal_level") != "minimal":
            one(conn, item.statement)
            return [item.name]
    return []


def _admit(
    conn: Connection, facts: survey.Facts, items: list[Item]
) -> tuple[hba.Edit | None, tuple[str, ...]]:
    """Insert the missing lines before all others, where the file is on this machine; else they are left to do."""
    lines = [item.statement for item in items if item.name.startswith("pg_hba.conf for ")]
    if not lines:
        return None, ()
    file = facts.hba_file
    if file is None:
        name = facts.settings.get("hba_file", "pg_hba.conf")
        return None, tuple(f"insert as first line of {name}: {line}" for line in lines)
    edit = hba.insert(file, "\n".join(lines), before=1)
    complaints = hba.errors(conn)
    if complaints:
        edit.undo()
        raise PgOrthancError(
            f"the server does not understand {file}: {complaints[0]}",
            "repair it; our line was taken out again",
        )
    return edit, ()


def _reload(conn: Connection) -> None:
    """Reload, and wait until the server has done it."""
    before = one(conn, "SELECT pg_conf_load_time()")
    one(conn, "SELECT pg_reload_conf()")
    deadline = time.monotonic() + _RELOAD_WITHIN_S
    while one(conn, "SELECT pg_conf_load_time()") == before and time.monotonic() < deadline:
        time.sleep(0.02)


def _refuse_users(conn: Connection) -> None:
    """Make sure that no command of ours is at work; an Orthanc connects again by itself.

    Raises:
        InUseError: One is.
    """
    who = one(
        conn,
        """SELECT string_agg(format('pid %s, application %s', pid, application_name), '; ') FROM pg_stat_activity
           WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name LIKE 'pgorthanc %'""",
    )
    if who:
        raise InUseError(
            f"cannot restart the server, commands use it: {who}", "wait until they end; run it again"
        )


def _restart(folder: DataFolder) -> None:
    with folder.exclusive():
        folder.halt()
        folder.ensure_running()


def _left(items: tuple[Item, ...]) -> tuple[str, ...]:
    """What is still missing and needs a decision, or a restart."""
    return tuple(
        f"{item.name} is {item.found}, wanted {item.wanted}"
        for item in items
        if item.state == "missing" and not item.name.startswith("pg_hba.conf for ")
    )


# The login


def _try_login(conn: Connection, target: db.Target, role: str, secret: str, found: Plan) -> str:
    """Log in as the standby will, over TCP; from an address that is not allowed, that cannot be tried.

    Raises:
        PgOrthancError: The login was tried, and refused; or the password is not that of the role.
    """
    given = db.parse_dsn(target.dsn)
    host = given.get("host", "")
    host = "127.0.0.1" if not host or host.startswith("/") else host
    dsn = make_dsn(
        **{k: v for k, v in given.items() if k.startswith("ssl") and k != "sslpassword"},
        host=host,
        port=str(conn.info.port),
        user=role,
        password=secret,
    )
    try:
        with db.replication_session(db.Target(dsn, application=target.application)):
            return "works"
    except ConnectError as error:
        # What the server says is in its own language; what it has stored, and its first answer, are in none.
        stored = db.value(conn, "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = %s", role) or ""
        tried = probe.asks_for_password(host, conn.info.port, role)
        if (tried or _wants_password(found)) and not verifier.matches(stored, role, secret):
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


def _wants_password(found: Plan) -> bool:
    """Whether a line that decides for a standby asks for a password, and not for a certificate."""
    lines = [item.found.split() for item in found.items if item.name.startswith("pg_hba.conf for ")]
    return any({"scram-sha-256", "md5", "password"} & set(words) for words in lines)
