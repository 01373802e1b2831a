"""Two versions of the tool side by side: `import` and `migrate-sqlite` as whole processes.

versions.py OLD_PYTHON NEW_PYTHON [--files N] [--instances N] [--rounds N]

The two are interpreters of virtual environments into which a version was installed (`pip install .`, not editable: both
need compiled modules). They take turns on one server, so that noise affects both alike. The CPU seconds are those of
all processes of the tool, without the server's; unlike the elapsed time they hardly depend on what else runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import superuser_dsn
from migrate import database

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import initialize

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import sqliteindex
from tests.support.ctseries import write

Arguments = Callable[[str, Path], list[str]]  # of the DSN and an empty folder


def measure(python: str, arguments: list[str]) -> tuple[float, float]:
    """Return the elapsed and the CPU seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [python, "-m", "pgorthanc_cli", *arguments, "--json", "--quiet"]
    # Either of them, or the working directory, would lead both to one version.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", env=environ)
    elapsed_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(name: str, pythons: list[str], rounds: int, arguments: Arguments, *, index: bool) -> None:
    """Print the medians of both versions and their ratios; `index`: the database holds an empty index."""
    figures: dict[str, list[tuple[float, float]]] = {python: [] for python in pythons}
    with superuser_dsn() as dsn, db.session(db.Target(dsn), autocommit=True, need_schema=False) as admin:
        for _ in range(rounds):
            for python, measured in figures.items():
                with database(admin, dsn) as target, tempfile.TemporaryDirectory() as area:
                    if index:
                        with db.session(db.Target(target)) as conn:
                            initialize.init(conn, schema="public", require_idle=locks.require_idle)
                    os.sync()  # earlier writes must not slow down this one
                    measured.append(measure(python, arguments(target, Path(area))))
    medians = [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in figures.values()]
    for title, old_s, new_s in zip(("elapsed", "CPU"), *medians, strict=True):
        print(f"{name:16} {title:8} {old_s:7.2f} s  {new_s:7.2f} s  {new_s / old_s:5.2f} x", flush=True)


def main(arguments: argparse.Namespace) -> None:
    """Compare both commands."""
    with tempfile.TemporaryDirectory(prefix="pgorthanc-bench-") as folder:
        files, index = Path(folder) / "files", Path(folder) / "index"
        write(files, arguments.files, 8192)
        conn = sqliteindex.create(index)
        sqliteindex.fill(conn, arguments.instances)
        conn.close()
        print(f"{'':25}      old        new    new / old", flush=True)
        compare(
            "import",
            arguments.pythons,
            arguments.rounds,
            lambda dsn, area: ["import", "--uri", dsn, "--storage-dir", str(area), str(files)],
            index=True,
        )
        compare(
            "migrate-sqlite",
            arguments.pythons,
            arguments.rounds,
            lambda dsn, area: ["migrate-sqlite", str(index), "--uri", dsn],
            index=False,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs=2, metavar="PYTHON")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--instances", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
