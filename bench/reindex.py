"""`reindex` compared with the real Orthanc's /reconstruct, on the same files and one server.

    reindex.py [--files N] [--size BYTES] [--storage filesystem|postgresql] [--reconstructed N] [--passes N]

CT-like files (40 elements, 100 a study, 50 a series) are imported; then ExtraMainDicomTags gets entries. In each
pass Orthanc reconstructs some studies, one after the other, and pgorthanc does everything, in new copies of the
same database; the ratios in the end are those of the medians. A private PostgreSQL server with default settings
(fsync on). Rates include the start of the program; those in parentheses do not. CPU seconds are those of program
and server together: they depend less on what else the machine does than rates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2
from common import peak_bytes
from ingest import cpu_s
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli import ingest as importer
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.server import embedded
from tests.interop import orthanc
from tests.support.ctseries import write

_REAL = "Orthanc"
# In the order of a pass: label, name of the copy, options.
_RUNS = (
    (_REAL, "real", ()),
    ("reindex", "everything", ()),
    ("reindex, nothing to change", "everything", ()),
    ("reindex, above the instances", "series", ("--level", "patient,study,series")),
)
EXTRA = {"Study": ["PatientAge"], "Series": ["KVP"], "Instance": ["Rows"]}


class Quiet(orthanc.Program):
    """An Orthanc that writes no verbose log, which would slow it down."""

    def run(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return super().run(*(a for a in arguments if a != "--verbose"), **options)


def configuration(target: db.Target, folder: Path, *, large_objects: bool) -> dict[str, Any]:
    """Orthanc's configuration, with the new tags."""
    given = target.parameters()
    uri = f"postgresql://{given['user']}@/{given['dbname']}?host={given['host']}&port={given['port']}"
    return {
        "DicomServerEnabled": False, "AuthenticationEnabled": False, "RemoteAccessAllowed": False,
        "StorageDirectory": str(folder / "area"), "IndexDirectory": str(folder), "ExtraMainDicomTags": EXTRA,
        "PostgreSQL": {"EnableIndex": True, "EnableStorage": large_objects, "ConnectionUri": uri},
    }  # fmt: skip


class Cpu:
    """CPU seconds of the server, and of what this process has started, since the beginning."""

    def __init__(self, server: int, *, running: bool = False) -> None:
        """Take the pid of the server; `running`: the program has started before."""
        self._server, self._running, self._mine = server, running, os.getpid()
        self._before = self._now()

    def _now(self) -> float:
        times = os.times()
        server = cpu_s(lambda pid, parent: self._server in (pid, parent), ended=self._server)
        if self._running:
            return server + cpu_s(lambda pid, parent: parent == self._mine and pid != self._server)
        return server + times.children_user + times.children_system

    def per_1000(self, count: int) -> float:
        """Return seconds for each thousand."""
        return (self._now() - self._before) * 1000 / count


def reconstruct(document: dict[str, Any], folder: Path, count: int, server: int) -> tuple[float, float]:
    """Let Orthanc reconstruct studies, until there are so many instances; return its rate, and CPU."""
    program = orthanc.programs()[-1]
    (folder / "orthanc").mkdir(exist_ok=True)
    done, took_s = 0, 0.0
    with orthanc.running(Quiet(**vars(program)), document, folder / "orthanc") as rest:
        studies = {
            study: len(rest.get(f"/studies/{study}/instances")) for study in sorted(rest.get("/studies"))
        }
        cpu = Cpu(server, running=True)
        for study, instances in studies.items():
            started = time.perf_counter()
            rest.send("POST", f"/studies/{study}/reconstruct", b"{}")
            took_s += time.perf_counter() - started
            done += instances
            if done >= count:
                break
        used = cpu.per_1000(done)
    label = f"Orthanc {program.version()}, /reconstruct"
    print(
        f"  {label:34} {done / took_s:9,.0f}/s   CPU s per 1,000: {used:7.3f}   ({done} instances)",
        flush=True,
    )
    return done / took_s, used


def reindex(
    label: str, document: dict[str, Any], folder: Path, count: int, server: int, *options: str
) -> tuple[float, float]:
    """Run the command; return its rate, and CPU."""
    path = folder / "reindex.json"
    path.write_text(json.dumps(document))
    words = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "reindex",
        "--config",
        str(path),
        "--json",
        "-q",
        *options,
    ]
    os.sync()
    cpu = Cpu(server)
    started = time.perf_counter()
    peak, output = peak_bytes(words)
    rate = count / (time.perf_counter() - started)
    used = cpu.per_1000(count)
    result = json.loads(output)
    if result["unreadable"] or result["instances"] != count:
        raise SystemExit(f"unexpected: {result['instances']} instances, {result['unreadable'][:3]}")
    print(
        f"  {label:34} {rate:9,.0f}/s   CPU s per 1,000: {used:7.3f}"
        f"   ({result['instances_per_s']:,.0f}/s; {result['files_read']:,} files,"
        f" {result['bytes_read'] / 1e6:,.1f} MB read, {sum(result['rows_changed'].values()):,} resources changed,"
        f" peak {peak / 1e6:,.0f} MB)",
        flush=True,
    )
    return rate, used


def main() -> None:
    """Measure, and print rates and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=8000)
    parser.add_argument("--storage", choices=["filesystem", "postgresql"], default="filesystem")
    parser.add_argument("--reconstructed", type=int, default=500, help="how many instances Orthanc does")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--revision", type=int, default=1, help="that Orthanc's plugin knows")
    parser.add_argument("--folder", help="where files and databases are")
    given = parser.parse_args()
    objects = given.storage == "postgresql"
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as work,
        embedded.attach(Path(work) / "server", superuser=True) as server,
    ):
        folder, conn = Path(work), psycopg2.connect(server.dsn)
        conn.autocommit = True

        def create(database: str, template: str) -> db.Target:
            conn.cursor().execute(f"CREATE DATABASE {database} TEMPLATE {template}")
            return db.Target(make_dsn(server.dsn, dbname=database))

        target = create("filled", "template1")
        with db.session(target) as session:
            initialize.init(
                session, schema="public", require_idle=locks.require_idle, revision=given.revision
            )
        files = write(folder / "in", given.files, given.size)
        # Linked: a copy would push half of the files out of memory.
        settings = importer.Settings(
            storage_dir=None if objects else folder / "area", link=importer.Link.HARDLINK
        )
        importer.run_import(target, importer.ImportPlan([str(folder / "in")]), settings)
        with db.session(target, autocommit=True) as session, session.cursor() as cur:
            cur.execute("VACUUM ANALYZE")
        print(f"{given.files:,} files of {files[0].stat().st_size:,} bytes, {given.storage}", flush=True)
        process = Path(f"/proc/{conn.info.backend_pid}/stat").read_text()
        pid = int(process.rpartition(")")[2].split()[1])  # its parent
        figures: dict[str, list[tuple[float, float]]] = {}
        for turn in range(given.passes):
            copies = {name: create(f"{name}{turn}", "filled") for name in {run[1] for run in _RUNS}}
            for label, name, options in _RUNS:
                document = configuration(copies[name], folder, large_objects=objects)
                if label == _REAL:
                    measured = reconstruct(document, folder, given.reconstructed, pid)
                else:
                    measured = reindex(label, document, folder, given.files, pid, *options)
                figures.setdefault(label, []).append(measured)
        medians = {
            label: [statistics.median(column) for column in zip(*rows, strict=True)]
            for label, rows in figures.items()
        }
        real = medians.pop(_REAL)
        for label, (rate, used) in medians.items():
            print(f"{label:30} {rate / real[0]:7,.0f} times the rate, {real[1] / used:5,.0f} times less CPU")
        conn.close()


if __name__ == "__main__":
    main()
