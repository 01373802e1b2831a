"""Whether a run is alive: its lock, process, heartbeat and database session.

Some file systems (NFSv3 with `nolock`, SMB, FUSE) do not share file locks between
machines, or not even between processes, so a lock counts only where it has been tried.
What counts everywhere is the database: each run holds an advisory lock in the very
session that commits its rows. Whoever gets that lock knows that the run cannot commit any
more.
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
from pgorthanc_cli.storage import listing

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

STALE_S = listing.STALE_S
# Magic numbers (linux/magic.h) of file systems that one machine mounts at a time, so that
# its own locks are the whole truth: ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS, F2FS,
# bcachefs
LOCAL_FILE_SYSTEMS = {
    0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0x2FC12FC1, 0xF2F52010, 0xCA451A4E,
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Marker:
    """The identity of a run, as its lock file has it.

    Attributes:
        host: The name of its machine or container, for messages.
        boot: Identifies the machine, from one start to the next.
        namespace: The namespace of its process ids.
        process: See `process_identity`.
        session: Whether it holds a lock in the database.
    """

    host: str
    boot: str
    namespace: str
    process: str
    session: bool

    @classmethod
    def of_this_process(cls, *, session: bool) -> Marker:
        """Return the marker of this process."""
        boot, namespace = _machine()
        process = process_identity(os.getpid())
        return cls(socket.gethostname(), boot, namespace, process, session)

    @classmethod
    def parse(cls, content: bytes) -> Marker | None:
        """Return the marker in a lock file; None if it has none (earlier versions)."""
        try:
            marker = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (marker.host, marker.boot, marker.namespace, marker.process)
        valid = all(isinstance(text, str) for text in texts) and isinstance(marker.session, bool)
        return marker if valid else None

    def to_json(self) -> bytes:
        """Return the content of the lock file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def same_boot(self) -> bool:
        """Whether the run started on this machine, since its last boot."""
        return bool(self.boot) and self.boot == _machine()[0]

    def visible(self) -> bool:
        """Whether its process id means the same process here."""
        return self.same_boot() and bool(self.namespace) and self.namespace == _machine()[1]


def process_identity(pid: int) -> str:
    """Return a process id with its start time, as numbers are used again."""
    return f"{pid} {_start_and_state(pid)[0]}"


def has_ended(identity: str) -> bool:
    """Whether a process of this machine, by its `process_identity`, has ended."""
    number, _, start = identity.partition(" ")
    try:
        pid = int(number)
        os.kill(pid, 0)
    except PermissionError:
        pass  # it exists: it belongs to another user
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    current_start, state = _start_and_state(pid)
    # A zombie has released all its files and locks.
    return state == "Z" or bool(current_start and start and current_start != start)


def _start_and_state(pid: int) -> tuple[str, str]:
    """Return start (clock ticks since boot) and state of a process; "" if unknown."""
    try:
        # After the name, which may contain parentheses: state is field 3, start field 22
        # (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19], fields[0]
    except (OSError, IndexError):
        return "", ""


@cache
def _machine() -> tuple[str, str]:
    """Return the boot id and the namespace of process ids; "" if unknown."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    return boot, namespace


# --- file locks -------------------------------------------------------------------------


def try_lock(descriptor: int, how: int) -> bool:
    """Lock a file without waiting; return False if another process has locked it.

    True if the file system has no locks at all.
    """
    try:
        # It belongs to this descriptor; a lock of fcntl(2) would end with any close of
        # the file.
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not supported, which `locks_exclude` detects
    return True


def locks_exclude(name: str, folder: int) -> bool:
    """Whether the lock that this process holds on a file keeps a second one out."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def is_local(folder: int) -> bool:
    """Whether no other machine uses the file system of a folder at the same time."""
    status = (ctypes.c_long * 32)()  # struct statfs: the type comes first
    if _libc.fstatfs(folder, status) != 0:
        return False
    return status[0] & 0xFFFFFFFF in LOCAL_FILE_SYSTEMS


# --- database sessions ------------------------------------------------------------------


class Session:
    """The session in which a run commits, and whose locks show which runs still could."""

    def __init__(self, conn: Connection) -> None:
        """`conn` has no transaction open whenever a method is called."""
        self.conn = conn

    def hold(self, run: str) -> bool:
        """Take the lock of a run, until `release`; False: its own session has it."""
        return self._call("SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", run)

    def release(self, run: str) -> None:
        """Release a lock; a lost session has lost it anyway."""
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            # The import may have failed within a transaction.
            self.conn.rollback()
            self._call("SELECT pg_catalog.pg_advisory_unlock(%s, %s)", run)

    def named(self, uuids: list[str]) -> set[str]:
        """Return which of these UUIDs a committed row names, at any isolation level."""
        with self.conn, self.conn.cursor() as cur:
            return index.referenced_uuids(cur, uuids)

    def _call(self, query: str, run: str) -> bool:
        # The transaction ends, the lock of the session stays.
        with self.conn:
            return bool(db.value(self.conn, query, *_lock_key(run)))


def _lock_key(run: str) -> tuple[int, int]:
    """Return the advisory lock of a run: two numbers; Orthanc's own locks have one."""
    digest = hashlib.sha256(f"pgorthanc import {run}".encode()).digest()
    first, second = digest[:4], digest[4:8]
    return int.from_bytes(first, "big", signed=True), int.from_bytes(second, "big", signed=True)
