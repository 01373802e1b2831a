"""The conversion of an SQLite index, compared with pgloader's raw copy of the same tables.

    migrate.py [INSTANCES ...]        default: 100000

The server is that of PGORTHANC_TEST_DSN (a role that may create databases), or a private one. pgloader creates plain
tables and copies the rows, without indexes and foreign keys; the tool converts them, builds all of these, reads every
row back and checks the index. Both are whole processes. Memory is the sum of the resident sets of the tool's processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn, parse_dsn

from pgorthanc_cli import db

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import numbers, peak_bytes, superuser_dsn

from tests.support import sqliteindex

_LOAD = """LOAD DATABASE FROM sqlite://{path} INTO {target}
    WITH include drop, create tables, create no indexes, no foreign keys, reset no sequences;
"""


def main(sizes: list[int]) -> None:
    """Run both sides twice for each size, on one server."""
    with (
        tempfile.TemporaryDirectory(prefix="pgorthanc-bench-") as folder,
        superuser_dsn() as dsn,
        db.session(db.Target(dsn), autocommit=True, need_schema=False) as admin,
    ):
        for instances in sizes:
            path = Path(folder) / f"index-{instances}"
            conn = sqliteindex.create(path)
            sqliteindex.fill(conn, instances)
            conn.close()
            print(f"{instances:,} instances, {path.stat().st_size / 1e6:,.0f} MB", flush=True)
            for measure in (tool, loader, tool, loader):
                os.sync()  # earlier writes must not slow down this side
                path.read_bytes()  # in the page cache for both
                with database(admin, dsn) as target:
                    measure(path, target)
            path.unlink()


@contextmanager
def database(admin: Connection, dsn: str) -> Iterator[str]:
    """Create an empty database for the length of a block."""
    name = f"pgorthanc_bench_{os.getpid()}"
    identifier = sql.Identifier(name)
    with admin.cursor() as cur:
        cur.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        cur.execute("CHECKPOINT")
        try:
            yield make_dsn(dsn, dbname=name)
        finally:
            cur.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def tool(path: Path, dsn: str) -> None:
    """Run the whole conversion, verified."""
    command = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "migrate-sqlite",
        str(path),
        "--uri",
        dsn,
        "--json",
        "--quiet",
    ]
    started = time.perf_counter()
    peak, output = peak_bytes(command)
    elapsed_s = time.perf_counter() - started
    result = json.loads(output)
    rows = sum(result["rows"].values())
    assert result["verified"]
    print(
        f"  pgorthanc {elapsed_s:8.1f} s, {rows / elapsed_s:9,.0f} rows/s, {peak / 1e6:,.0f} MB",
        flush=True,
    )


def loader(path: Path, dsn: str) -> None:
    """Run pgloader's raw copy."""
    program = shutil.which("pgloader")
    if not program:
        print("  pgloader  is not installed")
        return
    parameters = parse_dsn(dsn)
    host = parameters["host"]
    if host.startswith("/"):
        host = f"unix:{host}"
    port = parameters.get("port", 5432)
    target = f"postgresql://{parameters['user']}@{host}:{port}/{parameters['dbname']}"
    with tempfile.NamedTemporaryFile("w", suffix=".load") as file:
        file.write(_LOAD.format(path=path, target=target))
        file.flush()
        started = time.perf_counter()
        process = subprocess.run([program, file.name], capture_output=True, text=True)
        elapsed_s = time.perf_counter() - started
    total = [line for line in process.stdout.splitlines() if "Total import time" in line]
    summary = " ".join(total[-1].split()) if total else process.stdout[-500:]
    print(f"  pgloader  {elapsed_s:8.1f} s, {summary}", flush=True)


if __name__ == "__main__":
    main(numbers(__doc__, "INSTANCES", [100_000]))
