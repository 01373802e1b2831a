"""`replication standby`: a copy of a running primary that follows it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, progress
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import basebackup, upstream
from pgorthanc_cli.replication.password import PASSFILE, standby_pgpass_line
from pgorthanc_cli.replication.probe import format_endpoint
from pgorthanc_cli.replication.survey import local_address, networks
from pgorthanc_cli.replication.upstream import Upstream
from pgorthanc_cli.server import cluster as clusters
from pgorthanc_cli.server import hba, programs
from pgorthanc_cli.server.cluster import STANDBY_SIGNAL, Cluster
from pgorthanc_cli.server.private import open_cluster

# The folder of a standby's socket, in its data folder: no other account enters that, and
# pg_rewind, which cannot read a socket, skips the contents of this one.
SOCKET_FOLDER = "pg_stat_tmp"
STREAMING_TIMEOUT_S = 60.0
_CONFIGURATION = """\
# Written by pgorthanc, because the primary keeps its configuration outside of its data folder.
password_encryption = 'scram-sha-256'
log_min_error_statement = panic
log_error_verbosity = terse
"""


@dataclass(frozen=True)
class StandbyOptions:
    """Options of a new standby.

    Attributes:
        slot: Its slot on the primary.
        name: Its application_name there; the slot's name if empty.
        listen: The TCP address.
        port: The TCP port.
        allow: Who else may log in with a password, besides the clients that the primary's
            pg_hba.conf names.
        feedback: Whether the primary keeps rows that long queries on the standby still
            see (hot_standby_feedback).
        start: Whether it is started; else a service manager does it.
    """

    slot: str = upstream.SLOT
    name: str = ""
    listen: str = "127.0.0.1"
    port: int = 5432
    allow: tuple[str, ...] = ()
    feedback: bool = False
    start: bool = True


@dataclass(frozen=True)
class Standby:
    """A standby that was created.

    Attributes:
        directory: Its data folder.
        version: Of PostgreSQL.
        listen: Its TCP address.
        port: Its TCP port.
        primary: Host and port of the server that it follows.
        slot: The slot there that keeps the WAL that it has not received yet.
        name: Its application_name, by which synchronous_standby_names may name it.
        system_identifier: The one of both servers.
        timeline: The one of both servers.
        verified: Whether each file of the copy was verified as it is on the disk
            (pg_verifybackup).
        checksums: Whether the primary has data checksums, and each page was verified,
            too.
        streaming: Whether it has begun to receive.
        index: Revision and counts of Orthanc's index on it; None if no database was named
            to compare.
        difference: How they differ from the primary's; `none`, or `not compared` (and
            why).
        next: What is left to do.
        address: Host and port by which this machine reaches it.
        start_command: The command that starts it.
    """

    directory: str
    version: str
    listen: str
    port: int
    primary: str
    slot: str
    name: str
    system_identifier: str
    timeline: int
    verified: bool
    checksums: bool
    streaming: bool
    index: basebackup.IndexCounts | None
    difference: str
    next: tuple[str, ...]
    address: str
    start_command: str


def create(
    directory: Path,
    primary: db.Target,
    options: StandbyOptions,
    *,
    database: db.Target | None = None,
    report: progress.Report = progress.silent,
) -> Standby:
    """Copy a primary into an empty folder, and start the copy as its standby.

    Args:
        directory: The folder, empty or to be created.
        primary: The replication login.
        options: What the standby is like.
        database: Orthanc's database on the primary, to compare the contents of both.
        report: Called with the bytes that are copied.

    Raises:
        ConnectError: The primary refuses the login.
        UsageError: The folder is not empty, or `primary` is a standby.
        PgOrthancError: The version is not installed, the slot is in use, the disk is
            full, the copy is damaged, or the standby does not start or stream. A folder
            that was not completed is empty again.
    """
    path = _empty_folder(directory)
    allowed = networks(options.allow)
    source = upstream.connect(primary)
    account = _account(path)
    installed = programs.usable_by(account, _matching_programs(source))
    with upstream.reserved_slot(source, options.slot), _emptied_on_failure(path, account):
        verified = basebackup.copy(source, path, account, installed, options.slot, report)
        for file in (*path.glob("pgorthanc.*"), path / "log", path / "log.1"):
            # The base backup copied those of the primary, if that is a private server.
            if file.is_file():
                file.unlink()
        cluster = open_cluster(path)
        control = cluster.control()
        _configure(cluster, source, options, allowed)
    if options.start:
        cluster.start()
        wait_until_streaming(source, options.slot, cluster)
    index, difference = basebackup.compare_index(cluster, database if options.start else None)
    return Standby(
        directory=str(path),
        version=".".join(map(str, installed.version)),
        listen=options.listen,
        port=options.port,
        primary=source.endpoint,
        slot=options.slot,
        name=options.name or options.slot,
        system_identifier=control.system_identifier,
        timeline=control.timeline,
        verified=verified,
        checksums=control.checksums,
        streaming=options.start,
        index=index,
        difference=difference,
        next=(
            "let it start with the machine: pgorthanc replication plan --print systemd"
            if options.start
            else f"start it: {cluster.command_line('start')}",
            "watch it: pgorthanc replication status --nagios",
        ),
        address=format_endpoint((local_address(options.listen), options.port)),
        start_command=cluster.command_line("start"),
    )


# The folder


def _empty_folder(directory: Path) -> Path:
    """Return the real path of an empty or missing folder that PostgreSQL can use."""
    path = Path(os.path.realpath(directory))
    hint = "name an empty folder or a new one"
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is not a folder", hint)
    content = sorted(set(os.listdir(path)) - {"lost+found"}) if path.exists() else []
    if content:
        kind = "a data folder of PostgreSQL" if "PG_VERSION" in content else ", ".join(content[:3])
        raise UsageError(
            f"{path} holds {kind}, and a standby needs an empty folder; nothing in it was touched",
            f"{hint}; a former primary comes back with: pgorthanc replication rejoin",
        )
    if clusters.is_too_long_for_socket(path / SOCKET_FOLDER):
        raise UsageError(f"the name of {path} is too long for a socket in it", "name a shorter folder")
    return path


def _account(path: Path) -> programs.Account:
    """Return who runs the server: the owner of the folder, never root."""
    if path.exists() and path.stat().st_uid != 0:
        status = path.stat()
        return programs.Account(status.st_uid, status.st_gid)
    if os.geteuid() == 0:
        return programs.service_account()
    return programs.Account(os.geteuid(), os.getegid())


def _matching_programs(source: Upstream) -> programs.Programs:
    major = source.identity.major
    try:
        return programs.find(major)
    except PgOrthancError as error:
        raise PgOrthancError(
            f"the primary {source.endpoint} is PostgreSQL {major}, and a standby needs the same: {error.message}",
            error.hint,
        ) from None


@contextmanager
def _emptied_on_failure(path: Path, account: programs.Account) -> Iterator[None]:
    existed = path.exists()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    account.own(path)
    path.chmod(0o700)
    try:
        yield
    except BaseException:
        for entry in path.iterdir():
            clusters.remove(entry)
        if not existed:
            path.rmdir()
        raise


# The configuration


def _configure(
    cluster: Cluster, source: Upstream, options: StandbyOptions, allowed: Sequence[hba.Network]
) -> None:
    # That of the primary is outside of its folder.
    if not (cluster.path / "postgresql.conf").exists():
        settings = "".join(f"{name} = {value}\n" for name, value in cluster.control().settings.items())
        cluster.write("postgresql.conf", _CONFIGURATION + settings)
        cluster.write("pg_ident.conf", "")
    cluster.set(
        {
            "port": str(options.port),
            "listen_addresses": options.listen,
            "unix_socket_directories": SOCKET_FOLDER,
            "hot_standby_feedback": "on" if options.feedback else "off",
        }
    )
    follow(
        cluster,
        source.parameters,
        source.password,
        slot=options.slot,
        name=options.name or options.slot,
    )
    allow_in_pg_hba(cluster, source.role, allowed)


def follow(cluster: Cluster, parameters: Mapping[str, str], password: str, *, slot: str, name: str) -> None:
    """Configure a cluster as a standby of a server, from its next start on."""
    conninfo = {**db.KEEPALIVE, **parameters}
    if password:
        cluster.write(PASSFILE, standby_pgpass_line(parameters.get("user", ""), password))
        # Relative: the server works in its data folder.
        conninfo["passfile"] = PASSFILE
    cluster.set(
        {
            # pg_stat_replication and synchronous_standby_names know it by this name.
            "primary_conninfo": make_dsn(**{**conninfo, "application_name": name}),
            "primary_slot_name": slot,
            "hot_standby": "on",
            "recovery_target_timeline": "latest",
            # The standby that the primary waits for does not follow this server: commits
            # would hang after a promotion.
            "synchronous_standby_names": "",
        }
    )
    cluster.write(STANDBY_SIGNAL, "")


def allow_in_pg_hba(cluster: Cluster, role: str, allowed: Sequence[hba.Network]) -> None:
    """Insert lines, with passwords, for the replication role and allowed networks.

    `promote --pgdata` logs in as that role through the socket, to ask how much the standby
    has received.
    """
    file = cluster.path / "pg_hba.conf"
    lines = [f"local replication {hba.quote(role)} scram-sha-256"]
    tls = cluster.setting("ssl") == "on"
    for network in allowed:
        lines += [
            hba.password_line("replication", role, network, tls=tls),
            hba.password_line("all", "all", network, tls=tls),
        ]
    before = ""
    if file.exists():
        before = file.read_text(encoding="utf-8")
    else:  # a data folder of Debian
        lines += ["local all all scram-sha-256"]
        lines += [f"host all all {loopback} scram-sha-256" for loopback in ("127.0.0.1/32", "::1/128")]
    new = [line for line in lines if line not in before.splitlines()]
    cluster.write(file.name, "".join(f"{line}\n" for line in new) + before)


# After the start


def wait_until_streaming(source: Upstream, slot: str, cluster: Cluster) -> None:
    """Wait until the slot on the primary is in use.

    Raises:
        PgOrthancError: It is not within a minute; the message has the last error of the
            standby.
    """
    deadline = time.monotonic() + STREAMING_TIMEOUT_S
    while not upstream.is_streaming(source, slot):
        if time.monotonic() > deadline or cluster.pid() is None:
            raise PgOrthancError(
                f"the standby in {cluster.path} does not stream from {source.endpoint}: {cluster.last_log_error()}",
                f"repair that, and start it again: {cluster.command_line('restart')}; "
                "pgorthanc replication status shows when it streams",
            )
        time.sleep(0.2)
