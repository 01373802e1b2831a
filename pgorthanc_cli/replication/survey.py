"""What a primary is like, as far as replication is concerned. Reads only."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import errors

from pgorthanc_cli import db
from pgorthanc_cli.server import hba
from pgorthanc_cli.server.datafolder import works_in

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SETTINGS = (
    "wal_level", "max_wal_senders", "max_replication_slots", "max_slot_wal_keep_size", "wal_keep_size",
    "wal_keep_segments", "archive_mode", "synchronous_standby_names", "synchronous_commit", "listen_addresses",
    "ssl", "fsync", "full_page_writes", "wal_log_hints", "data_checksums", "port", "hba_file", "data_directory",
)  # fmt: skip


@dataclass(frozen=True)
class Role:
    """A role; `excess` are the rights that replication does not need."""

    login: bool
    replication: bool
    excess: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A server.

    Attributes:
        place: Host and port of the connection.
        major: Major version.
        version: As the server writes it.
        standby: Whether it is in recovery.
        superuser: Whether the login is a superuser.
        settings: What it is set to; what the login may not see is missing.
        pending: Settings that have another value in the files, which counts after a restart.
        senders: How many standbys and backups stream from it now.
        slots: Its physical and logical slots, and whether each is in use.
        role: The replication role, None if it is missing.
        rules: The lines of pg_hba.conf; None if the login may not see them.
        data_bytes: Size of all databases; None if the login may not connect to all of them.
        folder: The data folder, if it is on this machine.
        hba_file: pg_hba.conf, if it is on this machine.
        free_bytes: Free on the disk of that folder's WAL.
        streaming: application_name of each standby that streams now.
    """

    place: str
    major: int
    version: str
    standby: bool
    superuser: bool
    settings: Mapping[str, str]
    pending: tuple[str, ...]
    senders: int
    slots: Mapping[str, bool]
    role: Role | None
    rules: tuple[hba.Rule, ...] | None
    data_bytes: int | None
    folder: Path | None
    hba_file: Path | None
    free_bytes: int | None
    streaming: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether `pgorthanc server` made it, and gives it its address."""
        return self.folder is not None and (self.folder / "pgorthanc.lock").exists()


def look(conn: Connection, role: str) -> Facts:
    """The server of a connection in autocommit mode."""
    [(version, standby, superuser)] = _rows(
        conn,
        """SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('is_superuser') = 'on'""",
    )
    shown = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)"
    settings = dict(_rows(conn, shown, list(_SETTINGS)))
    streaming = _rows(conn, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
    folder = local_folder(conn, settings.get("data_directory"))
    return Facts(
        place=f"{conn.info.host or 'local socket'}:{conn.info.port}",
        major=conn.server_version // 10000,
        version=version,
        standby=standby,
        superuser=superuser,
        settings=settings,
        pending=pending(conn),
        senders=_rows(conn, "SELECT count(*) FROM pg_stat_replication")[0][0],
        slots=dict(_rows(conn, "SELECT slot_name, active FROM pg_replication_slots")),
        role=_role(conn, role),
        rules=_rules(conn),
        data_bytes=_data_bytes(conn),
        folder=folder,
        hba_file=_hba_file(folder, settings),
        free_bytes=shutil.disk_usage(folder / "pg_wal").free if folder else None,
        streaming=tuple(name for (name,) in streaming),
    )


def pending(conn: Connection) -> tuple[str, ...]:
    """The settings that wait for a restart."""
    return tuple(
        name for (name,) in _rows(conn, "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name")
    )


def local_folder(conn: Connection, name: str | None) -> Path | None:
    """The data folder, if it is on this machine: our own session's process works in it.

    A server of ours may know its folder by a descriptor only (see programs.py); its port tells then that it is the one.
    """
    process = db.backend_pid(conn)
    with suppress(OSError, ValueError):
        if name and works_in(str(process), Path(name)):
            return Path(name)
        if name and name.startswith("/proc/self/fd/"):
            folder = Path(f"/proc/{process}/cwd").readlink()
            port = (folder / "postmaster.pid").read_text().splitlines()[3]
            return folder if int(port) == conn.info.port else None
    return None


def _hba_file(folder: Path | None, settings: Mapping[str, str]) -> Path | None:
    name = settings.get("hba_file")
    if folder is None or name is None:
        return None
    return folder / Path(name).name if name.startswith("/proc/self/fd/") else Path(name)


def _role(conn: Connection, name: str) -> Role | None:
    rows = _rows(
        conn,
        """SELECT rolcanlogin, rolreplication, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls
           FROM pg_roles WHERE rolname = %s""",
        name,
    )
    if not rows:
        return None
    login, replication, *rights = rows[0]
    names = ("SUPERUSER", "CREATEDB", "CREATEROLE", "BYPASSRLS")
    return Role(login, replication, tuple(name for name, has in zip(names, rights, strict=True) if has))


def _rules(conn: Connection) -> tuple[hba.Rule, ...] | None:
    try:
        return tuple(hba.rules(conn))
    except errors.InsufficientPrivilege:
        return None


def _data_bytes(conn: Connection) -> int | None:
    try:
        [(size,)] = _rows(conn, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
    except errors.InsufficientPrivilege:
        return None
    return int(size)


def _rows(conn: Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(query, values or None)
        return cur.fetchall()
