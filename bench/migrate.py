"""The conversion of an SQLite index beside pgloader's raw copy of the same tables.

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
from pgorthanc_cli.server import embedded

sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import peak_bytes

from tests.support import sqliteindex

_LOAD = """LOAD DATABASE FROM sqlite://{path} INTO {target}
    WITH include drop, create tables, create no indexes, no foreign keys, reset no sequences;
"""


def main(sizes: list[int]) -> None:
    """All sizes, on one server."""
    given = os.environ.get("PGORTHANC_TEST_DSN")
    with tempfile.TemporaryDirectory(prefix="pgorthanc-bench-") as folder:
        if given:
            run(given, Path(folder), sizes)
            return
        with embedded.attach(Path(folder) / "server", superuser=True) as target:
            run(target.dsn, Path(folder), sizes)


def run(dsn: str, folder: Path, sizes: list[int]) -> None:
    """All sizes, on the server of a DSN."""
    with db.session(db.Target(dsn), autocommit=True, need_schema=False) as admin:
        for instances in sizes:
            path = folder / f"index-{instances}"
            conn = sqliteindex.create(path)
            sqliteindex.fill(conn, instances)
            conn.close()
            print(f"{instances:,} instances, {path.stat().st_size / 1e6:,.0f} MB", flush=True)
            for measure in (tool, loader, tool, loader):
                os.sync()  # nobody pays for what was written before
                path.read_bytes()  # in the page cache for both
                with database(admin, dsn) as target:
                    measure(path, target)
            path.unlink()


@contextmanager
def database(admin: Connection, dsn: str) -> Iterator[str]:
    """A new database, empty, for the length of a block."""
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
    """The whole conversion, verified."""
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
    peak, printed = peak_bytes(command)
    taken_s = time.perf_counter() - started
    found = json.loads(printed)
    total = sum(found["rows"].values())
    assert found["verified"]
    print(f"  pgorthanc {taken_s:8.1f} s, {total / taken_s:9,.0f} rows/s, {peak / 1e6:,.0f} MB", flush=True)


def loader(path: Path, dsn: str) -> None:
    """Pgloader's raw copy."""
    program = shutil.which("pgloader")
    if not program:
        print("  pgloader  is not installed")
        return
    known = parse_dsn(dsn)
    place = f"unix:{known['host']}" if known["host"].startswith("/") else known["host"]
    target = f"postgresql://{known['user']}@{place}:{known.get('port', 5432)}/{known['dbname']}"
    with tempfile.NamedTemporaryFile("w", suffix=".load") as file:
        file.write(_LOAD.format(path=path, target=target))
        file.flush()
        started = time.perf_counter()
        ended = subprocess.run([program, file.name], capture_output=True, text=True)
        taken_s = time.perf_counter() - started
    total = [line for line in ended.stdout.splitlines() if "Total import time" in line]
    print(
        f"  pgloader  {taken_s:8.1f} s, {' '.join(total[-1].split()) if total else ended.stdout[-500:]}",
        flush=True,
    )


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [100_000])
