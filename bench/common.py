"""What several benchmarks need: a server, sizes on the command line, and the memory of a command."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pgorthanc_cli.server import embedded

_SAMPLE_S = 0.05


@contextmanager
def superuser_dsn() -> Iterator[str]:
    """Yield the DSN in PGORTHANC_TEST_DSN, or that of a private server for the length of a block."""
    dsn = os.environ.get("PGORTHANC_TEST_DSN")
    if dsn:
        yield dsn
        return
    with (
        tempfile.TemporaryDirectory(prefix="pgorthanc-bench-") as folder,
        embedded.attach(Path(folder) / "server", superuser=True) as target,
    ):
        yield target.dsn


def numbers(description: str | None, metavar: str, default: list[int]) -> list[int]:
    """Return the numbers on the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", type=int, nargs="*", default=default, metavar=metavar)
    arguments: list[int] = parser.parse_args().numbers
    return arguments


def peak_bytes(command: Sequence[str], codes: Sequence[int] = (0,)) -> tuple[int, bytes]:
    """Run a command; return the peak memory of all its processes together, and its output.

    The sum of resident sets: pages that processes share count for each of them.
    """
    peak = 0
    with tempfile.TemporaryFile() as file, subprocess.Popen(command, stdout=file) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_resident_bytes, _descendants(process.pid))))
            time.sleep(_SAMPLE_S)
        file.seek(0)
        output = file.read()
    if process.returncode not in codes:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return peak, output


def _descendants(pid: int) -> list[int]:
    """Return a process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(descendant for child in children for descendant in _descendants(int(child)))]


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
