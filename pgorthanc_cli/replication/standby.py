"""`replication standby`: a copy of a running primary that follows it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.replication import access, compare, source
from pgorthanc_cli.replication.cluster import SOCKETS, Cluster, space_hint
from pgorthanc_cli.replication.source import Source
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.datafolder import why_it_failed

Progress = Callable[[int, int], None]  # bytes that are done, bytes in all

_ENDS_WITHIN_S = 5.0  # a killed process, if the disk is slow
_PROGRESS = re.compile(r"^\s*(\d+)/(\d+) kB \(")
_OTHER_PROCESS = re.compile(
    r"child (?:process|thread) |background process |removing (?:contents of )?(?:data|WAL) dir"
)
_STREAMS_WITHIN_S = 60.0
_LONGEST_SOCKET = 103  # bytes, as in datafolder
_CONFIGURATION = """\
# Written by pgorthanc, because the primary keeps its configuration outside of its data folder.
password_encryption = 'scram-sha-256'
log_min_error_statement = panic
log_error_verbosity = terse
"""


@dataclass(frozen=True)
class Standby:
    """A standby that was made.

    Attributes:
        directory: Its data folder.
        version: Of PostgreSQL.
        listen: Its TCP address.
        port: Its TCP port.
        primary: Host and port of the server that it follows.
        slot: The slot there that keeps the WAL that it has not got yet.
        name: Its application_name, by which synchronous_standby_names may name it.
        system_identifier: The one of both servers.
        timeline: The one of both servers.
        verified: Whether each file of the copy was verified as it is on the disk (pg_verifybackup).
        checksums: Whether the primary has data checksums, and each page was verified, too.
        streaming: Whether it has begun to receive.
        index: Revision and counts of Orthanc's index on it; None if no database was named to compare.
        difference: In what they differ from the primary's; `none`, or `not compared` (and why).
        next: What is left to do.
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
    index: compare.Counts | None
    difference: str
    next: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What a standby is to be like.

    Attributes:
        slot: Its slot on the primary.
        name: Its application_name there; the slot's name if empty.
        listen: The TCP address, `127.0.0.1` at first.
        port: The TCP port.
        allow: Who else may log in with a password, beside the clients that the primary's pg_hba.conf names.
        feedback: Whether the primary keeps rows that long finds on the standby still see (hot_standby_feedback).
        start: Whether it is started; else a service manager does it.
    """

    slot: str = source.SLOT
    name: str = ""
    listen: str = "127.0.0.1"
    port: int = 5432
    allow: tuple[str, ...] = ()
    feedback: bool = False
    start: bool = True


def create(
    directory: Path,
    primary: db.Target,
    wanted: Wanted,
    *,
    database: db.Target | None = None,
    progress: Progress = lambda done, total: None,
) -> Standby:
    """Copy a primary into an empty folder, and let it follow.

    Args:
        directory: The folder, empty or to be made.
        primary: The replication login.
        wanted: What the standby is to be like.
        database: Orthanc's database on the primary, to compare what both hold.
        progress: Called with the bytes that are copied, and those in all.

    Raises:
        ConnectError: The primary does not let us in.
        UsageError: The folder holds something, or `primary` is a standby.
        PgOrthancError: The version is not installed, the slot is taken, the disk is full, the copy is damaged, or
            the standby does not start or stream. The folder is empty again if it was not completed.
    """
    path = _usable_folder(directory)
    networks = access.networks(wanted.allow)
    found = source.reach(primary)
    account = _account(path)
    usable = programs.usable_by(account, _programs(found))
    with source.slot(found, wanted.slot), _emptied_on_failure(path, account):
        verified = copy(found, path, account, usable, wanted.slot, progress)
        cluster = Cluster(path)
        control = cluster.control()
        _configure(cluster, found, wanted, networks)
    if wanted.start:
        cluster.start()
        wait_until_streaming(found, wanted.slot, cluster)
    index, difference = compared(cluster, database if wanted.start else None)
    return Standby(
        directory=str(path),
        version=".".join(map(str, usable.version)),
        listen=wanted.listen,
        port=wanted.port,
        primary=found.place,
        slot=wanted.slot,
        name=wanted.name or wanted.slot,
        system_identifier=control.system_identifier,
        timeline=control.timeline,
        verified=verified,
        checksums=control.checksums,
        streaming=wanted.start,
        index=index,
        difference=difference,
        next=tuple(_next(path, wanted)),
    )


def _usable_folder(directory: Path) -> Path:
    """The real path of a folder that a standby can be made in."""
    path = Path(os.path.realpath(directory))
    _refuse_content(path)
    if len(os.fsencode(path / SOCKETS / ".s.PGSQL.65535")) > _LONGEST_SOCKET:
        raise UsageError(f"the name of {path} is too long for a socket in it", "name a shorter folder")
    return path


def _refuse_content(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder", "name an empty folder or a new one")
    content = sorted(name for name in os.listdir(path) if name != "lost+found")
    if content:
        what = "a data folder of PostgreSQL" if "PG_VERSION" in content else ", ".join(content[:3])
        raise UsageError(
            f"{path} holds {what}, and a standby needs an empty folder; nothing in it was touched",
            "name an empty folder or a new one; a former primary comes back with: pgorthanc replication rejoin",
        )


def _account(path: Path) -> programs.Account:
    """Who runs the server: the owner of the folder; root never does."""
    if path.exists() and path.stat().st_uid != 0:
        status = path.stat()
        return programs.Account(status.st_uid, status.st_gid)
    if os.geteuid() == 0:
        return programs.service_account()
    return programs.Account(os.geteuid(), os.getegid())


def _programs(found: Source) -> programs.Programs:
    major = found.identity.major
    try:
        return programs.find(major)
    except PgOrthancError as error:
        raise PgOrthancError(
            f"the primary {found.place} is PostgreSQL {major}, and a standby needs the same: {error.message}",
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
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        if not existed:
            path.rmdir()
        raise


# The copy


def copy(
    found: Source,
    path: Path,
    account: programs.Account,
    usable: programs.Programs,
    slot: str,
    progress: Progress,
) -> bool:
    """Fill an empty folder with a base backup; whether each file was verified as it is on the disk.

    pg_basebackup verifies the checksums of the pages, pg_verifybackup (since 13) then the files and their WAL.

    Raises:
        PgOrthancError: One of them complains, or there is not enough space.
    """
    with source.conninfo_for(account, found.parameters, found.password) as conninfo:
        words = ["-d", conninfo, "-X", "stream", "-S", slot, "-c", "fast", "--progress", "--no-password"]
        with programs.started(
            usable, "pg_basebackup", lambda name: ["-D", name, *words], path, account
        ) as process:
            try:
                said = _follow(process.stderr or (), path, progress)
                process.wait()
            finally:
                if process.returncode != 0:
                    _end(process)
        if process.returncode:
            raise PgOrthancError(
                f"cannot copy {found.place}: {_why(said, process.returncode)}",
                space_hint(path)
                or f"see whether the server {found.place} and the network are up, then run the same command again; "
                "pgorthanc replication plan shows what the primary needs",
            )
    return _verified(path, account, usable)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill pg_basebackup and its child, which receives the WAL, and wait until neither writes to the folder."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()  # until it is reaped, the group exists
            time.sleep(0.01)


def _why(said: str, code: int) -> str:
    """The last complaint of pg_basebackup itself, not that its other process has ended."""
    own = "\n".join(line for line in said.splitlines() if not _OTHER_PROCESS.search(line))
    return why_it_failed(own or said) if said.strip() else f"pg_basebackup ended with {code} and said nothing"


def _verified(path: Path, account: programs.Account, usable: programs.Programs) -> bool:
    if usable.version < (13, 0):
        return False
    done = programs.run(usable, "pg_verifybackup", lambda name: ["-q", name], path, account)
    if done.returncode > 0:
        raise PgOrthancError(
            f"the copy in {path} is damaged: {why_it_failed(done.stderr)}", "look at the disk of this machine"
        )
    return done.returncode == 0  # else it has crashed, as that of one wheel does at every start


def _follow(lines: Iterable[str], path: Path, progress: Progress) -> str:
    """Tell the progress; what else pg_basebackup says. Gives up at once if the rest will not fit."""
    said = []
    for line in lines:
        found = _PROGRESS.match(line)
        if found is None:
            said.append(line)
            continue
        done, total = (int(number) * 1024 for number in found.groups())
        progress(done, max(done, total))
        free = shutil.disk_usage(path).free
        if total - done > free:
            raise PgOrthancError(
                f"the disk is too small: {(total - done) / 1e6:,.1f} MB are still to come, "
                f"{free / 1e6:,.1f} MB are free in {path}",
                "make room, or name a folder on another disk; nothing was left behind",
            )
    return "".join(said)


# Its configuration


def _configure(cluster: Cluster, found: Source, wanted: Wanted, networks: Sequence[access.Network]) -> None:
    for file in (*cluster.path.glob("pgorthanc.*"), cluster.path / "log", cluster.path / "log.1"):
        if file.is_file():  # those of the primary, where it is a server of ours
            file.unlink()
    if not (cluster.path / "postgresql.conf").exists():
        settings = "".join(f"{name} = {value}\n" for name, value in cluster.control().settings.items())
        cluster.write("postgresql.conf", _CONFIGURATION + settings)
        cluster.write("pg_ident.conf", "")
    cluster.set(
        {
            "port": str(wanted.port),
            "listen_addresses": wanted.listen,
            "unix_socket_directories": SOCKETS,
            "hot_standby_feedback": "on" if wanted.feedback else "off",
        }
    )
    cluster.follow(found.parameters, found.password, slot=wanted.slot, name=wanted.name or wanted.slot)
    admit(cluster, found.role, networks)


def admit(cluster: Cluster, role: str, networks: Sequence[access.Network]) -> None:
    """Lines for the replication role, and for who else is allowed; all of them ask for a password.

    Through the socket the role tells `promote` where the server stands. A folder of Debian has no such file.
    """
    file = cluster.path / "pg_hba.conf"
    lines = [f"local replication {access.quoted(role)} scram-sha-256"]
    tls = cluster.setting("ssl") == "on"
    for network in networks:
        lines += [
            access.line("replication", role, network, tls=tls),
            access.line("all", "all", network, tls=tls),
        ]
    if not file.exists():
        lines += ["local all all scram-sha-256"]
        lines += [f"host all all {loopback} scram-sha-256" for loopback in ("127.0.0.1/32", "::1/128")]
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    new = [line for line in lines if line not in before.splitlines()]
    cluster.write(file.name, "".join(f"{line}\n" for line in new) + before)


# What follows


def wait_until_streaming(found: Source, slot: str, cluster: Cluster) -> None:
    """Wait until the slot on the primary is in use.

    Raises:
        PgOrthancError: It is not within a minute; the message has the last words of the standby.
    """
    deadline = time.monotonic() + _STREAMS_WITHIN_S
    while not source.is_streaming(found, slot):
        if time.monotonic() > deadline or cluster.pid() is None:
            raise PgOrthancError(
                f"the standby in {cluster.path} does not stream from {found.place}: {cluster.last_words()}",
                "repair that, and start it again: pg_ctl -D FOLDER restart; "
                "pgorthanc replication status shows when it streams",
            )
        time.sleep(0.2)


def compared(cluster: Cluster, database: db.Target | None) -> tuple[compare.Counts | None, str]:
    """Orthanc's index on a running standby, and how it differs from the primary's."""
    if database is None:
        return None, compare.NOT
    try:
        return compare.compare(
            database, compare.at(database, access.reachable(cluster.listens()), cluster.port())
        )
    except (ConnectError, RevisionError) as error:
        return None, f"{compare.NOT}: {error.message}"


def _next(path: Path, wanted: Wanted) -> Iterator[str]:
    if wanted.start:
        yield "let it start with the machine: pgorthanc replication plan --print systemd"
    else:
        yield f"start it as the owner of the folder: pg_ctl -D {path} start"
    yield "watch it: pgorthanc replication status --nagios"
