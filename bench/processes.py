"""What a command and all processes below it hold in memory."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_LOOK_S = 0.05


def peak_bytes(command: Sequence[str]) -> tuple[int, bytes]:
    """Run a command: the peak of the sum of the resident sets of its processes, and what it printed.

    Pages that they share count for each of them.
    """
    most = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            most = max(most, sum(map(_resident, _family(process.pid))))
            time.sleep(_LOOK_S)
        printed = process.stdout.read() if process.stdout else b""
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return most, printed


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
