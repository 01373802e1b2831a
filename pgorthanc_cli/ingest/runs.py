"""Whether a run is alive: by its lock, its process, its heartbeat, and its session in the database.

A lock of a file is not shared between machines, or not even between processes, on some file systems (NFSv3 with
`nolock`, SMB, FUSE). So it counts only where it has been tried. What counts everywhere is the database: each run
holds an advisory lock in the very session that commits its rows. Whoever gets that lock knows that the run cannot
commit any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from pgorthanc_cli import db, index

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

HEARTBEAT_S = 15.0
STALE_S = 120.0  # without a heartbeat: eight were missed
# linux/magic.h: file systems that one machine mounts at a time, so that its own lock is the whole truth:
# ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS, F2FS, bcachefs
_LOCAL = {0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0x2FC12FC1, 0xF2F52010, 0xCA451A4E}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Marker:
    """Who a run is.

    Attributes:
        host: The name of its machine or container, for people.
        boot: Identifies the machine, from one start to the next.
        namespace: In which process ids mean the same.
        process: See `process`.
        session: Whether it holds a lock in the database.
    """

    host: str
    boot: str
    namespace: str
    process: str
    session: bool

    @classmethod
    def ours(cls, *, session: bool) -> Marker:
        """The marker of this process."""
        return cls(socket.gethostname(), *_place(), process(os.getpid()), session)

    @classmethod
    def parse(cls, content: bytes) -> Marker | None:
        """The marker in a lock; None if there is none: earlier versions wrote none."""
        try:
            found = json.loads(content)
            marker = cls(**found)
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (marker.host, marker.boot, marker.namespace, marker.process)
        sound = all(isinstance(text, str) for text in texts) and isinstance(marker.session, bool)
        return marker if sound else None

    def written(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def same_boot(self) -> bool:
        """Whether it has run on this machine, and since its last start."""
        return bool(self.boot) and self.boot == _place()[0]

    def visible(self) -> bool:
        """Whether its process would be seen from here."""
        return self.same_boot() and bool(self.namespace) and self.namespace == _place()[1]


def process(pid: int) -> str:
    """A process, told from a later one of the same number by the time of its start."""
    return f"{pid} {_started(pid)[0]}"


def gone(written: str) -> bool:
    """Whether a process of this machine, written as by `process`, has ended."""
    number, _, started = written.partition(" ")
    try:
        pid = int(number)
        os.kill(pid, 0)
    except PermissionError:
        pass  # of another user
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    now, state = _started(pid)
    return state == "Z" or bool(now and started and now != started)


def _started(pid: int) -> tuple[str, str]:
    """When a process was started, in ticks since the start of the machine, and its state; empty where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19], fields[0]
    except (OSError, IndexError):
        return "", ""


@cache
def _place() -> tuple[str, str]:
    """This machine since its start, and the namespace of its process ids; empty where unknown."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    return boot, namespace


# --- locks of files ------------------------------------------------------------------------------------------


def take(descriptor: int, how: int) -> bool:
    """Take a lock of a file without waiting; False: somebody else has it. True if there are no locks here at all."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not supported; `excludes` finds that out, too
    return True


def excludes(name: str, folder: int) -> bool:
    """Whether the lock that this process holds on a file keeps a second one out, as it must."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return not take(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def is_local(folder: int) -> bool:
    """Whether a folder is on a file system that no other machine uses at the same time."""
    status = (ctypes.c_long * 32)()  # struct statfs: the type comes first
    return _libc.fstatfs(folder, status) == 0 and status[0] & 0xFFFFFFFF in _LOCAL


# --- sessions of the database --------------------------------------------------------------------------------


class Session:
    """The session in which a run commits, and by which others see that it still could."""

    def __init__(self, conn: Connection) -> None:
        """`conn` has no transaction open whenever a method is called."""
        self.conn = conn

    def hold(self, run: str) -> None:
        """Hold the lock of a run, until `release` or the end of the session."""
        self._ask("SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", run)

    def take(self, run: str) -> bool:
        """Hold the lock of another run if its session has ended, and it can commit nothing any more."""
        return self._ask("SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", run)

    def release(self, run: str) -> None:
        """Give a lock back; a lost session has lost it anyway."""
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            self.conn.rollback()
            self._ask("SELECT pg_catalog.pg_advisory_unlock(%s, %s)", run)

    def named(self, uuids: list[str]) -> set[str]:
        """Which of these UUIDs a committed row of the index names, whatever the level of isolation."""
        with self.conn, self.conn.cursor() as cur:
            return index.referenced_uuids(cur, uuids)

    def _ask(self, query: str, run: str) -> bool:
        with self.conn:
            return bool(db.value(self.conn, query, *_key(run)))


def _key(run: str) -> tuple[int, int]:
    """The two numbers of an advisory lock that stand for a run; Orthanc's own locks have one number."""
    digest = hashlib.sha256(f"pgorthanc import {run}".encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True), int.from_bytes(digest[4:8], "big", signed=True)
