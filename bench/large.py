"""Commands on large indexes: seconds and memory of whole processes, and how they grow with the index.

large.py [--folder FOLDER] [--files N] [--only WORDS]... [INSTANCES ...]        default: 100000 1000000

Each index is filled by SQL at revision 1 (2.5 kB per instance), with a storage folder in which each attachment has
a file of the right size: hard links of sparse files, about 80 bytes each. After some commands at revision 1 it is
upgraded, and the others follow at the newest revision. With --folder the server, the indexes and the storage folders
are kept, and used again by the next run; --only runs the commands that begin with these words. 10,000,000 instances
need 35 GB of disk and take half an hour to fill.

CPU seconds are those of the command and, separately, of PostgreSQL. Memory is the peak of all processes of the
command together, without PostgreSQL's; temporary files are those that PostgreSQL wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import peak_bytes
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, dicom, index, locks, reindex
from pgorthanc_cli.reindex.model import SERIES
from pgorthanc_cli.reindex.plan import Planner
from pgorthanc_cli.reindex.selection import Selected
from pgorthanc_cli.schema import catalog, initialize
from pgorthanc_cli.server import embedded

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import filler
from tests.support.ctseries import write

_FILE_BYTES = 524_288  # as filler says
_LINKS = 60_000  # ext4 has at most 65,000 names for a file
# Statistics are those of the VACUUM after the filling: nothing else shall work during a measurement.
_MEASURING = {"autovacuum": "off", "max_wal_size": "8GB"}
_FILLING = {
    **_MEASURING, "fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"
}  # fmt: skip


def _no_remark(result: dict[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Figures:
    """What one command took."""

    elapsed_s: float
    cpu_s: float
    server_cpu_s: float
    peak_bytes: int
    temp_bytes: int
    remark: str

    def __str__(self) -> str:
        return (
            f"{self.elapsed_s:8.2f} s  CPU {self.cpu_s:7.2f} s, server {self.server_cpu_s:7.2f} s  "
            f"{self.peak_bytes / 1e6:7.1f} MB  temporary {self.temp_bytes / 1e9:5.2f} GB  {self.remark}"
        )


@dataclass
class Archive:
    """An index and its storage folder."""

    folder: Path
    name: str
    only: tuple[str, ...]
    figures: dict[str, Figures] = field(default_factory=dict)

    @property
    def target(self) -> db.Target:
        """The database, as the role that owns it."""
        return db.Target(make_dsn(self.admin_dsn, user="orthanc"))

    @property
    def admin_dsn(self) -> str:
        """The database, as the superuser."""
        with embedded.attach(self.folder / "server", superuser=True) as admin:
            return make_dsn(admin.dsn, dbname=self.name)

    @property
    def area(self) -> Path:
        """The storage folder."""
        return self.folder / f"area_{self.name}"

    def run(
        self,
        words: str,
        *more: str,
        codes: tuple[int, ...] = (0, 6),
        remark: Callable[[dict[str, Any]], str] = _no_remark,
    ) -> None:
        """Run a command, print what it took, and keep it."""
        if self.only and not words.startswith(self.only):
            return
        dsn = self.target.dsn
        command = [sys.executable, "-m", "pgorthanc_cli", *words.split(), "--uri", dsn, *more, "--json"]
        before, temp_before = self._cpu_s(), self._temp_bytes()
        started = time.perf_counter()
        peak, output = peak_bytes([*command, "--quiet"], (0, 6))
        elapsed_s = time.perf_counter() - started
        time.sleep(1)  # the statistics of a session arrive after its end
        after = self._cpu_s()
        self.figures[words] = Figures(
            elapsed_s, after[0] - before[0], after[1] - before[1], peak, self._temp_bytes() - temp_before,
            remark(json.loads(output)),
        )  # fmt: skip
        print(f"  {words:28} {self.figures[words]}", flush=True)

    def _cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of all commands, and of all processes of the server."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = embedded.status(self.folder / "server")
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                values = stat.read_text().rpartition(")")[2].split()
                if stat.parent.name == str(status.pid):
                    ticks += sum(map(int, values[11:15]))  # with those that have ended
                elif values[1] == str(status.pid):
                    ticks += sum(map(int, values[11:13]))
        return usage.ru_utime + usage.ru_stime, ticks / os.sysconf("SC_CLK_TCK")

    def _temp_bytes(self) -> int:
        with db.session(self.target, readonly=True, autocommit=True, need_schema=False) as conn:
            query = "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
            return int(db.value(conn, query))


def restart(server: Path, settings: Mapping[str, str]) -> None:
    """Start the server with other settings."""
    with (
        embedded.attach(server, superuser=True) as admin,
        db.session(admin, autocommit=True, need_schema=False) as conn,
        conn.cursor() as cur,
    ):
        cur.execute("ALTER SYSTEM RESET ALL")
        for name, value in settings.items():
            cur.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    embedded.stop(server)
    embedded.start(server)


def fill(archive: Archive, instances: int) -> None:
    """Create the index at revision 1 and its storage folder, unless a run before did."""
    server = archive.folder / "server"
    with (
        embedded.attach(server, superuser=True) as admin,
        db.session(admin, autocommit=True, need_schema=False) as conn,
    ):
        filled = db.rows(conn, "SELECT 1 FROM pg_database WHERE datname = %s", archive.name)
    if not filled:
        restart(server, _FILLING)
        started = time.perf_counter()
        create(archive, revision=1)
        with db.session(db.Target(archive.admin_dsn)) as superuser:
            filler.fill(superuser, instances, full_rows=True)
        print(f"  filled in {time.perf_counter() - started:.0f} s", flush=True)
    if not archive.area.exists():
        write_links(archive)
    restart(server, _MEASURING)


def create(archive: Archive, revision: int) -> None:
    """Create a database with an empty index, which the folder's role owns."""
    with (
        embedded.attach(archive.folder / "server", superuser=True) as admin,
        db.session(admin, autocommit=True, need_schema=False) as conn,
        conn.cursor() as cur,
    ):
        cur.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(archive.name)))
        cur.execute(sql.SQL("CREATE DATABASE {} OWNER orthanc").format(sql.Identifier(archive.name)))
    with db.session(archive.target) as conn:
        initialize.init(
            conn, schema="public", require_idle=locks.require_idle, revision=revision, with_storage=False
        )


def write_links(archive: Archive) -> None:
    """Write a file for each attachment."""
    with db.session(archive.target, readonly=True) as conn, conn.cursor("uuids") as cur:
        cur.itersize = 10_000
        cur.execute('SELECT uuid FROM index.attachedfiles ORDER BY uuid COLLATE "C"')
        parent = original = Path()
        for number, (uuid,) in enumerate(cur):
            path = archive.area / uuid[:2] / uuid[2:4] / uuid
            if path.parent != parent:
                parent = path.parent
                parent.mkdir(parents=True, exist_ok=True)
            if number % _LINKS == 0:
                original = path
                with path.open("wb") as file:
                    file.truncate(_FILE_BYTES)
            else:
                os.link(original, path)


def measure(archive: Archive, files: Path) -> None:
    """Run all commands."""
    with db.session(archive.target, readonly=True) as conn:
        size_bytes = db.value(conn, "SELECT pg_database_size(current_database())")
        layout = catalog.read_layout(conn, "public")
    print(f"{archive.name}: {size_bytes / 1e9:.1f} GB", flush=True)
    if layout and layout.revision == 1:
        archive.run("upgrade --plan")
        archive.run("upgrade --phase prepare")
        archive.run("upgrade --phase switch", remark=lambda done: f"blocked {done['blocked_s']:.2f} s")
        archive.run("upgrade --phase finish")
        with (
            db.session(db.Target(archive.admin_dsn), autocommit=True) as conn,
            conn.cursor() as cur,
        ):
            cur.execute("VACUUM ANALYZE")
    archive.run("status")
    archive.run("doctor")
    archive.run("doctor --deep")
    archive.run("verify schema")
    archive.run("verify schema --deep")
    archive.run("storage show")
    archive.run("storage show --by modality")
    archive.run("check-lock")
    archive.run("downgrade --plan", "--to", "5")
    archive.run("reindex --check")
    if "plan".startswith(archive.only or "plan"):
        plan_reindex(archive)
    archive.run(
        "verify storage --depth size", "--storage-dir", str(archive.area),
        remark=lambda report: f"{report['checked']:,} checked, {report['counts']}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=archive.folder) as folder:
        archive.run("support-bundle", str(Path(folder) / "bundle.tar.gz"))
    with tempfile.TemporaryDirectory(dir=archive.folder) as folder:
        archive.run("import", str(files), "--storage-dir", folder)


def plan_reindex(archive: Archive) -> None:
    """Print how long it takes to choose the deciding file of every series; none of them is read."""
    settings = reindex.Settings(archive.area, dicom.Profile(), levels=frozenset({SERIES}))
    started = time.perf_counter()
    with db.session(archive.target, readonly=True) as conn:
        selected = Selected(conn, settings.selection)
        planner = Planner(conn, index.Capabilities.read(conn), settings, selected)
        files = sum(len(batch.items) for batch in planner.batches(selected.patients()))
    print(
        f"  plan of reindex --level series {time.perf_counter() - started:6.2f} s, {files:,} files",
        flush=True,
    )


@contextmanager
def folder_of(path: Path | None) -> Iterator[Path]:
    """Yield the folder, or a temporary one for the length of a block, with a running server in it."""
    with tempfile.TemporaryDirectory(prefix="pgorthanc-bench-") as temporary:
        folder = path or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # PostgreSQL runs as another user when this runs as root
        embedded.start(folder / "server")
        try:
            yield folder
        finally:
            embedded.stop(folder / "server")


def main(arguments: argparse.Namespace) -> None:
    """Measure all sizes; print the ratios of the last one to the first one."""
    archives = []
    with folder_of(arguments.folder) as folder, tempfile.TemporaryDirectory() as sources:
        files = Path(sources)
        write(files, arguments.files, 8192, seed=os.getpid())  # new ones for an index of an earlier run
        empty = Archive(folder, "large_empty", tuple(arguments.only))
        for instances in arguments.instances:
            archives.append(Archive(folder, f"large_{instances}", tuple(arguments.only)))
            fill(archives[-1], instances)
            create(empty, catalog.newest())
            with tempfile.TemporaryDirectory(dir=folder) as area:
                print("an empty index", flush=True)
                empty.run("import", str(files), "--storage-dir", area)
            measure(archives[-1], files)
    first, last = archives[0], archives[-1]
    if first is not last:
        print(f"{last.name} / {first.name}: elapsed, CPU with the server, memory")
        for words, figures in last.figures.items():
            if before := first.figures.get(words):
                cpu = (figures.cpu_s + figures.server_cpu_s) / (before.cpu_s + before.server_cpu_s)
                memory = figures.peak_bytes / before.peak_bytes
                print(f"  {words:28} {figures.elapsed_s / before.elapsed_s:6.2f} {cpu:6.2f} {memory:6.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("instances", type=int, nargs="*", default=[100_000, 1_000_000], metavar="INSTANCES")
    parser.add_argument("--folder", type=Path, help="keep the server, the indexes and storage folders here")
    parser.add_argument("--files", type=int, default=4000, help="files to import")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORDS", help="commands that begin so; repeatable"
    )
    main(parser.parse_args())
