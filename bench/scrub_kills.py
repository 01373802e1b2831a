"""Kill the changes of `verify storage` at random moments: nothing is lost, nothing twice, a rerun completes.

scrub_kills.py [RUNS [COUNT [BYTES [SEED]]]]     default: 50 kills of each change, 60 files of 100000 bytes

Changes: --repair-from, --index-orphans, --quarantine, the same to another file system, and --restore from there.
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


def main(runs: int, count: int, size: int, seed: int) -> None:
    """Run all, and count how they ended."""
    chance, ends = random.Random(seed), Counter[str]()  # noqa: S311
    try:
        with superuser_dsn() as dsn:
            for number in range(runs):
                for change in CHANGES:
                    target = _new_index(dsn)
                    with tempfile.TemporaryDirectory(prefix="pgorthanc-kills-") as folder:
                        scene = Scene.of(target, Path(folder), change, count, size)
                        ends[f"{change}: {kill(scene, chance, LONGEST_S[change])}"] += 1
                print(f"{number + 1} of {runs}", file=sys.stderr, flush=True)
    finally:
        for end, times in sorted(ends.items()):
            print(f"{times:5} {end}", flush=True)


# About as long as a change lasts after its first file.
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
    main(*numbers(__doc__, "N", [50, 60, 100_000, 1])[:4])
