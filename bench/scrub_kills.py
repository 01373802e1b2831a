"""Kill the changes of `verify storage` at random moments: nothing is lost, nothing twice, a rerun completes.

scrub_kills.py [KILLS [COUNT [BYTES [SEED]]]]     default: 50 kills of each change, 60 files of 100000 bytes

Changes: --repair-from, --index-orphans, --quarantine, the same to another file system, and --restore from there.
A run that ends before it is killed is counted, too, and repeated.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import numbers, superuser_dsn
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import initialize

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.scrub.kills import CHANGES, Scene, kill
from tests.support.schemas import run as execute


def main(kills: int, count: int, size: int, seed: int) -> None:
    """Kill each change that many times, and count how the runs ended."""
    chance, ends = random.Random(seed), Counter[str]()  # noqa: S311
    killed, longest_s = Counter[str](), dict(LONGEST_S)
    try:
        with superuser_dsn() as dsn:
            while remaining := [change for change in CHANGES if killed[change] < kills]:
                for change in remaining:
                    target = _new_index(dsn)
                    with tempfile.TemporaryDirectory(prefix="pgorthanc-kills-") as folder:
                        scene = Scene.of(target, Path(folder), change, count, size)
                        end = kill(scene, chance, longest_s[change])
                    ends[f"{change}: {end}"] += 1
                    is_late = end.startswith("too late")
                    killed[change] += not is_late
                    # So about one run in twelve is too late, and all of a change is struck, at any load.
                    longest_s[change] *= 0.7 if is_late else 1.03
                print(
                    ", ".join(f"{killed[change]} {change}" for change in CHANGES), file=sys.stderr, flush=True
                )
    finally:
        for end, times in sorted(ends.items()):
            print(f"{times:5} {end}", flush=True)


# About as long as a change lasts after its first file, to begin with.
LONGEST_S = {
    "repair": 1.0,
    "index": 1.0,
    "quarantine": 0.1,
    "quarantine elsewhere": 0.5,
    "restore elsewhere": 0.5,
}


def _new_index(dsn: str) -> db.Target:
    name = "pgorthanc_bench_kills"
    execute(db.Target(dsn), f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
    target = db.Target(make_dsn(dsn, dbname=name))
    with db.session(target) as conn:
        initialize.init(conn, schema="public", require_idle=locks.require_idle)
    return target


if __name__ == "__main__":
    defaults = [50, 60, 100_000, 1]
    given = numbers(__doc__, "N", defaults)
    main(*given, *defaults[len(given) :])
