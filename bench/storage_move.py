"""Strike `storage move` at random moments of each phase: nothing is lost, nothing twice, and a rerun completes.

storage_move.py [RUNS [ATTACHMENTS [SEED [ROWS]]]]     default: 50 runs of each strike in each phase, 400 attachments.
    The move leaves the rows as they are; with ROWS 1 it compresses, and with 2 it leads to and from a storage of the
    advanced-storage plugin: both change rows.

Strikes: kill -9 and SIGTERM of the command; its sessions ended, one of their processes killed, the server killed
with all its processes; and (as root) a full disk of the folder, or of the server. Both directions in turn.
"""

from __future__ import annotations

import random
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from common import numbers
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import initialize

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.faults.site import disk
from tests.placement.strikes import PHASES, STRIKES, Scene, own_server, strike
from tests.support.real_servers import Server

_COMPRESSED, _ADVANCED = 1, 2
_TEMPLATE = "pgorthanc_bench_template"


def one(
    server: Server,
    phase: str,
    kind: str,
    count: int,
    chance: random.Random,
    *,
    to_objects: bool,
    changed_rows: int,
) -> str:
    """Strike once, in a database of its own."""
    name = "pgorthanc_bench_move"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgorthanc-move-")))
        if kind == "disk" and stack.enter_context(disk(folder, 64)) is None:
            return "no disk"
        server.sql(f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        scene = Scene(
            db.Target(make_dsn(server.place, dbname=name)),
            folder / "area",
            to_objects,
            server,
            compress=changed_rows == _COMPRESSED,
            advanced=changed_rows == _ADVANCED,
        )
        scene.fill(count)
        return strike(scene, phase, kind, chance, 0.6)


def main(runs: int, count: int, seed: int, changed_rows: int) -> None:
    """Run all, and count how the commands ended."""
    chance, ends = random.Random(seed), Counter[str]()  # noqa: S311
    with own_server() as server:
        server.sql(f"CREATE DATABASE {_TEMPLATE}")
        with db.session(db.Target(make_dsn(server.place, dbname=_TEMPLATE))) as conn:
            initialize.init(conn, schema="public", require_idle=locks.require_idle)
        for number in range(runs):
            for phase in PHASES:
                for kind in STRIKES:
                    if kind == "disk" and phase == "clean":
                        continue  # it only removes
                    # Only what is written can fill a disk.
                    to_objects = kind != "disk" and (number % 2 == 1 or kind == "space")
                    try:
                        end = one(
                            server,
                            phase,
                            kind,
                            count,
                            chance,
                            to_objects=to_objects,
                            changed_rows=changed_rows,
                        )
                    except AssertionError as error:
                        end = f"WRONG: {error}"
                        traceback.print_exc()
                        server.revive()
                    ends[f"{phase}, {kind}: {end.rpartition(': ')[2]}"] += 1
            print(f"{number + 1} of {runs}", file=sys.stderr, flush=True)
    for end, times in sorted(ends.items()):
        print(f"{times:5} {end}")


if __name__ == "__main__":
    defaults = [50, 400, 1, 0]
    given = numbers(__doc__, "N", defaults)
    main(*given, *defaults[len(given) :])
