"""The time of short commands, compared with a Python that does nothing.

commands.py [RUNS]        default: 15
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import numbers

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.server import embedded

TOOL = (sys.executable, "-m", "pgorthanc_cli")


def once(command: tuple[str, ...]) -> float:
    """Return the seconds of one run of a whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(runs: int) -> None:
    """Run the commands in turn, so that noise affects all alike; print medians and ratios."""
    with tempfile.TemporaryDirectory() as folder, embedded.attach(Path(folder) / "server") as target:
        with db.session(target) as conn:
            initialize.init(conn, schema=target.schema, require_idle=locks.require_idle)
        commands = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "pgorthanc --help": (*TOOL, "--help"),
            "pgorthanc import --help": (*TOOL, "import", "--help"),
            "pgorthanc status": (*TOOL, "status", "--uri", target.dsn),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                times[name].append(once(command))
        base = statistics.median(times["python -c pass"])
        for name, taken in times.items():
            median = statistics.median(taken)
            low, high = (1000 * f(taken) for f in (min, max))
            print(f"{name:26} {1000 * median:7.0f} ms  ({low:.0f} to {high:.0f})  {median / base:5.1f} x")


if __name__ == "__main__":
    main(*numbers(__doc__, "RUNS", [15])[:1])
