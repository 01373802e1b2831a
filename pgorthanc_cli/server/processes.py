"""PostgreSQL processes on this machine, known by working directory or socket."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def is_server_process(pid: str, folder: Path) -> bool:
    """Return whether a process has the folder as its working directory (Linux).

    All processes of a server do, and nothing else works in a data folder.
    """
    try:
        return os.path.samefile(f"/proc/{int(pid)}/cwd", folder)
    except (FileNotFoundError, ValueError):
        return False


def server_processes(folder: Path) -> list[int]:
    """Return the processes of a folder's server; children may outlive it (Linux)."""
    pids = []
    for entry in _postgres_processes():
        with suppress(OSError):
            if is_server_process(entry.name, folder):
                pids.append(int(entry.name))
    return pids


def running_folders() -> Iterator[Path]:
    """Yield the data folder of each server that this account may see (Linux)."""
    seen = set()
    for entry in _postgres_processes():
        with suppress(OSError):
            folder = entry.joinpath("cwd").readlink()
            if folder not in seen and (folder / "PG_VERSION").exists():
                seen.add(folder)
                yield folder


def _postgres_processes() -> Iterator[Path]:
    proc = Path("/proc")
    for entry in proc.iterdir() if proc.is_dir() else ():
        with suppress(OSError):
            if entry.name.isdecimal() and _is_postgres(entry):
                yield entry


def _is_postgres(entry: Path) -> bool:
    """Return whether a process is PostgreSQL by its name, and not a zombie (state Z)."""
    # pid (name) state …: the name may contain spaces and parentheses
    stat = entry.joinpath("stat").read_text(errors="replace")
    name, _, rest = stat.partition("(")[2].rpartition(")")
    return name in ("postgres", "postmaster") and rest.split()[0] != "Z"


def is_postgres_of(pid: str, uid: int) -> bool:
    """Return whether a process is PostgreSQL, and runs under that account (Linux)."""
    with suppress(OSError):
        entry = Path("/proc") / pid
        return entry.stat().st_uid == uid and _is_postgres(entry)
    return False


def socket_peer(socket_folder: str, port: int) -> int | None:
    """Return the process that listens on a socket; 0 if in another container (Linux).

    None on other systems.

    Raises:
        OSError: No process listens.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"{socket_folder}/.s.PGSQL.{port}")
        if sys.platform != "linux":
            return None
        # Who has called listen(2), as the kernel has recorded it (unix(7)).
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])
