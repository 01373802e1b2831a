"""A PostgreSQL data folder on this machine: control file, settings, files, server."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.processes import is_postgres_of, is_server_process
from pgorthanc_cli.server.programs import Account, Completed, Programs, last_error_line
from pgorthanc_cli.server.wal import parse_lsn

STANDBY_SIGNAL = "standby.signal"
# How to reach, from this machine, a server that listens on all addresses.
LOOPBACK = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
RESTORE = "restore the folder from a backup, or name a new one"

_AUTO_CONFIGURATION = "postgresql.auto.conf"
# A start replays up to max_wal_size; a stop writes all dirty buffers.
_TIMEOUT_S = 600.0
# sun_path has 104 bytes (108 on Linux), one of them for the final NUL.
_SOCKET_PATH_BYTES = 103
# Two WAL segments: with less, PostgreSQL stops.
_FULL_DISK_BYTES = 32_000_000
_NO_PID = 2**31 - 1  # beyond every pid_max
_PARAMETERS = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}


@dataclass(frozen=True)
class Control:
    """The control file of a data folder.

    Attributes:
        state: Such as `in production`, `in archive recovery`, `shut down`.
        checkpoint: LSN of the last checkpoint's record, in bytes.
        rewindable: Whether pg_rewind can work here: data checksums, or wal_log_hints.
        segment_bytes: Size of a WAL segment.
        page_bytes: Size of a page in it.
        settings: Those that a standby must set at least as high as its primary.
    """

    system_identifier: str
    state: str
    timeline: int
    checkpoint: int
    rewindable: bool
    checksums: bool
    segment_bytes: int
    page_bytes: int
    settings: Mapping[str, str]

    @property
    def is_standby(self) -> bool:
        """Return whether the server was a standby when it last wrote the file."""
        return "recovery" in self.state and self.state != "in crash recovery"


class Cluster:
    """A data folder and the account that runs its server; see `private.open_cluster`."""

    def __init__(self, path: Path, account: Account) -> None:
        self.path = path
        self.account = account

    @cached_property
    def major(self) -> int:
        """Return the major version of PostgreSQL that created the folder."""
        file = self.path / "PG_VERSION"
        content = file.read_text(errors="replace").strip()
        major = content.partition(".")[0]
        if not major.isdecimal():
            raise PgOrthancError(f"{file} holds {content!r}, not a version of PostgreSQL", RESTORE)
        return int(major)

    @cached_property
    def programs(self) -> Programs:
        """Return the programs of that version, where the account can run them."""
        return programs.usable_by(self.account, programs.find(self.major))

    def run(self, name: str, *arguments: str) -> Completed:
        """Run a program; `.` and `./NAME` stand for the folder and something in it.

        Raises:
            PgOrthancError: It failed; the message has its last error.
        """
        completed = programs.run(self.programs, name, arguments, self.path, self.account)
        if completed.returncode:
            reason = last_error_line(completed.stderr or completed.stdout)
            raise PgOrthancError(f"{name} on {self.path} failed: {reason}")
        return completed

    def control(self) -> Control:
        """Read the control file, which is as old as the last checkpoint."""
        fields = {}  # in English: `programs` sets the locale
        for line in self.run("pg_controldata", "-D", ".").stdout.splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
        checksums = fields["Data page checksum version"] != "0"
        return Control(
            system_identifier=fields["Database system identifier"],
            state=fields["Database cluster state"],
            timeline=int(fields["Latest checkpoint's TimeLineID"]),
            checkpoint=parse_lsn(fields["Latest checkpoint location"]),
            rewindable=checksums or fields["wal_log_hints setting"] == "on",
            checksums=checksums,
            segment_bytes=int(fields["Bytes per WAL segment"]),
            page_bytes=int(fields["WAL block size"]),
            settings={name: fields[key] for name, key in _PARAMETERS.items()},
        )

    @property
    def starts_as_standby(self) -> bool:
        """Return whether the server is a standby, or will be from its next start on."""
        return (self.path / STANDBY_SIGNAL).exists()

    # Configuration

    def setting(self, name: str) -> str:
        """Return the value that the configuration files give to a setting."""
        return self.run("postgres", "-C", name, "-D", ".", *self._config_options()).stdout.strip()

    def set(self, values: Mapping[str, str]) -> None:
        """Write settings as ALTER SYSTEM does, for the next start or reload."""
        file = self.path / _AUTO_CONFIGURATION
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        others = [s for s in lines if re.split(r"[\s=]", s.strip(), maxsplit=1)[0] not in values]
        new = [f"{name} = {_quoted(value)}" for name, value in values.items()]
        self.write(_AUTO_CONFIGURATION, "\n".join([*others, *new]) + "\n")

    @cached_property
    def external_config_file(self) -> str:
        """Return the configuration file outside the folder, as with Debian; else empty.

        Known from the last command line, and read once, because pg_rewind and a copy
        remove it.
        """
        if (self.path / "postgresql.conf").exists():
            return ""
        last_command = self.path / "postmaster.opts"
        options = last_command.read_text() if last_command.exists() else ""
        match = re.search(r'"config_file=([^"]+)"', options)
        return match[1] if match else ""

    def _config_options(self) -> list[str]:
        file = self.external_config_file
        return ["-c", f"config_file={file}"] if file else []

    def listen_addresses(self) -> str:
        """Return the TCP addresses of the server, as its settings write them."""
        return self.setting("listen_addresses")

    # Files

    def write(self, name: str, content: str) -> Path:
        """Create or replace a file (mode 0600), whole or not at all, and sync it."""
        with self._new_file(content) as temporary:
            os.replace(temporary, self.path / name)
        return self.path / name

    def write_new(self, name: str, content: str) -> bool:
        """Create a file (mode 0600); return False if the name exists."""
        with self._new_file(content) as temporary:
            try:  # a link, because a rename would replace the file
                os.link(temporary, self.path / name, follow_symlinks=False)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _new_file(self, content: str) -> Iterator[str]:
        # A prefix of our own: `PrivateCluster` accepts a folder with such a leftover of a
        # crash.
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
        # The name, too, survives a crash of the machine.
        self._sync_folder()

    def _sync_folder(self) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def invalidate_stale_pids(self) -> None:
        """Replace pids in PostgreSQL's pid files that are not those of its own processes.

        After a crash of the machine or container they may be those of other programs, and
        PostgreSQL would refuse to start.
        """
        if not Path("/proc/self/cwd").exists():
            return
        # No file is removed: PostgreSQL recognizes survivors of an earlier server by the
        # shared memory that postmaster.pid names. Only the pid becomes one that no
        # process has.
        for file in [self.path / "postmaster.pid", *self.path.glob(".s.PGSQL.*.lock")]:
            if not file.exists():
                continue
            pid, _, rest = file.read_text().partition("\n")
            # Of another account: PostgreSQL itself ignores it.
            with suppress(PermissionError):
                if not is_server_process(pid, self.path):
                    self.write(file.name, f"{_NO_PID}\n{rest}")

    # Server

    def pid(self) -> int | None:
        """Return the process of the server, None if it does not run."""
        try:
            pid = (self.path / "postmaster.pid").read_text().partition("\n")[0]
        except FileNotFoundError:
            return None
        if Path("/proc/self/cwd").exists():
            try:
                return int(pid) if is_server_process(pid, self.path) else None
            except PermissionError:
                # Root in a container may not read the link.
                return int(pid) if is_postgres_of(pid, self.account.uid) else None
        arguments = ["status", "-D", "."]
        status = programs.run(self.programs, "pg_ctl", arguments, self.path, self.account)
        return int(pid) if status.returncode == 0 else None

    def start(self) -> None:
        """Start the server, and wait until it accepts connections.

        Raises:
            PgOrthancError: It does not start; the message has the end of its log.
        """
        self.invalidate_stale_pids()
        reason = self._run_pg_ctl_start(self._log, " ".join(self._config_options()), _TIMEOUT_S)
        if reason is not None:
            hint = space_hint(self.path) or f"its log: {self._log}"
            raise PgOrthancError(f"the server in {self.path} does not start: {reason}", hint)

    @property
    def _log(self) -> Path:
        log = self.path / "log"
        return log / "pgorthanc.log" if log.is_dir() else log

    def command_line(self, action: str) -> str:
        """Return the command to paste that does `start`, `restart` or `stop`.

        It names the folder of pg_ctl, which Debian keeps out of PATH, and runs as the account
        of the server: pg_ctl refuses to run as root.
        """
        words = [*self.account.prefix, str(self.programs.bin / "pg_ctl"), "-D", str(self.path)]
        if action != "stop":
            words += ["-l", str(self._log)]
            if options := self._config_options():
                words += ["-o", " ".join(options)]
        return shlex.join([*words, action])

    def _run_pg_ctl_start(self, log: Path, options: str, timeout_s: float) -> str | None:
        """Start it; return None if it accepts connections, else the last log error."""
        # Only what this start writes: earlier errors are not its reason.
        offset = log.stat().st_size if log.exists() else 0
        arguments = ["start", "-w", "-t", f"{timeout_s:.0f}", "-D", "."]
        arguments += ["-l", f"./{log.relative_to(self.path)}"]
        if options:
            arguments += ["-o", options]
        completed = programs.run(self.programs, "pg_ctl", arguments, self.path, self.account)
        if completed.returncode == 0:
            return None
        with suppress(FileNotFoundError), open(log, "rb") as file:
            file.seek(offset)
            return last_error_line(file.read().decode(errors="replace") or completed.stderr)
        return last_error_line(completed.stderr)

    def stop(self, wait_s: float = _TIMEOUT_S) -> None:
        """Stop the server if it runs, and wait until it has ended.

        PostgreSQL's "fast" shutdown sends the rest of the WAL to the standbys that are
        connected.
        """
        if self.pid() is not None:
            seconds = str(max(int(wait_s), 1))
            self.run("pg_ctl", "stop", "-m", "fast", "-w", "-t", seconds, "-D", ".")

    def endpoint(self) -> tuple[int, str]:
        """Return the port and the folder of the socket of the running server."""
        # PostgreSQL, "src/include/utils/pidfile.h": pid, folder, start time, port, folder
        # of the socket, …
        lines = (self.path / "postmaster.pid").read_text().splitlines()
        return int(lines[3]), str(self.path / lines[4])

    def last_log_error(self) -> str:
        """Return the last error in the log of the server."""
        logs = [path for path in self.path.glob("log*") if path.is_file()]
        if not logs:
            return "it has no log in its folder"
        newest = max(logs, key=lambda path: path.stat().st_mtime)
        return last_error_line(newest.read_text(errors="replace"))


# Files of a folder whose account or version may not be at hand


def is_too_long_for_socket(folder: str | Path) -> bool:
    """Return whether the path of a socket in the folder would be too long."""
    return len(os.fsencode(Path(folder) / ".s.PGSQL.65535")) > _SOCKET_PATH_BYTES


def system_identifier(folder: Path) -> str:
    """Return the system identifier from the control file; empty if it cannot be read."""
    with suppress(OSError), open(folder / "global" / "pg_control", "rb") as file:
        # The file begins with the system identifier, in the byte order of the machine.
        return str(int.from_bytes(file.read(8), sys.byteorder))
    return ""


def is_standby_folder(folder: Path) -> bool:
    """Return whether the server is in recovery, or will be from its next start on."""
    return (folder / STANDBY_SIGNAL).exists() or (folder / "recovery.signal").exists()


def space_hint(path: Path) -> str | None:
    """Return a hint if the disk of a file or folder, which may not exist yet, is full."""
    with suppress(OSError):
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(nearest).free
        if free < _FULL_DISK_BYTES:
            return f"the disk is full: {free / 1e6:.1f} MB free in {nearest}; make room, then run it again"
    return None


def remove(entry: Path) -> None:
    """Remove a file, a symlink or a folder with its contents."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn failures of the file system into errors that name the folder."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        raise PgOrthancError(f"cannot use the folder {path}: {reason}", space_hint(path)) from error


def pgpass_line(host: str, port: str, database: str, role: str, password: str) -> str:
    """Return a line of a password file; `*` stands for any host, port or database."""
    fields = (host, port, database, role, password)
    return ":".join(field.replace("\\", r"\\").replace(":", r"\:") for field in fields) + "\n"


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
