"""The data folder of a PostgreSQL on this machine, whoever made it: its control file, settings, start and stop."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from psycopg2.extensions import make_dsn

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.replication.source import pgpass_line
from pgorthanc_cli.replication.walsender import parse_lsn
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.datafolder import DataFolder, disown_pid_files, why_it_failed, works_in

PASSFILE = "pgorthanc.replication.pgpass"
# The socket of a standby: nobody else enters its data folder, and pg_rewind, which cannot read a socket, passes over
# what is in here.
SOCKETS = "pg_stat_tmp"
STANDBY_SIGNAL = "standby.signal"
_AUTO = "postgresql.auto.conf"
_OURS = "pgorthanc.lock"
_TIMEOUT_S = "600"  # a start replays up to max_wal_size; a stop writes all dirty buffers
_LONGEST_SOCKET = 103  # bytes, as in datafolder
_FULL_DISK_BYTES = 32_000_000  # two WAL segments: with less, PostgreSQL stops


@dataclass(frozen=True)
class Control:
    """What the control file says; places in the log are numbers of bytes.

    Attributes:
        state: Such as `in production`, `in archive recovery`, `shut down`.
        checkpoint: Where the last checkpoint's record begins.
        rewindable: Whether pg_rewind can work here: data checksums, or wal_log_hints.
        settings: Those that a standby must have at least as high as its primary.
    """

    system_identifier: str
    state: str
    timeline: int
    checkpoint: int
    rewindable: bool
    checksums: bool
    settings: Mapping[str, str]

    @property
    def is_standby(self) -> bool:
        """Whether it was recovering when it was last seen."""
        return "recovery" in self.state and self.state != "in crash recovery"


_SETTINGS = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}


class Cluster:
    """A data folder that exists."""

    def __init__(self, directory: Path) -> None:
        """Look at a folder; nothing is written.

        Raises:
            PgOrthancError: It is no data folder, or belongs to somebody else, or its version is not installed.
        """
        self.path = Path(os.path.realpath(directory))
        version = self.path / "PG_VERSION"
        try:
            owner = version.stat()
            self.major = int(version.read_text().strip().partition(".")[0])
        except (OSError, ValueError):
            raise PgOrthancError(
                f"{self.path} is no data folder of PostgreSQL",
                "name the folder with the file PG_VERSION; the server tells it: SHOW data_directory",
            ) from None
        self.account = programs.Account(owner.st_uid, owner.st_gid)
        if os.geteuid() not in (0, owner.st_uid):
            raise PgOrthancError(
                f"the folder {self.path} belongs to {self.account}", f"run pgorthanc as {self.account}"
            )
        self.programs = programs.usable_by(self.account, programs.find(self.major))

    @property
    def is_ours(self) -> bool:
        """Whether `pgorthanc server` made it, and keeps its port and address beside PostgreSQL's own files."""
        return (self.path / _OURS).exists()

    def control(self) -> Control:
        """The control file; of a running server it is as old as the last checkpoint."""
        said = self.run("pg_controldata", "-D", ".").stdout
        fields = {
            key.strip(): value.strip() for key, _, value in (s.partition(":") for s in said.splitlines())
        }
        checksums = fields["Data page checksum version"] != "0"
        return Control(
            system_identifier=fields["Database system identifier"],
            state=fields["Database cluster state"],
            timeline=int(fields["Latest checkpoint's TimeLineID"]),
            checkpoint=parse_lsn(fields["Latest checkpoint location"]),
            rewindable=checksums or fields["wal_log_hints setting"] == "on",
            checksums=checksums,
            settings={name: fields[key] for name, key in _SETTINGS.items()},
        )

    def setting(self, name: str) -> str:
        """The value that the configuration files give to a setting."""
        return self.run("postgres", "-C", name, "-D", ".", *self._config()).stdout.strip()

    def run(self, name: str, *arguments: str) -> programs.Completed:
        """Run a program of its version; `.` and what begins with `./` stand for the folder, and what is in it.

        Raises:
            PgOrthancError: It failed; the message has its last words.
        """
        done = programs.run(
            self.programs,
            name,
            lambda path: [_within(path, word) for word in arguments],
            self.path,
            self.account,
        )
        if done.returncode:
            raise PgOrthancError(f"{name} on {self.path} failed: {why_it_failed(done.stderr or done.stdout)}")
        return done

    # Its files

    def write(self, name: str, content: str) -> Path:
        """Write a file (mode 0600), at once or not at all, and durably."""
        with self._new_file(content) as temporary:
            os.replace(temporary, self.path / name)
        return self.path / name

    def write_new(self, name: str, content: str) -> bool:
        """The same; False, and nothing is changed, if there is one of that name."""
        with self._new_file(content) as temporary:
            try:
                os.link(temporary, self.path / name, follow_symlinks=False)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _new_file(self, content: str) -> Iterator[str]:
        handle, temporary = tempfile.mkstemp(prefix="pgorthanc.", dir=self.path)
        try:
            self.account.own(handle)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def set(self, values: Mapping[str, str]) -> None:
        """Write settings where ALTER SYSTEM writes them; before a start, or a reload."""
        file = self.path / _AUTO
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if re.split(r"[\s=]", line.strip(), maxsplit=1)[0] not in values]
        added = [f"{name} = {_quoted(value)}" for name, value in values.items()]
        self.write(_AUTO, "\n".join([*kept, *added]) + "\n")

    def follow(self, parameters: Mapping[str, str], password: str, *, slot: str, name: str) -> None:
        """Make it a standby of that server from its next start on; the password goes to a file of its own."""
        given = dict(parameters)
        if password:
            self.write(PASSFILE, pgpass_line(given.get("user", ""), password))
            given["passfile"] = PASSFILE  # the server works in its folder
        self.set(
            {
                "primary_conninfo": make_dsn(**{**_ALIVE, **given, "application_name": name}),
                "primary_slot_name": slot,
                "hot_standby": "on",
                "recovery_target_timeline": "latest",
                # What the primary waits for is no standby of this server: its commits would hang after a promotion.
                "synchronous_standby_names": "",
            }
        )
        self.write(STANDBY_SIGNAL, "")

    def fence(self, wait_s: float) -> None:
        """Stop it; whoever starts it again gets a standby that takes no writes, never a second primary."""
        self.write(STANDBY_SIGNAL, "")
        if self.is_ours:
            folder = DataFolder(self.path)
            with folder.exclusive():
                folder.save(replace(folder.settings(), keep=False))
        if self.pid() is not None:
            self.stop(wait_s)

    @property
    def is_fenced(self) -> bool:
        """Whether its next start will be that of a standby."""
        return (self.path / STANDBY_SIGNAL).exists()

    # Its server

    def pid(self) -> int | None:
        """The process of the server, None when there is none."""
        try:
            pid = (self.path / "postmaster.pid").read_text().partition("\n")[0]
        except FileNotFoundError:
            return None
        if Path("/proc/self/cwd").exists():
            try:
                return int(pid) if works_in(pid, self.path) else None
            except PermissionError:  # root in a container may not see it; another account's is not the server
                return int(pid) if _is_server_of(pid, self.account.uid) else None
        done = programs.run(
            self.programs, "pg_ctl", lambda path: ["status", "-D", path], self.path, self.account
        )
        return int(pid) if done.returncode == 0 else None

    def start(self) -> None:
        """Start, and wait until it accepts connections.

        Raises:
            PgOrthancError: It does not start; the message has the end of its log.
        """
        if self.is_ours:
            folder = DataFolder(self.path)
            with folder.exclusive():
                settings = folder.settings()
                folder.save(replace(settings, keep=settings.port is not None))
                folder.ensure_running()
            return
        self.disown_pid_files()
        log = self.path / "log"
        if log.is_dir():
            log = log / "pgorthanc.log"
        said_before = log.stat().st_size if log.exists() else 0
        options = " ".join(self._config())
        words = ["start", "-w", "-t", _TIMEOUT_S, "-D", ".", "-l", f"./{log.relative_to(self.path)}"]
        try:
            self.run("pg_ctl", *words, *(["-o", options] if options else []))
        except PgOrthancError:
            with open(log, "rb") as file:
                file.seek(said_before)
                said = why_it_failed(file.read().decode(errors="replace"))
            raise PgOrthancError(
                f"the server in {self.path} does not start: {said}",
                space_hint(self.path) or f"its log: {log}",
            ) from None

    def disown_pid_files(self) -> None:
        """Let no leftover of a crash keep PostgreSQL's programs from working here."""
        disown_pid_files(self.path, self.write)

    def last_words(self) -> str:
        """The last complaint in its log."""
        logs = sorted((p for p in self.path.glob("log*") if p.is_file()), key=lambda p: p.stat().st_mtime)
        return why_it_failed(logs[-1].read_text(errors="replace")) if logs else "it has no log in its folder"

    def stop(self, wait_s: float = float(_TIMEOUT_S)) -> None:
        """Stop, and wait until it is gone; its standbys get all of its log first, if they are connected."""
        if self.is_ours:
            folder = DataFolder(self.path)
            with folder.exclusive():
                folder.halt(wait_s)
            return
        self.run("pg_ctl", "stop", "-m", "fast", "-w", "-t", str(max(int(wait_s), 1)), "-D", ".")

    def local(self, user: str, passfile: str = "") -> str:
        """A DSN to it through its socket."""
        port, folder = self.endpoint()
        given = {"passfile": passfile} if passfile else {}
        return make_dsn(host=folder, hostaddr="", port=port, user=user, dbname="postgres", **given)

    def listens(self) -> str:
        """The TCP addresses of the server, as its settings write them."""
        if self.is_ours:
            return DataFolder(self.path).settings().listen
        return self.setting("listen_addresses")

    def port(self) -> int:
        """The port of the running server."""
        return self.endpoint()[0]

    def endpoint(self) -> tuple[int, str]:
        """The port and the folder of the socket, from the server's pid file."""
        lines = (self.path / "postmaster.pid").read_text().splitlines()
        place = self.path / lines[4]
        longest = place / ".s.PGSQL.65535"
        if len(os.fsencode(longest)) > _LONGEST_SOCKET and self.is_ours:
            return int(lines[3]), DataFolder(self.path).host()
        return int(lines[3]), str(place)

    @cached_property
    def outside_configuration(self) -> str:
        """The configuration file that is not in the folder, as with Debian; empty if it is in it, or unknown.

        The last command line tells; read once, because pg_rewind and a copy remove it.
        """
        if (self.path / "postgresql.conf").exists():
            return ""
        last_command = self.path / "postmaster.opts"
        said = last_command.read_text() if last_command.exists() else ""
        found = re.search(r'"config_file=([^"]+)"', said)
        return found[1] if found else ""

    def _config(self) -> list[str]:
        outside = self.outside_configuration
        return ["-c", f"config_file={outside}"] if outside else []


# All servers of this machine


def running() -> Iterator[Path]:
    """The data folder of each server that runs on this machine, as far as this account may see it (Linux)."""
    seen = set()
    for entry in _server_processes():
        with suppress(OSError):
            folder = entry.joinpath("cwd").readlink()
            if folder not in seen and (folder / "PG_VERSION").exists():
                seen.add(folder)
                yield folder


def processes(folder: Path) -> list[int]:
    """The processes of the server of a folder, its children too, which may outlive it (Linux)."""
    found = []
    for entry in _server_processes():
        with suppress(OSError):
            if works_in(entry.name, folder):
                found.append(int(entry.name))
    return found


def _server_processes() -> Iterator[Path]:
    proc = Path("/proc")
    for entry in proc.iterdir() if proc.is_dir() else ():
        with suppress(OSError):
            if entry.name.isdecimal() and _is_postgres(entry):
                yield entry


def _is_postgres(entry: Path) -> bool:
    """By its name, and not because it is dead already and only waits for its parent."""
    name, _, rest = entry.joinpath("stat").read_text(errors="replace").partition("(")[2].rpartition(")")
    return name in ("postgres", "postmaster") and rest.split()[0] != "Z"


def _is_server_of(pid: str, uid: int) -> bool:
    with suppress(OSError):
        entry = Path("/proc") / pid
        return entry.stat().st_uid == uid and _is_postgres(entry)
    return False


def system_identifier(folder: Path) -> str:
    """The first eight bytes of the control file; empty if it cannot be read."""
    with suppress(OSError), open(folder / "global" / "pg_control", "rb") as file:
        return str(int.from_bytes(file.read(8), sys.byteorder))
    return ""


def is_standby_folder(folder: Path) -> bool:
    """Whether its server does not take writes, or will not when it starts."""
    return (folder / STANDBY_SIGNAL).exists() or (folder / "recovery.signal").exists()


def space_hint(path: Path) -> str | None:
    """What to do, if the disk is full."""
    free = shutil.disk_usage(path).free
    if free < _FULL_DISK_BYTES:
        return f"the disk is full: {free / 1e6:.1f} MB free in {path}; make room, then run it again"
    return None


# A firewall that drops a silent connection is noticed within a minute.
_ALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


def _within(path: str, word: str) -> str:
    if word == ".":
        return path
    return f"{path}/{word[2:]}" if word.startswith("./") else word


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
