"""The state of a primary, as far as replication depends on it. Reads only."""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.server import hba
from pgorthanc_cli.server.cluster import LOOPBACK, Cluster
from pgorthanc_cli.server.private import LOCK_FILE
from pgorthanc_cli.server.processes import is_server_process

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SETTINGS = (
    "wal_level", "max_wal_senders", "max_replication_slots", "max_slot_wal_keep_size", "wal_keep_size",
    "wal_keep_segments", "archive_mode", "synchronous_standby_names", "synchronous_commit", "listen_addresses",
    "ssl", "fsync", "full_page_writes", "wal_log_hints", "data_checksums", "port", "hba_file", "data_directory",
)  # fmt: skip


@dataclass(frozen=True)
class RoleRights:
    """The rights of a role; `excess` are those that replication does not need."""

    login: bool
    replication: bool
    excess: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A server.

    Attributes:
        endpoint: Host and port of the connection.
        major: Major version.
        version: As the server writes it.
        standby: Whether it is in recovery.
        superuser: Whether the login is a superuser.
        settings: Its settings; those that the login may not see are missing.
        pending: Settings with another value in the files, which takes effect after a
            restart.
        senders: Number of standbys and backups that stream from it now.
        slots: Its physical and logical slots, and whether each is in use.
        role: The replication role, None if it is missing.
        rules: The lines of pg_hba.conf; None if the login may not see them.
        data_bytes: Size of all databases; None if the login may not connect to all of
            them.
        folder: The data folder, if it is on this machine.
        hba_file: pg_hba.conf, if it is on this machine.
        free_bytes: Free on the disk of that folder's WAL.
        streaming: application_name of each standby that streams now.
    """

    endpoint: str
    major: int
    version: str
    standby: bool
    superuser: bool
    settings: Mapping[str, str]
    pending: tuple[str, ...]
    senders: int
    slots: Mapping[str, bool]
    role: RoleRights | None
    rules: tuple[hba.Rule, ...] | None
    data_bytes: int | None
    folder: Path | None
    hba_file: Path | None
    free_bytes: int | None
    streaming: tuple[str, ...]

    @property
    def is_private(self) -> bool:
        """Return whether it is a private server of `pgorthanc server`."""
        return self.folder is not None and (self.folder / LOCK_FILE).exists()


def survey(conn: Connection, role: str) -> Facts:
    """Return the facts about the server of a connection in autocommit mode."""
    [(version, standby, superuser)] = db.rows(
        conn,
        """SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('is_superuser') = 'on'""",
    )
    # pg_settings omits settings that the login may not see, where current_setting() alone
    # would fail.
    query = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)"
    settings = dict(db.rows(conn, query, list(_SETTINGS)))
    streaming = db.rows(conn, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
    folder = local_folder(conn, settings.get("data_directory"))
    return Facts(
        endpoint=f"{conn.info.host or 'local socket'}:{conn.info.port}",
        major=conn.server_version // 10000,
        version=version,
        standby=standby,
        superuser=superuser,
        settings=settings,
        pending=pending(conn),
        senders=db.value(conn, "SELECT count(*) FROM pg_stat_replication"),
        slots=dict(db.rows(conn, "SELECT slot_name, active FROM pg_replication_slots")),
        role=_role(conn, role),
        rules=_rules(conn),
        data_bytes=_data_bytes(conn),
        folder=folder,
        hba_file=_hba_file(folder, settings),
        # pg_wal is often a link to another disk (initdb --waldir).
        free_bytes=shutil.disk_usage(folder / "pg_wal").free if folder else None,
        streaming=tuple(name for (name,) in streaming),
    )


def pending(conn: Connection) -> tuple[str, ...]:
    """Return the settings that wait for a restart."""
    names = db.rows(conn, "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name")
    return tuple(name for (name,) in names)


def local_folder(conn: Connection, name: str | None) -> Path | None:
    """Return the data folder if our session's server process runs on this machine."""
    process = db.backend_pid(conn)
    with suppress(OSError, ValueError):
        if name and is_server_process(str(process), Path(name)):
            return Path(name)
        # A private server of root knows its folder by a descriptor only (see
        # programs.py). The port tells whether the process that has this number here is
        # the one of our session.
        if name and name.startswith("/proc/self/fd/"):
            folder = Path(f"/proc/{process}/cwd").readlink()
            # The fourth line of postmaster.pid is the port.
            port = (folder / "postmaster.pid").read_text().splitlines()[3]
            return folder if int(port) == conn.info.port else None
    return None


def _hba_file(folder: Path | None, settings: Mapping[str, str]) -> Path | None:
    name = settings.get("hba_file")
    if folder is None or name is None:
        return None
    # The descriptor is one of the server's processes, not of ours.
    return folder / Path(name).name if name.startswith("/proc/self/fd/") else Path(name)


def _role(conn: Connection, name: str) -> RoleRights | None:
    row = db.row(
        conn,
        """SELECT rolcanlogin, rolreplication, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls
           FROM pg_roles WHERE rolname = %s""",
        name,
    )
    if row is None:
        return None
    login, replication, *rights = row
    names = ("SUPERUSER", "CREATEDB", "CREATEROLE", "BYPASSRLS")
    excess = tuple(name for name, granted in zip(names, rights, strict=True) if granted)
    return RoleRights(login, replication, excess)


def _rules(conn: Connection) -> tuple[hba.Rule, ...] | None:
    try:
        return tuple(hba.rules(conn))
    except errors.InsufficientPrivilege:
        return None


def _data_bytes(conn: Connection) -> int | None:
    try:  # needs CONNECT on each database, or pg_read_all_stats
        return int(db.value(conn, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"))
    except errors.InsufficientPrivilege:
        return None


# Addresses


def networks(addresses: Iterable[str]) -> tuple[hba.Network, ...]:
    """Return addresses and networks, such as 10.1.2.3 or 10.1.2.0/24.

    Raises:
        UsageError: One is neither, or includes every address.
    """
    return tuple(map(_network, addresses))


def _network(text: str) -> hba.Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(
            f"--allow {text}: {error}", "give one address (10.1.2.3) or one network (10.1.2.0/24)"
        ) from None
    if network.prefixlen == 0:
        raise UsageError(
            f"--allow {text} would open the server to every machine that reaches it",
            "give the address of the standby, or the network of the servers",
        )
    return network


def local_address(listen_addresses: str) -> str:
    """Return an address by which this machine reaches a server that listens on these."""
    first = listen_addresses.split(",")[0].strip()
    return "127.0.0.1" if first == "localhost" else LOOPBACK.get(first, first)


def address_of(cluster: Cluster) -> tuple[str, int]:
    """Return host and port by which this machine reaches a running server."""
    return local_address(cluster.listen_addresses() or "localhost"), cluster.endpoint()[0]
