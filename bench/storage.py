"""How fast `verify storage` checks, compared with what the same machine can do.

storage.py hashes [FILES BYTES]    with md5sum on the same files and cores; 100000 files of 8000 bytes
storage.py names [FILES]           with ls and find; 1000000 empty files; then all of them missing
storage.py objects [COUNT BYTES]   large objects in bulk, with a loop of lo_get; 600 of 500000 bytes

Rows and files are written directly: one instance each, one hierarchy for all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from common import peak_bytes, superuser_dsn

from pgorthanc_cli import db, locks, storage
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.storage import bulk

CORES = os.cpu_count() or 1
ROUNDS = 3


def fill(target: db.Target, area: Path, count: int, size: int) -> None:
    """Write the files and their rows."""
    lines = StringIO()
    for number, uuid in enumerate(storage.new_uuids(count), 4):
        content = os.urandom(size)
        path = area / uuid[:2] / uuid[2:4] / uuid
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        lines.write(f"{number}\t1\t{uuid}\t{size}\t{size}\t1\t{md5}\t{md5}\t0\t\\N\n")
    lines.seek(0)
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute("SET LOCAL session_replication_role = replica")
        cur.execute(
            """INSERT INTO resources (internalid, resourcetype, publicid, parentid)
               SELECT n, least(n - 1, 3), 'r' || n, CASE WHEN n > 1 THEN least(n - 1, 3) END
               FROM generate_series(1, %s) n""",
            (count + 3,),
        )
        cur.copy_expert("COPY attachedfiles FROM STDIN", lines)
        conn.commit()
        conn.autocommit = True
        cur.execute("VACUUM ANALYZE attachedfiles")


def verify(target: db.Target, area: Path, depth: str, *, missing: int = 0) -> tuple[float, float, int]:
    """Return the seconds of a whole run, those of the check itself, and the peak memory of its processes."""
    words = ["verify", "storage", "--uri", target.dsn, "--storage-dir", str(area), "--depth", depth]
    command = [sys.executable, "-m", "pgorthanc_cli", *words, "--jobs", str(CORES), "--json", "--force"]
    started = time.perf_counter()
    peak, output = peak_bytes(command, (0, 6))
    took = time.perf_counter() - started
    report = json.loads(output)
    expected = {"missing": missing} if missing else {}
    if report["counts"] != expected or report["checked"] != report["attachments"]:
        raise SystemExit(f"unexpected: {report['counts']}, {report['checked']} checked")
    return took, report["elapsed_s"], peak


def md5sum(area: Path) -> float:
    """Return the seconds that md5sum takes for the same files on the same cores."""
    started = time.perf_counter()
    with subprocess.Popen(["/usr/bin/find", area, "-type", "f", "-print0"], stdout=subprocess.PIPE) as find:
        subprocess.run(
            ["/usr/bin/xargs", "-0", "-n", "500", "-P", str(CORES), "md5sum"],
            stdin=find.stdout, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    return time.perf_counter() - started


def hashes(count: int, size: int, folder: str = "/dev/shm") -> None:  # noqa: S108
    """Measure in turns, so that noise affects all alike; print medians, rates, ratios and memory."""
    with archive(folder) as (target, area):
        fill(target, area, count, size)
        runs: dict[str, list[tuple[float, float, int]]] = {"exists": [], "size": [], "hash": [], "md5sum": []}
        for _ in range(ROUNDS):
            for name, results in runs.items():
                reference = md5sum(area) if name == "md5sum" else 0.0
                results.append((reference, reference, 0) if reference else verify(target, area, name))
    reference = statistics.median(took for took, _, _ in runs["md5sum"])
    print(f"{count:,} files of {size:,} bytes, {CORES} cores, {ROUNDS} rounds in turn")
    for name, results in runs.items():
        whole = statistics.median(took for took, _, _ in results)
        check = statistics.median(took for _, took, _ in results)
        peak = max(peak for _, _, peak in results)
        print(
            f"{name:8} whole run {whole:6.2f} s, {reference / whole:5.2f} x md5sum; check itself {check:6.2f} s, "
            f"{reference / check:5.2f} x md5sum, {count / check:9,.0f} files/s; {peak / 1e6:3.0f} MB"
        )


@contextmanager
def archive(folder: str) -> Iterator[tuple[db.Target, Path]]:
    """Yield a new index and an empty storage area."""
    with superuser_dsn() as dsn, tempfile.TemporaryDirectory(dir=folder) as area:
        target = db.Target(dsn)
        with db.session(target) as conn:
            initialize.init(conn, schema=target.schema, require_idle=locks.require_idle, with_storage=True)
        yield target, Path(area)


# --- names and sizes ------------------------------------------------------------------------


def names(count: int, folder: str = "/dev/shm") -> None:  # noqa: S108
    """Compare with `ls -fR` and `find -size` of the same folders; then all files missing."""
    references = {"exists": ["/bin/ls", "-fR"], "size": ["/usr/bin/find"]}
    with archive(folder) as (target, area):
        fill(target, area, count, 0)
        for depth, command in references.items():
            words = [*command, str(area), *(["-size", "+1k"] if depth == "size" else [])]
            ratios, rates, peaks, cpus = [], [], [], []
            for _ in range(ROUNDS):
                reference = _timed(words)
                before = os.times()
                _, check, peak = verify(target, area, depth)
                after = os.times()
                cpus.append(
                    after.children_user
                    + after.children_system
                    - before.children_user
                    - before.children_system
                )
                ratios.append(check / reference)
                rates.append(count / check)
                peaks.append(peak)
            print(
                f"{depth:8} {statistics.median(rates):9,.0f} files/s, {statistics.median(ratios):4.1f} x as long as "
                f"{' '.join(command)}; {statistics.median(cpus):.1f} s of processor time; {max(peaks) / 1e6:3.0f} MB",
                flush=True,
            )
        aside = area.with_name(f"{area.name}-aside")
        for path in list(area.iterdir()):
            aside.mkdir(exist_ok=True)
            path.rename(aside / path.name)
        took, _, peak = verify(target, area, "exists", missing=count)
        print(f"all missing: {took:.1f} s, {peak / 1e6:3.0f} MB")
        shutil.rmtree(aside)


def _timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


# --- large objects --------------------------------------------------------------------------


def objects(count: int, size: int) -> None:
    """Compare `storage.bulk.contents`, by which a check reads large objects, with a query for each attachment."""
    with archive("/dev/shm") as (target, _), db.session(target) as conn:  # noqa: S108
        uuids = storage.new_uuids(count)
        with conn.cursor() as cur:
            for uuid in uuids:
                insert = "INSERT INTO storagearea VALUES (%s, lo_from_bytea(0, %s), 1)"
                cur.execute(insert, (uuid, os.urandom(size)))
            cur.execute("ANALYZE storagearea")
        conn.commit()
        oids = [oid for (oid,) in db.rows(conn, "SELECT content::int8 FROM storagearea ORDER BY 1")]
        query = "SELECT lo_get(content) FROM storagearea WHERE uuid = %s AND type = 1"
        together = max(1, min(256, (32 << 20) // max(size, 1)))
        loop, together_s = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for uuid in uuids:
                assert len(bytes(db.value(conn, query, uuid))) == size
            loop.append(time.perf_counter() - started)
            started = time.perf_counter()
            for first in range(0, count, together):
                contents = bulk.contents(conn, oids[first : first + together])
                assert all(len(content) == size for content in contents.values())
            together_s.append(time.perf_counter() - started)
    slow, fast = statistics.median(loop), statistics.median(together_s)
    print(
        f"{count:,} large objects of {size:,} bytes: loop of lo_get {count / slow:,.0f}/s, "
        f"in bulk {count / fast:,.0f}/s: {slow / fast:.1f} x"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("hashes", "names", "objects"), nargs="?", default="hashes")
    parser.add_argument("numbers", type=int, nargs="*", metavar="N")
    arguments = parser.parse_args()
    numbers = arguments.numbers
    if arguments.what == "hashes":
        hashes(*(numbers or (100_000, 8000)))
    elif arguments.what == "names":
        names(*(numbers or (1_000_000,)))
    else:
        objects(*(numbers or (600, 500_000)))
