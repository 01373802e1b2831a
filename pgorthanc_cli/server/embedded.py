"""Private PostgreSQL servers, which need no administrator.

`attach` starts a server for one command and stops it when the last user leaves. `start`
keeps one up for other programs, such as an Orthanc, on TCP with a password; `attach` then
uses the same server and does not stop it. Longer than other modules, because all of them
share one way to lock the folder and to undo what failed.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from psycopg2 import extensions, sql

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError, PgOrthancError, UsageError
from pgorthanc_cli.server.cluster import LOOPBACK, pgpass_line, remove, translated
from pgorthanc_cli.server.private import DEFAULT_PORT, SUPERUSER, PrivateCluster, ServerSettings
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_PASSWORD_FILE, _PGPASS_FILE = "pgorthanc.password", "pgorthanc.pgpass"

_FACTS = """
    SELECT current_setting('server_version'), current_setting('listen_addresses'),
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())"""
_SIZES = "SELECT datname, pg_database_size(oid) FROM pg_database WHERE NOT datistemplate ORDER BY datname"
_SESSIONS = """
    SELECT format('pid %s, application %s, since %s', pid, application_name, backend_start::timestamp(0))
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"""


@dataclass(frozen=True)
class RunningServer:
    """A private server that stays up until `server stop`.

    Attributes:
        dsn: The connection string; it holds the password only on request.
        orthanc: The section of Orthanc's configuration file that uses this server.
        listen: The TCP address; * for all of this machine.
        outcome: What `start` did: created, started or restarted the server, changed its
            role, database or password while it kept running, or found it unchanged.
    """

    directory: str
    version: str
    pid: int
    host: str
    port: int
    database: str
    role: str
    password_file: str
    pgpass_file: str
    dsn: str
    orthanc: dict[str, Any]
    listen: str
    outcome: Literal["created", "started", "restarted", "changed", "unchanged"]


@dataclass(frozen=True)
class StoppedServer:
    """A server that `stop` has stopped; `was_running` is false if it did not run."""

    directory: str
    was_running: bool


@dataclass(frozen=True)
class ServerStatus:
    """The state of a folder and its server.

    Attributes:
        state: running, stopped, or absent (no server was ever created in the folder).
        version: Of PostgreSQL; of a stopped server only the major one.
        port: Of TCP, and of the name of the socket.
        keep: Whether it stays up until `stop`; else the last command that uses it stops
            it.
        listen: The TCP address; empty while only the socket is open.
        sessions: Number of clients that are connected.
        databases: Their sizes in bytes.
    """

    directory: str
    state: str
    version: str | None = None
    port: int | None = None
    keep: bool = False
    pid: int | None = None
    listen: str | None = None
    sessions: int | None = None
    databases: dict[str, int] | None = None


@contextmanager
def attach(directory: Path, *, superuser: bool = False, create: bool = True) -> Iterator[db.Target]:
    """Yield the database of a private server; start it, and stop it after the last user.

    Args:
        directory: The folder of the server; missing or empty at first use.
        create: Create a server that is missing; else nothing is created.
        superuser: Log in as the superuser, to the database postgres. Else as the folder's
            role (orthanc), which owns the folder's database (orthanc) and has no other
            rights.

    Raises:
        PgOrthancError: No suitable PostgreSQL; or the folder is another account's,
            damaged, or on a full disk.
    """
    folder = PrivateCluster(directory)
    if not create and not folder.exists():
        raise PgOrthancError(
            f"{printable(str(folder.path))} does not contain a pgorthanc server",
            "name the folder of one; `init`, `migrate-sqlite` and `server start` create it",
        )
    missing = _missing(folder.path)
    with folder.exclusive(), _nothing_left_on_failure(folder, missing):
        # Before the start: from now on no other user stops the server.
        user = folder.join()
        try:
            folder.ensure_running()
            _ensure_database(folder)
        except BaseException:
            _leave(folder, user)
            raise
    try:
        yield folder.target(superuser=superuser)
    finally:
        with folder.exclusive():
            _leave(folder, user)


def _leave(folder: PrivateCluster, user: int) -> None:
    try:
        if folder.is_last(user) and not folder.settings().keep:
            folder.halt()
    finally:
        os.close(user)


def start(
    directory: Path,
    *,
    port: int | None = None,
    listen: str | None = None,
    database: str | None = None,
    role: str | None = None,
    password: str | None = None,
    show_password: bool = False,
) -> RunningServer:
    """Keep a server up for other programs, on TCP, with a role and its database.

    Omitted settings keep their values; at first: a free port, 127.0.0.1, the role
    orthanc, a database of the role's name, a generated password.

    Raises:
        InUseError: It would have to be restarted for a new address or port, and commands
            are attached to it.
        PgOrthancError: As `attach`; or the port is in use, or the database belongs to
            another role.
    """
    folder = PrivateCluster(directory)
    missing = _missing(folder.path)
    with folder.exclusive(), _nothing_left_on_failure(folder, missing):
        before, was_running = folder.settings(), folder.listener_pid() is not None
        existed, old_password = folder.exists(), _read_password(folder)
        settings = _new_settings(before, port=port, listen=listen, database=database, role=role)
        restart = was_running and _endpoint(before) != _endpoint(settings)
        if restart:
            _refuse_if_used(folder, "restart")
        if not was_running or (restart and not (before.keep and before.port == settings.port)):
            settings = replace(settings, port=_free_port(settings))
        with _undone_on_failure(folder, before, halt=not was_running):
            # A running server keeps its address until role, database and password are
            # ready.
            names = replace(before, database=settings.database, role=settings.role)
            folder.save(names if was_running else settings)
            folder.ensure_running()
            _ensure_database(folder)
            _set_password(folder, password)
            if restart:
                folder.halt()
                folder.save(settings)
                folder.ensure_running()
            folder.save(settings)
        running = _running_server(folder, show_password=show_password)
    if not was_running:
        return replace(running, outcome="started" if existed else "created")
    changed = settings != before or _read_password(folder) != old_password
    return replace(running, outcome="restarted" if restart else "changed" if changed else "unchanged")


def _missing(path: Path) -> list[Path] | None:
    """Return the folders to create, innermost first; None if it exists with content."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing if missing or not any(path.iterdir()) else None


@contextmanager
def _nothing_left_on_failure(folder: PrivateCluster, missing: list[Path] | None) -> Iterator[None]:
    """If the block fails, empty a folder that was empty or missing before."""
    # Another process may have been quicker.
    created = missing is not None and not folder.exists()
    try:
        yield
    except BaseException:
        with suppress(OSError, PgOrthancError):  # the first failure is the one to report
            if created and folder.listener_pid() is None:
                for entry in folder.path.iterdir():
                    remove(entry)
                for created_folder in missing or ():
                    created_folder.rmdir()
        raise


@contextmanager
def _undone_on_failure(folder: PrivateCluster, before: ServerSettings, *, halt: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError, PgOrthancError):  # the first failure is the one to report
            if halt:
                folder.halt()
            folder.save(before)
        raise


def _new_settings(
    before: ServerSettings, *, port: int | None, listen: str | None, database: str | None, role: str | None
) -> ServerSettings:
    if role == SUPERUSER:
        raise UsageError(f"the role {SUPERUSER} is the server's own superuser", "choose another name")
    if database in ("template0", "template1"):
        raise UsageError(f"{database} is a template of PostgreSQL", "choose another name for the database")
    return ServerSettings(
        database=database or role or before.database,
        role=role or before.role,
        port=port or before.port,
        listen=listen or before.listen,
        keep=True,
    )


def _endpoint(settings: ServerSettings) -> tuple[str, int | None]:
    # While it is not kept up, it listens on the socket only.
    return (settings.listen if settings.keep else "", settings.port)


def _free_port(settings: ServerSettings) -> int:
    """Return the port of the settings, or a free one, which then never changes."""
    try:
        host = _host(settings)
        family, kind, _, _, address = socket.getaddrinfo(host, settings.port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As PostgreSQL does: connections in TIME_WAIT do not block a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PgOrthancError(
                f"port {settings.port} on {_host(settings)} is in use by another program",
                "choose a free one with --port",
            ) from None
        raise PgOrthancError(
            f"cannot listen on {settings.listen}, port {settings.port or 'any'}: {error.strerror}",
            "choose a port that is free (--port), or an address of this machine (--listen)",
        ) from None


def stop(directory: Path) -> StoppedServer:
    """Stop a server; an Orthanc that uses it loses its connections.

    Raises:
        InUseError: Commands are attached to it.
    """
    folder = PrivateCluster(directory)
    if not folder.exists():
        raise PgOrthancError(
            f"{printable(str(folder.path))} does not contain a pgorthanc server",
            "name the folder of a server with --embedded",
        )
    with folder.exclusive():
        was_running = folder.listener_pid() is not None
        if was_running:
            _refuse_if_used(folder, "stop")
        folder.save(replace(folder.settings(), keep=False))
        folder.halt()
        return StoppedServer(str(folder.path), was_running)


def _refuse_if_used(folder: PrivateCluster, purpose: str) -> None:
    user = folder.join()
    try:
        if folder.is_last(user):
            return
    finally:
        os.close(user)
    with db.session(folder.target(superuser=True), readonly=True, need_schema=False) as conn:
        sessions = [text for (text,) in db.rows(conn, _SESSIONS)]
    raise InUseError(
        f"cannot {purpose} the server in {folder.path}: commands use it (--embedded); "
        f"connected: {'; '.join(sessions) or 'none at the moment'}",
        "wait until they end, or end them; then run the same command again",
    )


def status(directory: Path) -> ServerStatus:
    """Return the state of a folder and its server; nothing is changed."""
    folder = PrivateCluster(directory)
    with translated(folder.path):
        if not folder.exists():
            return ServerStatus(str(folder.path), "absent")
        settings, pid, path = folder.settings(), folder.listener_pid(), str(folder.path)
        port = settings.port or DEFAULT_PORT
        if pid is None:
            return ServerStatus(path, "stopped", str(folder.major), port, settings.keep)
    with db.session(folder.target(superuser=True), readonly=True, need_schema=False) as conn:
        [(version, listen, sessions)] = db.rows(conn, _FACTS)
        sizes = db.rows(conn, _SIZES)
    return ServerStatus(path, "running", version, port, settings.keep, pid, listen, sessions, dict(sizes))


def _ensure_database(folder: PrivateCluster) -> None:
    """Create role and database if missing: both every time, as a crash may part them."""
    # A standby has them, and their passwords, from its primary.
    if folder.starts_as_standby:
        return
    settings = folder.settings()
    role, database = sql.Identifier(settings.role), sql.Identifier(settings.database)
    with _superuser_session(folder) as conn, conn.cursor() as cur:
        if not db.rows(conn, "SELECT 1 FROM pg_roles WHERE rolname = %s", settings.role):
            cur.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
        owner = db.value(conn, query, settings.database)
        if owner is None:
            cur.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        elif owner == SUPERUSER:
            # It is the database postgres, which comes with every server.
            cur.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
        elif owner != settings.role:
            raise PgOrthancError(
                f"the database {settings.database} belongs to the role {owner}, not to {settings.role}",
                f"use the role {owner} (--username), or another database (--dbname)",
            )


def _set_password(folder: PrivateCluster, password: str | None) -> None:
    """Set the role's password, and write it to a file; the server gets a verifier."""
    if folder.starts_as_standby:
        return
    settings, file = folder.settings(), folder.path / _PASSWORD_FILE
    if password is None:
        password = _read_password(folder) or secrets.token_urlsafe(24)
    # The file holds one line, and PostgreSQL ends a password at a NUL.
    if not password or "\n" in password or "\0" in password:
        raise UsageError("a password is one line of text, and not empty")
    folder.write(file.name, password + "\n")
    with _superuser_session(folder) as conn, conn.cursor() as cur:
        verifier = extensions.encrypt_password(password, settings.role, conn, "scram-sha-256")
        cur.execute(sql.SQL("ALTER ROLE {} PASSWORD %s").format(sql.Identifier(settings.role)), (verifier,))


def _read_password(folder: PrivateCluster) -> str | None:
    with suppress(FileNotFoundError):
        return (folder.path / _PASSWORD_FILE).read_text(encoding="utf-8").removesuffix("\n")
    return None


def _running_server(folder: PrivateCluster, *, show_password: bool) -> RunningServer:
    settings = folder.settings()
    password = _read_password(folder) or ""
    host = _host(settings)
    fields = (host, str(settings.port), settings.database, settings.role, password)
    folder.write(_PGPASS_FILE, pgpass_line(*fields))
    visible_password = password if show_password else db.MASK
    with _superuser_session(folder, readonly=True) as conn:
        [(version, _, _)] = db.rows(conn, _FACTS)
    return RunningServer(
        directory=str(folder.path),
        version=version,
        pid=folder.listener_pid() or 0,
        host=host,
        port=settings.port or 0,
        database=settings.database,
        role=settings.role,
        password_file=str(folder.path / _PASSWORD_FILE),
        pgpass_file=str(folder.path / _PGPASS_FILE),
        dsn=extensions.make_dsn(
            host=host,
            port=settings.port,
            user=settings.role,
            dbname=settings.database,
            password=visible_password,
        ),
        orthanc={
            "PostgreSQL": {
                "EnableIndex": True,
                "EnableStorage": False,
                "Host": host,
                "Port": settings.port,
                "Database": settings.database,
                "Username": settings.role,
                "Password": visible_password,
            }
        },
        listen=settings.listen,
        outcome="unchanged",
    )


def _host(settings: ServerSettings) -> str:
    return LOOPBACK.get(settings.listen, settings.listen)


@contextmanager
def _superuser_session(folder: PrivateCluster, *, readonly: bool = False) -> Iterator[Connection]:
    """Open a session of the superuser; wait while the server recovers from a crash."""
    target = replace(folder.target(superuser=True), retries=600, retry_interval_s=0.5)
    # CREATE DATABASE cannot run inside a transaction.
    with db.session(target, autocommit=True, readonly=readonly, need_schema=False) as conn:
        yield conn
