"""An upgrade from revision 1, compared with its plain scripts, and how it delays other sessions.

    upgrade.py [INSTANCES ...]        default: 200000

The server is that of PGORTHANC_TEST_DSN (a superuser), or a private one. For each size two copies of one
index are upgraded in turn: by the scripts one after the other, and by the tool, phase by phase, while a
reader and a writer work during the first and the last phase. Their longest statement is compared with the
longest one without any upgrade.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks, upgrade
from pgorthanc_cli.progress import silent
from pgorthanc_cli.schema import catalog, initialize, steps
from pgorthanc_cli.upgrade import counters

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import numbers, superuser_dsn

from tests.support import filler

IDLE_S = 5.0
READS = (
    "SELECT internalid FROM resources WHERE publicid = (SELECT publicid FROM resources WHERE internalid = %(id)s)",
    "SELECT publicid FROM resources WHERE parentid = %(id)s",
    "SELECT type, value FROM metadata WHERE id = %(id)s",
)
WRITES = (
    """SELECT * FROM createinstance('bench-p' || %(n)s %% 7, 'bench-s' || %(n)s %% 7, 'bench-e' || %(n)s %% 7,
                                  'i' || %(n)s)""",
    """INSERT INTO metadata (id, type, value, revision)
        SELECT internalid, 2, 'now', 0 FROM resources WHERE publicid = 'i' || %(n)s""",
    """INSERT INTO attachedfiles (id, filetype, uuid, compressedsize, uncompressedsize)
        SELECT internalid, 1, 'u' || %(n)s, 1, 1 FROM resources WHERE publicid = 'i' || %(n)s""",
)


@dataclass
class Waits:
    """The durations of a session's statements, in seconds."""

    durations_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        ordered = sorted(self.durations_s)
        if not ordered:
            return "nothing"
        longest, median = 1000 * ordered[-1], 1000 * ordered[len(ordered) // 2]
        return f"longest {longest:6.0f} ms, median {median:5.1f} ms, {len(ordered):,} statements"


@contextmanager
def working(target: db.Target, first: int) -> Iterator[dict[str, Waits]]:
    """Run a reader and a writer, each in its own session, for the length of a block."""
    stop = threading.Event()
    waits = {"reader": Waits(), "writer": Waits()}

    def work(name: str, statements: tuple[str, ...]) -> None:
        with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
            n = first
            while not stop.is_set():
                n += 1
                for statement in statements:
                    started = time.perf_counter()
                    cur.execute(statement, {"id": 1 + n * 7919 % 100_000, "n": n})
                    waits[name].durations_s.append(time.perf_counter() - started)
                stop.wait(0.001)

    threads = [
        threading.Thread(target=work, args=("reader", READS)),
        threading.Thread(target=work, args=("writer", WRITES)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def phase(target: db.Target, name: str) -> upgrade.Changed:
    """Run one phase of the tool."""
    return upgrade.upgrade(target, settings=upgrade.Settings(phases=(name,)))


def plain(target: db.Target) -> None:
    """Run the scripts as an administrator does: one transaction each, and nothing else."""
    with db.session(target) as conn:
        for step in steps.path(1, catalog.newest()):
            with conn, conn.cursor() as cur:
                cur.execute(steps.text(step.script))


def by_phases(target: db.Target, plain_s: float) -> None:
    """Upgrade with the tool, and print the durations."""
    with working(target, 1_000_000_000) as alone:
        time.sleep(IDLE_S)
    with working(target, 1_100_000_000) as during_prepare:
        prepare_s = seconds(lambda: phase(target, "prepare"))
    switched: list[upgrade.Changed] = []
    switch_s = seconds(lambda: switched.append(phase(target, "switch")))
    finished: list[upgrade.Changed] = []
    with working(target, 1_200_000_000) as during_finish:
        finish_s = seconds(lambda: finished.append(phase(target, "finish")))
    total_s = prepare_s + switch_s + finish_s
    print(f"  plain scripts          {plain_s:8.2f} s")
    print(f"  prepare                {prepare_s:8.2f} s")
    print(
        f"  switch                 {switch_s:8.2f} s, other sessions are blocked for {switched[0].blocked_s:.3f} s"
    )
    print(f"  finish                 {finish_s:8.2f} s")
    print(f"  all phases             {total_s:8.2f} s, {total_s / plain_s:.2f} x the plain scripts")
    for name in ("reader", "writer"):
        print(f"  {name} without upgrade {alone[name]}")
        print(f"  {name} during prepare  {during_prepare[name]}")
        print(f"  {name} during finish   {during_finish[name]}")
    print(f"  child counts           {finished[0].child_counts:,}")


def child_counts(target: db.Target) -> None:
    """Count children while no other session works."""
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute(
            "ALTER TABLE resources DROP COLUMN childcount; ALTER TABLE resources ADD COLUMN childcount integer"
        )
        cur.execute("VACUUM ANALYZE resources")
    with db.session(target, autocommit=True) as conn:
        objects = catalog.snapshot(conn, target.schema)
        started = time.perf_counter()
        counted = counters.count_children(conn, objects, "finish", silent)
        elapsed_s = time.perf_counter() - started
    rate = counted / elapsed_s
    print(f"  child counts alone     {counted:,} in {elapsed_s:.2f} s: {rate:,.0f} per second")


def measure(admin: Connection, dsn: str, instances: int) -> None:
    """Measure one size."""
    print(f"{instances:,} instances")
    names = [f"pgorthanc_bench_{kind}_{os.getpid()}" for kind in ("filled", "plain", "phases")]
    targets = [db.Target(make_dsn(dsn, dbname=name)) for name in names]
    try:
        create(admin, names[0])
        with db.session(targets[0]) as conn:
            initialize.init(
                conn, schema="public", require_idle=locks.require_idle, revision=1, with_storage=False
            )
            print(f"  filled in              {seconds(lambda: filler.fill(conn, instances)):8.2f} s")
        for name in names[1:]:
            create(admin, name, names[0])
        by_phases(targets[2], seconds(lambda: plain(targets[1])))
        child_counts(targets[1])
    finally:
        with admin.cursor() as cur:
            for name in names:
                cur.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def create(admin: Connection, name: str, template: str = "template1") -> None:
    """Create a database as a copy of another one."""
    with admin.cursor() as cur:
        cur.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        cur.execute("CHECKPOINT")


def main(sizes: list[int]) -> None:
    """Measure all sizes on one server."""
    with (
        superuser_dsn() as dsn,
        db.session(db.Target(dsn), autocommit=True, need_schema=False) as admin,
    ):
        for instances in sizes:
            measure(admin, dsn, instances)


if __name__ == "__main__":
    main(numbers(__doc__, "INSTANCES", [200_000]))
