"""How fast `verify storage` checks, compared with md5sum on the same files and the same cores.

storage.py [FILES BYTES]        default: 100000 files of 8000 bytes each, in /dev/shm

Rows and files are written directly: one instance each, one hierarchy for all.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from common import numbers, peak_bytes, superuser_dsn

from pgorthanc_cli import db, locks, storage
from pgorthanc_cli.schema import initialize

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


def verify(target: db.Target, area: Path, depth: str) -> tuple[float, float, int]:
    """Return the seconds of a whole run, those of the check itself, and the peak memory of its processes."""
    words = ["verify", "storage", "--uri", target.dsn, "--storage-dir", str(area), "--depth", depth]
    command = [sys.executable, "-m", "pgorthanc_cli", *words, "--jobs", str(CORES), "--json"]
    started = time.perf_counter()
    peak, output = peak_bytes(command)
    took = time.perf_counter() - started
    report = json.loads(output)
    if report["findings"] or report["checked"] != report["attachments"]:
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


def main(count: int, size: int, folder: str = "/dev/shm") -> None:  # noqa: S108
    """Measure in turns, so that noise affects all alike; print medians, rates, ratios and memory."""
    with superuser_dsn() as dsn, tempfile.TemporaryDirectory(dir=folder) as area:
        target = db.Target(dsn)
        with db.session(target) as conn:
            initialize.init(conn, schema=target.schema, require_idle=locks.require_idle)
        fill(target, Path(area), count, size)
        runs: dict[str, list[tuple[float, float, int]]] = {"exists": [], "size": [], "hash": [], "md5sum": []}
        for _ in range(ROUNDS):
            for name, results in runs.items():
                reference = md5sum(Path(area)) if name == "md5sum" else 0.0
                results.append((reference, reference, 0) if reference else verify(target, Path(area), name))
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


if __name__ == "__main__":
    files, file_bytes = numbers(__doc__, "N", [100_000, 8000])
    main(files, file_bytes)
