"""The local PostgreSQL server that needs no administrator.

`attach` lends a private server to one command and stops it when the last user leaves. `start` keeps one up for
others, such as an Orthanc, on TCP with a password; `attach` then uses the same server and does not stop it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions, sql

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError, PgOrthancError, UsageError
from pgorthanc_cli.server.datafolder import DEFAULT_PORT, SUPERUSER, DataFolder, Settings
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_PASSWORD, _PGPASS = "pgorthanc.password", "pgorthanc.pgpass"
_LOCAL = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach them from here

_FACTS = """
    SELECT current_setting('server_version'), current_setting('listen_addresses'),
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())"""
_SIZES = "SELECT datname, pg_database_size(oid) FROM pg_database WHERE NOT datistemplate ORDER BY datname"
_SESSIONS = """
    SELECT format('pid %s, application %s, since %s', pid, application_name, backend_start::timestamp(0))
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"""


@dataclass(frozen=True)
class Server:
    """A server that stays up for others; `dsn` holds the password only if that was asked for."""

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


@dataclass(frozen=True)
class Running(Server):
    """The same with `orthanc`, the part of Orthanc's configuration file that makes it use this server."""

    orthanc: dict[str, Any]

    def server(self) -> Server:
        """Without that part."""
        return Server(**{field.name: getattr(self, field.name) for field in fields(Server)})


@dataclass(frozen=True)
class Stopped:
    """What `stop` did; `was_running` is false when there was nothing to stop."""

    directory: str
    was_running: bool


@dataclass(frozen=True)
class Folder:
    """What a folder holds: `state` is running, stopped, or absent (no server was ever made there).

    Attributes:
        version: Of PostgreSQL; of a stopped server only the major one.
        port: Of TCP, and of the name of the socket.
        keep: Whether it stays up until `stop`; else the last command that uses it stops it.
    """

    directory: str
    state: str
    version: str | None = None
    port: int | None = None
    keep: bool = False


@dataclass(frozen=True)
class Status(Folder):
    """The same, and what only a server that runs can tell.

    Attributes:
        listen: The TCP address; empty while only the socket is open.
        sessions: How many clients are connected.
        databases: Their sizes in bytes.
    """

    pid: int | None = None
    listen: str | None = None
    sessions: int | None = None
    databases: dict[str, int] | None = None

    def folder(self) -> Folder:
        """Without that."""
        return Folder(**{field.name: getattr(self, field.name) for field in fields(Folder)})


@contextmanager
def attach(directory: Path, *, superuser: bool = False, create: bool = True) -> Iterator[db.Target]:
    """The database of a private server, made and started if need be; the last one to leave stops the server.

    Args:
        directory: The folder of the server; missing or empty at first use.
        create: Create a server that is missing; else nothing is created.
        superuser: Log in as the superuser, to the database postgres. Else as the folder's role (orthanc), which
            owns the folder's database (orthanc) and has no other rights.

    Raises:
        PgOrthancError: No suitable PostgreSQL; or the folder is somebody else's, damaged, or on a full disk.
    """
    folder = DataFolder(directory)
    if not create and not folder.exists():
        raise PgOrthancError(
            f"{printable(str(folder.path))} does not contain a pgorthanc server",
            "name the folder of one; `init`, `migrate-sqlite` and `server start` create it",
        )
    missing = _missing(folder.path)
    with folder.exclusive(), _nothing_left_on_failure(folder, missing):
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


def _leave(folder: DataFolder, user: int) -> None:
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
) -> Running:
    """Keep a server up for others, on TCP with SCRAM, with a role and the database that it owns.

    What is not given stays as the folder has it; at first: a free port, 127.0.0.1, the role orthanc, a database
    of the role's name, a generated password.

    Raises:
        InUseError: It would have to be restarted to listen as asked, and commands are attached to it.
        PgOrthancError: As `attach`; or the port is in use, or the database belongs to another role.
    """
    folder = DataFolder(directory)
    missing = _missing(folder.path)
    with folder.exclusive(), _nothing_left_on_failure(folder, missing):
        before, was_running = folder.settings(), folder.pid() is not None
        wanted = _wanted(before, port=port, listen=listen, database=database, role=role)
        restart = was_running and _endpoint(before) != _endpoint(wanted)
        if restart:
            _refuse_if_used(folder, "restart")
        if not was_running or (restart and not (before.keep and before.port == wanted.port)):
            wanted = replace(wanted, port=_free_port(wanted))
        # Until the database is as wanted, a server that runs goes on as it is.
        with _undone_on_failure(folder, before, halt=not was_running):
            names = replace(before, database=wanted.database, role=wanted.role)
            folder.save(names if was_running else wanted)
            folder.ensure_running()
            _ensure_database(folder)
            _set_password(folder, password)
            if restart:
                folder.halt()
                folder.save(wanted)
                folder.ensure_running()
            folder.save(wanted)
        return _running(folder, show_password=show_password)


def _missing(path: Path) -> list[Path] | None:
    """What has to be created for a folder, itself first: nothing if it is there and empty; None if it is in use."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    return missing if missing or not any(path.iterdir()) else None


@contextmanager
def _nothing_left_on_failure(folder: DataFolder, missing: list[Path] | None) -> Iterator[None]:
    """Remove what the block has created in a folder that was missing or empty, if it fails; under `exclusive()`."""
    created = missing is not None and not folder.exists()  # another one may have been quicker
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, PgOrthancError):  # the first failure is the one to tell
            if created and folder.pid() is None:
                _empty(folder.path)
                for place in missing or ():
                    place.rmdir()
        raise


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _undone_on_failure(folder: DataFolder, before: Settings, *, halt: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, PgOrthancError):  # the first failure is the one to tell
            if halt:
                folder.halt()
            folder.save(before)
        raise


def _wanted(
    before: Settings, *, port: int | None, listen: str | None, database: str | None, role: str | None
) -> Settings:
    if role == SUPERUSER:
        raise UsageError(f"the role {SUPERUSER} is the server's own superuser", "choose another name")
    if database in ("template0", "template1"):
        raise UsageError(f"{database} is a template of PostgreSQL", "choose another name for the database")
    return Settings(
        database=database or role or before.database,
        role=role or before.role,
        port=port or before.port,
        listen=listen or before.listen,
        keep=True,
    )


def _endpoint(settings: Settings) -> tuple[str, int | None]:
    return (settings.listen if settings.keep else "", settings.port)


def _free_port(settings: Settings) -> int:
    """The port of the settings, or one that nobody uses; an Orthanc is configured for it, so it stays for good."""
    host = _LOCAL.get(settings.listen, settings.listen)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, settings.port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise PgOrthancError(
            f"cannot listen on {settings.listen}, port {settings.port or 'any'}: {error.strerror}",
            "choose a port that is free (--port), or an address of this machine (--listen)",
        ) from None


def stop(directory: Path) -> Stopped:
    """Stop a server; an Orthanc that uses it loses its connections.

    Raises:
        InUseError: Commands are attached to it.
    """
    folder = DataFolder(directory)
    if not folder.exists():
        raise PgOrthancError(
            f"{printable(str(folder.path))} does not contain a pgorthanc server",
            "name the folder of a server with --dir",
        )
    with folder.exclusive():
        was_running = folder.pid() is not None
        if was_running:
            _refuse_if_used(folder, "stop")
        folder.save(replace(folder.settings(), keep=False))
        folder.halt()
        return Stopped(str(folder.path), was_running)


def _refuse_if_used(folder: DataFolder, purpose: str) -> None:
    user = folder.join()
    try:
        if folder.is_last(user):
            return
    finally:
        os.close(user)
    with db.session(folder.target(superuser=True), readonly=True, need_schema=False) as conn:
        sessions = [text for (text,) in _rows(conn, _SESSIONS)]
    raise InUseError(
        f"cannot {purpose} the server in {folder.path}: commands use it (--embedded); "
        f"connected: {'; '.join(sessions) or 'none at the moment'}",
        "wait until they end, or end them; then run the same command again",
    )


def status(directory: Path) -> Status:
    """What a folder holds; nothing is changed."""
    folder = DataFolder(directory)
    with folder.translated():
        if not folder.exists():
            return Status(str(folder.path), "absent")
        settings, pid, path = folder.settings(), folder.pid(), str(folder.path)
        port = settings.port or DEFAULT_PORT
        if pid is None:
            return Status(path, "stopped", str(folder.major()), port, settings.keep)
    with db.session(folder.target(superuser=True), readonly=True, need_schema=False) as conn:
        [(version, listen, sessions)] = _rows(conn, _FACTS)
        sizes = _rows(conn, _SIZES)
    return Status(path, "running", version, port, settings.keep, pid, listen, sessions, dict(sizes))


def _ensure_database(folder: DataFolder) -> None:
    """The folder's role and database; both are looked for every time, as a crash may have come between them.

    A standby has them, and their passwords, from its primary.
    """
    if folder.is_standby():
        return
    settings = folder.settings()
    role, database = sql.Identifier(settings.role), sql.Identifier(settings.database)
    with _administrator(folder) as conn, conn.cursor() as cur:
        if not _rows(conn, "SELECT 1 FROM pg_roles WHERE rolname = %s", settings.role):
            cur.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        owner = _rows(
            conn, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", settings.database
        )
        if not owner:
            cur.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        elif owner == [(SUPERUSER,)]:  # the database postgres, which comes with every server
            cur.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
        elif owner != [(settings.role,)]:
            raise PgOrthancError(
                f"the database {settings.database} belongs to the role {owner[0][0]}, not to {settings.role}",
                f"use the role {owner[0][0]} (--username), or another database (--dbname)",
            )


def _set_password(folder: DataFolder, password: str | None) -> None:
    """Give the role its password, and keep it in a file; the server sees only the verifier."""
    if folder.is_standby():
        return
    settings, file = folder.settings(), folder.path / _PASSWORD
    if password is None:
        password = _read_password(folder) or secrets.token_urlsafe(24)
    if not password or "\n" in password or "\0" in password:
        raise UsageError("a password is one line of text, and not empty")
    folder.write(file.name, password + "\n")
    with _administrator(folder) as conn, conn.cursor() as cur:
        verifier = extensions.encrypt_password(password, settings.role, conn, "scram-sha-256")
        cur.execute(sql.SQL("ALTER ROLE {} PASSWORD %s").format(sql.Identifier(settings.role)), (verifier,))


def _read_password(folder: DataFolder) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return (folder.path / _PASSWORD).read_text(encoding="utf-8").removesuffix("\n")
    return None


def _running(folder: DataFolder, *, show_password: bool) -> Running:
    settings = folder.settings()
    password = _read_password(folder) or ""
    fields = (_host(settings), str(settings.port), settings.database, settings.role, password)
    folder.write(_PGPASS, ":".join(f.replace("\\", r"\\").replace(":", r"\:") for f in fields) + "\n")
    shown = password if show_password else db.MASK
    with _administrator(folder, readonly=True) as conn:
        [(version, _, _)] = _rows(conn, _FACTS)
    return Running(
        directory=str(folder.path),
        version=version,
        pid=folder.pid() or 0,
        host=_host(settings),
        port=settings.port or 0,
        database=settings.database,
        role=settings.role,
        password_file=str(folder.path / _PASSWORD),
        pgpass_file=str(folder.path / _PGPASS),
        dsn=extensions.make_dsn(
            host=_host(settings),
            port=settings.port,
            user=settings.role,
            dbname=settings.database,
            password=shown,
        ),
        orthanc={
            "PostgreSQL": {
                "EnableIndex": True,
                "EnableStorage": False,
                "Host": _host(settings),
                "Port": settings.port,
                "Database": settings.database,
                "Username": settings.role,
                "Password": shown,
            }
        },
    )


def _host(settings: Settings) -> str:
    return _LOCAL.get(settings.listen, settings.listen)


@contextmanager
def _administrator(folder: DataFolder, *, readonly: bool = False) -> Iterator[Connection]:
    """A session of the superuser; a server that still recovers from a crash is waited for."""
    target = replace(folder.target(superuser=True), retries=600, retry_interval_s=0.5)
    with db.session(target, autocommit=True, readonly=readonly, need_schema=False) as conn:
        yield conn


def _rows(conn: Connection, query: str, *values: str) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(query, values or None)
        return cur.fetchall()
