"""One folder with a private PostgreSQL: its locks, how it is made, and how its server starts and stops.

The folder is PostgreSQL's data folder; our own files in it are called `pgorthanc.*`. Who uses it is known from
locks that the kernel drops when a process ends, however it ends (flock), and whether its server lives is known
from its socket: files that claim either are not believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import programs

SUPERUSER = "pgorthanc"  # not postgres: sites call Orthanc's own role that, and it need not be a superuser
DEFAULT_PORT = 5432  # only names the socket while TCP is closed

_LOCK, _USERS, _SETTINGS = "pgorthanc.lock", "pgorthanc.users", "pgorthanc.json"
_MAKING, _MADE = "pgorthanc.new.", "pgorthanc.ready"
_LOG_MAX_BYTES = 10_000_000
_FULL_DISK_BYTES = 32_000_000  # two WAL segments: with less, PostgreSQL stops
_TIMEOUT_S = 300  # a start after a crash replays up to max_wal_size; a stop writes all dirty buffers
_SURVIVORS_S = (
    10  # what a killed server, or a killed pg_ctl, left behind ends or becomes ready within that time
)
_SOCKET_PATH_BYTES = 103  # sun_path has 104 bytes (108 on Linux), one of them for the final NUL
_NO_PID = 2**31 - 1  # beyond every pid_max
_RESTORE = "restore the folder from a backup, or name a new one"

# The first match wins. Who may enter the folder (mode 0700) could read a password in it, and the data, as well: so
# the socket in it asks for none. TCP asks for one, and the superuser has none.
_HBA = """\
local all all trust
host all all all scram-sha-256
"""
# STATEMENT and DETAIL lines would carry patient data into the log. 200: three Orthancs of 50 connections each.
_CONFIGURATION = """
# Set by pgorthanc when it made this folder. Changes here, and those of ALTER SYSTEM, are kept.
max_connections = 200
password_encryption = 'scram-sha-256'
unix_socket_permissions = 0700
log_min_error_statement = panic
log_error_verbosity = terse
jit = off
"""


@dataclass(frozen=True)
class Settings:
    """What a folder remembers.

    Attributes:
        port: The TCP port; None before the first `server start`.
        listen: The TCP address, in use while `keep` is set.
        keep: Whether the server stays up when nobody is attached.
    """

    database: str = "orthanc"
    role: str = "orthanc"
    port: int | None = None
    listen: str = "127.0.0.1"
    keep: bool = False


class DataFolder:
    """A folder and the account that runs its server. Whatever changes it runs under `exclusive()`."""

    def __init__(self, directory: Path) -> None:
        """Look at a folder; nothing is written.

        Raises:
            PgOrthancError: It holds something else, or belongs to somebody else.
        """
        self.path = Path(os.path.realpath(directory))
        with self.translated():
            self._refuse_others()
            self.account = self._account()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Failures of the file system become errors that name the folder."""
        try:
            yield
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            raise PgOrthancError(f"cannot use the folder {self.path}: {what}", self._space_hint()) from error

    # Whose folder it is

    def exists(self) -> bool:
        """Whether a server was completely made here."""
        return (self.path / "PG_VERSION").exists() and not (self.path / _MADE).exists()

    def is_standby(self) -> bool:
        """Whether its server takes no writes, because it follows another one (`replication rejoin`)."""
        return (self.path / "standby.signal").exists()

    def major(self) -> int:
        """The major version of PostgreSQL that the data belong to."""
        content = (self.path / "PG_VERSION").read_text(errors="replace").strip()
        major = content.partition(".")[0]
        if not major.isdecimal():
            raise PgOrthancError(
                f"{self.path / 'PG_VERSION'} holds {content!r}, not a version of PostgreSQL",
                _RESTORE,
            )
        return int(major)

    def _refuse_others(self) -> None:
        if not self.path.exists() or (self.path / _LOCK).exists():
            return
        hint = "name an empty folder or a new one"
        if not self.path.is_dir():
            raise PgOrthancError(f"{self.path} is not a folder", hint)
        if (self.path / "PG_VERSION").exists():
            version = (self.path / "PG_VERSION").read_text(errors="replace").strip()
            raise PgOrthancError(
                f"{self.path} holds data of PostgreSQL {version} that pgorthanc did not make",
                f"{hint}; or start that server as before, and connect to it with --uri",
            )
        self._refuse_content(hint)

    def _refuse_content(self, hint: str) -> None:
        foreign = sorted(
            n for n in os.listdir(self.path) if not n.startswith("pgorthanc.") and n != "lost+found"
        )
        if foreign:
            shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
            raise PgOrthancError(
                f"{self.path} holds other things ({shown}), and nothing in it was touched", hint
            )

    def _account(self) -> programs.Account:
        """The owner; root gives an empty folder of its own to a service account."""
        me = os.geteuid()
        status = self.path.stat() if self.path.exists() else None
        owner = (
            programs.Account(status.st_uid, status.st_gid) if status else programs.Account(me, os.getegid())
        )
        if owner.uid == 0:
            owner = programs.service_account()
        version = self.path / "PG_VERSION"
        if me not in (0, owner.uid) or (version.exists() and version.stat().st_uid != owner.uid):
            found = programs.Account(version.stat().st_uid if version.exists() else owner.uid, owner.gid)
            raise PgOrthancError(
                f"the data in {self.path} belong to {found}, but would be used by {owner if me == 0 else me}",
                f"run pgorthanc as {found}, or give that folder and all in it to one account: chown -R",
            )
        return owner

    # Locks

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Alone with the folder; others wait. Makes the folder if it is missing."""
        with self.translated():
            self._prepare()
            lock = self._open_lock(_LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.translated():
                yield
        finally:
            os.close(lock)

    def _prepare(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.path / _LOCK).exists():
            self.account.own(self.path)
            self.path.chmod(0o700)

    def _open_lock(self, name: str) -> int:
        handle = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.account.own(handle)
        return handle

    def join(self) -> int:
        """Become a user; call under `exclusive()`. The lock lasts until its descriptor closes, with the process."""
        user = self._open_lock(_USERS)
        fcntl.flock(user, fcntl.LOCK_SH)
        return user

    def is_last(self, user: int) -> bool:
        """Whether nobody else is a user; call under `exclusive()`."""
        try:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    # Our files

    def settings(self) -> Settings:
        """What the folder remembers, or the defaults."""
        file = self.path / _SETTINGS
        try:
            return Settings(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Settings()
        except (ValueError, TypeError) as error:
            raise PgOrthancError(
                f"{file} is damaged: {error}", "remove it, and run: pgorthanc server start"
            ) from error

    def save(self, settings: Settings) -> None:
        """Remember."""
        self.write(_SETTINGS, json.dumps(asdict(settings), indent=2) + "\n")

    def write(self, name: str, content: str) -> Path:
        """Write one of our files (mode 0600), at once or not at all."""
        final = self.path / name
        handle, temporary = tempfile.mkstemp(prefix="pgorthanc.", dir=self.path)
        try:
            self.account.own(handle)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, final)
        except BaseException:
            os.unlink(temporary)
            raise
        return final

    # The server

    def host(self) -> str:
        """The folder as libpq's host; a link with a short name where its own is too long, or a list for libpq."""
        longest = self.path / ".s.PGSQL.65535"
        if len(os.fsencode(longest)) <= _SOCKET_PATH_BYTES and "," not in str(self.path):
            return str(self.path)
        link = Path(tempfile.gettempdir()) / self._link_name()
        if len(os.fsencode(link / longest.name)) > _SOCKET_PATH_BYTES:
            link = Path("/tmp") / self._link_name()  # noqa: S108 - checked below
        with contextlib.suppress(FileExistsError):
            link.symlink_to(self.path)
        if link.lstat().st_uid != os.geteuid() or not link.is_symlink() or link.readlink() != self.path:
            raise PgOrthancError(
                f"{link} is in the way: it was not made by this account", "remove it, or set TMPDIR"
            )
        return str(link)

    def _link_name(self) -> str:
        return f"pgorthanc-{os.geteuid()}-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]}"

    def target(self, *, superuser: bool = False) -> db.Target:
        """The folder's own database with its own role, through the socket; or the superuser."""
        settings = self.settings()
        user, database = (SUPERUSER, "postgres") if superuser else (settings.role, settings.database)
        # An empty hostaddr keeps PGHOSTADDR out, which would lead to another server.
        dsn = make_dsn(
            host=self.host(), hostaddr="", port=settings.port or DEFAULT_PORT, user=user, dbname=database
        )
        return db.Target(dsn)

    def pid(self) -> int | None:
        """The server that listens on the folder's socket; None when there is none.

        Linux tells who listens, which holds even where a pid file was left behind by a machine that crashed.
        """
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"{self.host()}/.s.PGSQL.{self.settings().port or DEFAULT_PORT}")
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            if sys.platform == "linux":
                credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                return int(struct.unpack("3i", credentials)[0])
        return int((self.path / "postmaster.pid").read_text().split("\n")[0])

    def ensure_running(self) -> None:
        """Make the folder's server if there is none yet, and start it if it does not run."""
        if self.pid() is not None:
            return
        found = programs.find(self.major() if self.exists() else None)
        found = programs.usable_by(self.account, found)
        if not self.exists():
            self._create(found)
        self._start(found)

    def halt(self, wait_s: float = _TIMEOUT_S) -> None:
        """Stop the server (clients are disconnected, transactions rolled back) and wait until it is gone.

        Raises:
            PgOrthancError: It runs in another container, or does not end.
        """
        pid = self.pid()
        if pid == 0:
            raise PgOrthancError(f"the server in {self.path} runs in another container", "stop it from there")
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)  # PostgreSQL's "fast" shutdown
            self._wait_until_gone(pid, wait_s)
        if self.host() != str(self.path):
            Path(self.host()).unlink(missing_ok=True)

    def _wait_until_gone(self, pid: int, wait_s: float) -> None:
        """A server removes its pid file last; one that was killed leaves it, but listens no more.

        Its process, too, has to end: else the file system could not be unmounted yet.
        """
        deadline = time.monotonic() + wait_s
        file = self.path / "postmaster.pid"
        while (file.exists() and self.pid() is not None) or works_in(str(pid), self.path):
            if time.monotonic() > deadline:
                raise PgOrthancError(f"the server (pid {pid}) does not stop", f"its log: {self.path / 'log'}")
            time.sleep(0.01)

    # Making it

    def _create(self, found: programs.Programs) -> None:
        """Make the data beside their place, then move them there; a crash anywhere is repaired by the next call."""
        made = self.path / _MADE
        if not made.exists():
            self._refuse_content(_RESTORE)
            for remains in self.path.glob(f"{_MAKING}*"):
                shutil.rmtree(remains, ignore_errors=True)
            # A new name every time: the initdb of a caller that was killed may still be writing.
            making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self.path))
            self.account.own(making)
            self._initdb(found, making)
            making.rename(made)
        for name in sorted(os.listdir(made), key=lambda name: name == "PG_VERSION"):
            (made / name).rename(self.path / name)
        self._sync()
        made.rmdir()
        self._sync()

    def _initdb(self, found: programs.Programs, making: Path) -> None:
        result = self._run_initdb(found, making.name, "C.UTF-8")
        if result.returncode and "locale" in result.stderr:  # a C library without C.UTF-8
            result = self._run_initdb(found, making.name, "C")
        if result.returncode:
            shutil.rmtree(making, ignore_errors=True)
            raise PgOrthancError(
                f"cannot make a server in {self.path}: {why_it_failed(result.stderr)}", self._space_hint()
            )
        for name, mode, content in (("pg_hba.conf", "w", _HBA), ("postgresql.conf", "a", _CONFIGURATION)):
            with open(making / name, mode, encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def _run_initdb(self, found: programs.Programs, name: str, ctype: str) -> programs.Completed:
        """Text sorts by code point (C), which no library update changes; upper and lower know all of Unicode."""
        options = [
            "--username",
            SUPERUSER,
            "--encoding=UTF8",
            "--auth=trust",
            "--locale=C",
            f"--lc-ctype={ctype}",
        ]
        if found.version >= (17, 0):
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return programs.run(
            found, "initdb", lambda path: ["-D", f"{path}/{name}", *options], self.path, self.account
        )

    def _sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    # Starting it

    def _start(self, found: programs.Programs) -> None:
        deadline = time.monotonic() + _SURVIVORS_S
        while True:
            disown_pid_files(self.path, self.write)
            reason = self._try_start(found)
            if reason is None or self.pid() is not None:
                return
            survivors = "shared memory block" in reason or "postmaster.pid" in reason
            if not survivors or time.monotonic() > deadline:
                raise PgOrthancError(
                    f"the server in {self.path} does not start: {reason}", self._start_hint()
                )
            time.sleep(0.1)

    def _try_start(self, found: programs.Programs) -> str | None:
        """Start, and wait until connections are accepted; what PostgreSQL said when it failed, else None."""
        settings, log = self.settings(), self.path / "log"
        if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
            log.rename(self.path / "log.1")
        said_before = log.stat().st_size if log.exists() else 0
        listen = settings.listen if settings.keep else ""
        # The socket lies in the folder by the relative name: no length and no character of its path can hurt.
        options = f"-c unix_socket_directories=. -c listen_addresses={listen} -c port={settings.port or DEFAULT_PORT}"
        result = programs.run(
            found,
            "pg_ctl",
            lambda path: [
                "start",
                "-D",
                path,
                "-w",
                "-t",
                str(_TIMEOUT_S),
                "-l",
                f"{path}/log",
                "-o",
                options,
            ],
            self.path,
            self.account,
        )
        if result.returncode == 0:
            return None
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
            file.seek(said_before)
            return why_it_failed(file.read().decode(errors="replace") or result.stderr)
        return why_it_failed(result.stderr)

    def _start_hint(self) -> str:
        return self._space_hint() or f"its log: {self.path / 'log'}"

    def _space_hint(self) -> str | None:
        with contextlib.suppress(OSError):
            nearest = next(p for p in (self.path, *self.path.parents) if p.exists())
            free = shutil.disk_usage(nearest).free
            if free < _FULL_DISK_BYTES:
                return (
                    f"the disk is full: {free / 1e6:.1f} MB free in {nearest}; make room, then run it again"
                )
        return None


def disown_pid_files(folder: Path, write: Callable[[str, str], object]) -> None:
    """After a crash of the machine or container, the pids in the files may be those of other programs.

    PostgreSQL would then refuse to start. No file is removed, for PostgreSQL finds survivors of an earlier
    server by the shared memory that postmaster.pid names: only the pid becomes one that nobody has. `write` writes
    a file of the folder, by its name.
    """
    if not Path("/proc/self/cwd").exists():
        return
    for file in [folder / "postmaster.pid", *folder.glob(".s.PGSQL.*.lock")]:
        if not file.exists():
            continue
        pid, _, rest = file.read_text().partition("\n")
        with contextlib.suppress(PermissionError):  # of another account: PostgreSQL itself ignores it
            if not works_in(pid, folder):
                write(file.name, f"{_NO_PID}\n{rest}")


def works_in(pid: str, folder: Path) -> bool:
    """Whether a process has the folder as its current one, as all processes of its server do (Linux)."""
    try:
        return os.path.samefile(f"/proc/{int(pid)}/cwd", folder)
    except (FileNotFoundError, ValueError):
        return False


def why_it_failed(said: str) -> str:
    """The line that tells why a program of PostgreSQL gave up, without time and severity."""
    lines = [line for line in said.splitlines() if line.strip()]
    for mark in ("No space left on device", "PANIC:", "FATAL:", "error:", "could not"):
        for line in reversed(lines):
            if mark in line:
                return re.sub(r"^.*?(PANIC|FATAL|ERROR|LOG|error): +", "", line)
    return lines[-1] if lines else "it said nothing"
