"""The data folder of a private server: its users, its creation, its start and stop.

The folder is PostgreSQL's data folder; our own files in it are called `pgorthanc.*`. Who
uses it is known from locks that the kernel drops when a process ends, however it ends
(flock), and whether its server runs is known from its socket: a file that claims either
is not believed. Longer than other modules, because locks, creation and start of the one
class depend on each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.cluster import (
    RESTORE,
    Cluster,
    is_too_long_for_socket,
    space_hint,
    translated,
)
from pgorthanc_cli.server.processes import is_server_process, socket_peer
from pgorthanc_cli.server.programs import Account, Programs, last_error_line

# Not postgres: sites call Orthanc's own role that, and it need not be a superuser.
SUPERUSER = "pgorthanc"
DEFAULT_PORT = 5432  # only names the socket while TCP is closed
LOCK_FILE = "pgorthanc.lock"  # marks the folder of a private server

_USERS_FILE, _SETTINGS_FILE = "pgorthanc.users", "pgorthanc.json"
_NEW_DATA, _COMPLETE_DATA = "pgorthanc.new.", "pgorthanc.ready"
_LOG_MAX_BYTES = 10_000_000
# A start after a crash replays up to max_wal_size; a stop writes all dirty buffers.
_TIMEOUT_S = 300.0
# What a killed server or pg_ctl left behind ends within that time.
_SURVIVORS_S = 10.0

# The first match wins. Whoever may enter the folder (mode 0700) could also read a
# password in it, and the data: so the socket in it asks for none. TCP asks for one, and
# the superuser has none.
_HBA = """\
local all all trust
host all all all scram-sha-256
"""
# STATEMENT and DETAIL lines would carry patient data into the log. 200: three Orthancs of
# 50 connections each.
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
class ServerSettings:
    """The settings of a private server, stored in its folder.

    Attributes:
        port: The TCP port; None before the first `server start`.
        listen: The TCP address, used while `keep` is set.
        keep: Whether the server stays up while no command uses it.
    """

    database: str = "orthanc"
    role: str = "orthanc"
    port: int | None = None
    listen: str = "127.0.0.1"
    keep: bool = False


def open_cluster(directory: Path) -> Cluster:
    """Return the data folder of any PostgreSQL on this machine; nothing is written.

    Raises:
        PgOrthancError: It is not a data folder, belongs to another account, or its
            version is not installed.
    """
    path = Path(os.path.realpath(directory))
    version = path / "PG_VERSION"
    try:
        owner = version.stat()
        major = int(version.read_text().strip().partition(".")[0])
    except (OSError, ValueError):
        raise PgOrthancError(
            f"{path} is no data folder of PostgreSQL",
            "name the folder with the file PG_VERSION; the server tells it: SHOW data_directory",
        ) from None
    account = Account(owner.st_uid, owner.st_gid)
    if os.geteuid() not in (0, owner.st_uid):
        raise PgOrthancError(f"the folder {path} belongs to {account}", f"run pgorthanc as {account}")
    cluster = PrivateCluster(path) if (path / LOCK_FILE).exists() else Cluster(path, account)
    # A version that is not installed is an error now, not after half of the work.
    cluster.programs = programs.usable_by(account, programs.find(major))
    return cluster


class PrivateCluster(Cluster):
    """The folder of a private server. Every change runs under `exclusive()`."""

    def __init__(self, directory: Path) -> None:
        """Inspect a folder; nothing is written.

        Raises:
            PgOrthancError: It holds something else, or belongs to another account.
        """
        path = Path(os.path.realpath(directory))
        with translated(path):
            _refuse_foreign_folder(path)
            super().__init__(path, _owner(path))

    @cached_property
    def programs(self) -> Programs:
        """Return the programs of the folder's version; of the best without data."""
        major = self.major if self.exists() else None
        return programs.usable_by(self.account, programs.find(major))

    def exists(self) -> bool:
        """Return whether the folder holds a server that was created completely."""
        return (self.path / "PG_VERSION").exists() and not (self.path / _COMPLETE_DATA).exists()

    # Locks

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder, which is created if it is missing; other processes wait."""
        with translated(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.path / LOCK_FILE).exists():
                self.account.own(self.path)
                self.path.chmod(0o700)
            lock = self._open_lock(LOCK_FILE)
        try:
            # On its own descriptor each time: the lock also excludes other threads of
            # this process.
            fcntl.flock(lock, fcntl.LOCK_EX)
            with translated(self.path):
                yield
        finally:
            os.close(lock)

    def _open_lock(self, name: str) -> int:
        handle = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.account.own(handle)
        return handle

    def join(self) -> int:
        """Become a user, under `exclusive()`; closing the descriptor ends that."""
        user = self._open_lock(_USERS_FILE)
        fcntl.flock(user, fcntl.LOCK_SH)
        return user

    def is_last(self, user: int) -> bool:
        """Return whether there is no other user, under `exclusive()`."""
        try:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    # Settings and addresses

    def settings(self) -> ServerSettings:
        """Return the stored settings, or the defaults."""
        file = self.path / _SETTINGS_FILE
        try:
            return ServerSettings(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ServerSettings()
        except (ValueError, TypeError) as error:
            raise PgOrthancError(
                f"{file} is damaged: {error}", "remove it, and run: pgorthanc server start"
            ) from error

    def save(self, settings: ServerSettings) -> None:
        """Store the settings."""
        self.write(_SETTINGS_FILE, json.dumps(asdict(settings), indent=2) + "\n")

    def socket_folder(self) -> str:
        """Return the folder of the socket as a host for libpq.

        Where its own path is too long for a socket, or would be a list for libpq, this is
        a symlink to it.
        """
        if not is_too_long_for_socket(self.path) and "," not in str(self.path):
            return str(self.path)
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        name = f"pgorthanc-{os.geteuid()}-{digest}"
        link = Path(tempfile.gettempdir()) / name
        if is_too_long_for_socket(link):
            link = Path("/tmp") / name  # noqa: S108 - checked below
        with suppress(FileExistsError):
            link.symlink_to(self.path)
        # Another account could have planted the link, to get our passwords.
        if link.lstat().st_uid != os.geteuid() or not link.is_symlink() or link.readlink() != self.path:
            raise PgOrthancError(
                f"{link} is in the way: it was not made by this account", "remove it, or set TMPDIR"
            )
        return str(link)

    def target(self, *, superuser: bool = False) -> db.Target:
        """Return the login of the folder's role, or of the superuser, by the socket."""
        settings = self.settings()
        user, database = (SUPERUSER, "postgres") if superuser else (settings.role, settings.database)
        dsn = make_dsn(
            host=self.socket_folder(),
            # Keeps PGHOSTADDR out, which would lead to another server.
            hostaddr="",
            port=settings.port or DEFAULT_PORT,
            user=user,
            dbname=database,
        )
        return db.Target(dsn)

    def listen_addresses(self) -> str:
        """Return the TCP address that the server is given at its start."""
        return self.settings().listen

    def endpoint(self) -> tuple[int, str]:
        """Return the port and the folder of the socket of the running server."""
        port, folder = super().endpoint()
        return port, self.socket_folder() if is_too_long_for_socket(folder) else folder

    # Server

    def listener_pid(self) -> int | None:
        """Return the process that listens on the socket; 0 if it is in another container.

        Unlike a pid file, this holds even after a crash of the machine.
        """
        try:
            pid = socket_peer(self.socket_folder(), self.settings().port or DEFAULT_PORT)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return self.pid() if pid is None else pid

    def ensure_running(self) -> None:
        """Create the server if missing, and start it if stopped; under `exclusive()`."""
        if self.listener_pid() is not None:
            return
        if not self.exists():
            self._create()
        self._start()

    def start(self) -> None:
        """Start the server as `pgorthanc server start` has set it up; it stays up."""
        with self.exclusive():
            settings = self.settings()
            self.save(replace(settings, keep=settings.port is not None))
            self.ensure_running()

    def stop(self, wait_s: float = _TIMEOUT_S) -> None:
        """Stop the server if it runs; it no longer stays up when a command starts it."""
        with self.exclusive():
            self.save(replace(self.settings(), keep=False))
            if self.pid() is not None:
                self.halt(wait_s)

    def command_line(self, action: str) -> str:
        """Return the command to paste that does `start`, `restart` or `stop`."""
        folder = shlex.quote(str(self.path))
        start, stop = (
            f"pgorthanc server start --embedded {folder}",
            f"pgorthanc server stop --embedded {folder}",
        )
        return {"start": start, "stop": stop, "restart": f"{stop} && {start}"}[action]

    def halt(self, wait_s: float = _TIMEOUT_S) -> None:
        """Stop the server and wait until it has ended, under `exclusive()`.

        Clients are disconnected, and their transactions are rolled back.

        Raises:
            PgOrthancError: It runs in another container, or does not end.
        """
        pid = self.listener_pid()
        if pid == 0:
            raise PgOrthancError(f"the server in {self.path} runs in another container", "stop it from there")
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)  # PostgreSQL's "fast" shutdown
            self._wait_until_ended(pid, wait_s)
        if self.socket_folder() != str(self.path):  # the symlink
            Path(self.socket_folder()).unlink(missing_ok=True)

    def _wait_until_ended(self, pid: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        file = self.path / "postmaster.pid"
        # A server removes its pid file last; one that was killed leaves it, but no longer
        # listens. The process, too, has to end: else the file system could not be
        # unmounted yet.
        while (file.exists() and self.listener_pid() is not None) or is_server_process(str(pid), self.path):
            if time.monotonic() > deadline:
                raise PgOrthancError(f"the server (pid {pid}) does not stop", f"its log: {self.path / 'log'}")
            time.sleep(0.01)

    def _start(self) -> None:
        settings, log = self.settings(), self.path / "log"
        listen = settings.listen if settings.keep else ""
        # The socket lies in the folder by the relative name: length and characters of its
        # path do not matter.
        port = settings.port or DEFAULT_PORT
        options = f"-c unix_socket_directories=. -c listen_addresses={listen} -c port={port}"
        deadline = time.monotonic() + _SURVIVORS_S
        while True:
            self.invalidate_stale_pids()
            if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
                log.rename(self.path / "log.1")
            reason = self._run_pg_ctl_start(log, options, _TIMEOUT_S)
            if reason is None or self.listener_pid() is not None:
                return
            # Processes of a server that was killed are still ending; or another pg_ctl is
            # still starting it.
            survivors = "shared memory block" in reason or "postmaster.pid" in reason
            if not survivors or time.monotonic() > deadline:
                raise PgOrthancError(
                    f"the server in {self.path} does not start: {reason}",
                    space_hint(self.path) or f"its log: {log}",
                )
            time.sleep(0.1)

    # Creation

    def _create(self) -> None:
        """Create the data in a subfolder, then move them; a later call repairs a crash."""
        complete = self.path / _COMPLETE_DATA
        if not complete.exists():
            _refuse_content(self.path, RESTORE)
            for partial in self.path.glob(f"{_NEW_DATA}*"):
                shutil.rmtree(partial, ignore_errors=True)
            # A new name every time: the initdb of a caller that was killed may still be
            # writing.
            new = Path(tempfile.mkdtemp(prefix=_NEW_DATA, dir=self.path))
            self.account.own(new)
            self._initdb(new)
            new.rename(complete)
        # PG_VERSION last: until it is there, the next call continues here.
        for name in sorted(os.listdir(complete), key=lambda name: name == "PG_VERSION"):
            (complete / name).rename(self.path / name)
        self._sync_folder()
        complete.rmdir()
        self._sync_folder()

    def _initdb(self, new: Path) -> None:
        # Text sorts by code point (C), which no library update changes; upper and lower
        # know all of Unicode.
        options = ["--username", SUPERUSER, "--encoding=UTF8", "--auth=trust", "--locale=C"]
        if self.programs.version >= (17, 0):
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        for ctype in ("C.UTF-8", "C"):
            arguments = ["-D", f"./{new.name}", *options, f"--lc-ctype={ctype}"]
            completed = programs.run(self.programs, "initdb", arguments, self.path, self.account)
            if completed.returncode == 0 or "locale" not in completed.stderr:
                break  # else this C library has no C.UTF-8
        if completed.returncode:
            shutil.rmtree(new, ignore_errors=True)
            raise PgOrthancError(
                f"cannot make a server in {self.path}: {last_error_line(completed.stderr)}",
                space_hint(self.path),
            )
        for name, mode, content in (("pg_hba.conf", "w", _HBA), ("postgresql.conf", "a", _CONFIGURATION)):
            with open(new / name, mode, encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())


def _refuse_foreign_folder(path: Path) -> None:
    if not path.exists() or (path / LOCK_FILE).exists():
        return
    hint = "name an empty folder or a new one"
    if not path.is_dir():
        raise PgOrthancError(f"{path} is not a folder", hint)
    if (path / "PG_VERSION").exists():
        version = (path / "PG_VERSION").read_text(errors="replace").strip()
        raise PgOrthancError(
            f"{path} holds data of PostgreSQL {version} that pgorthanc did not make",
            f"{hint}; or start that server as before, and connect to it with --uri",
        )
    _refuse_content(path, hint)


def _refuse_content(path: Path, hint: str) -> None:
    names = sorted(set(os.listdir(path)) - {"lost+found"})
    foreign = [name for name in names if not name.startswith("pgorthanc.")]
    if foreign:
        examples = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise PgOrthancError(f"{path} holds other things ({examples}), and nothing in it was touched", hint)


def _owner(path: Path) -> Account:
    """Return the owner of a folder; for root's own folder that is a service account."""
    me = os.geteuid()
    owner = Account(me, os.getegid())
    if path.exists():
        owner = Account(path.stat().st_uid, path.stat().st_gid)
    if owner.uid == 0:
        owner = programs.service_account()
    version = path / "PG_VERSION"
    data_owner = Account(version.stat().st_uid, owner.gid) if version.exists() else owner
    if me not in (0, owner.uid) or data_owner.uid != owner.uid:
        user = owner if me == 0 else Account(me, os.getegid())
        hand_over = f"chown -R {user.uid}:{user.gid} {shlex.quote(str(path))}"
        hint = f"give that folder and all in it to one account: {hand_over}"
        if me != 0:
            hint = f"run pgorthanc as {data_owner}, or, as root, {hint}"
        raise PgOrthancError(f"the data in {path} belong to {data_owner}, but would be used by {user}", hint)
    return owner
