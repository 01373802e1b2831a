"""`reindex` compared with the real Orthanc's /reconstruct, on the same files and one server.

    reindex.py [--files N] [--size BYTES] [--storage filesystem|postgresql] [--reconstructed N]

CT-like files (40 elements, 100 a study, 50 a series) are imported; then ExtraMainDicomTags gets entries. Orthanc
reconstructs some studies, one after the other; pgorthanc does everything, in copies of the same database. A
private PostgreSQL server with default settings (fsync on). Rates include the start of the program; those in
parentheses do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2
from common import peak_bytes
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, ingest, locks
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.server import embedded
from tests.interop import orthanc
from tests.support.ctseries import write

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


def reconstruct(document: dict[str, Any], folder: Path, count: int) -> float:
    """Let Orthanc reconstruct studies, until there are so many instances; return its rate."""
    program = orthanc.programs()[-1]
    (folder / "orthanc").mkdir()
    done, took_s = 0, 0.0
    with orthanc.running(Quiet(**vars(program)), document, folder / "orthanc") as rest:
        for study in sorted(rest.get("/studies")):
            instances = len(rest.get(f"/studies/{study}/instances"))
            started = time.perf_counter()
            rest.send("POST", f"/studies/{study}/reconstruct", b"{}")
            took_s += time.perf_counter() - started
            done += instances
            if done >= count:
                break
    print(
        f"  Orthanc {program.version()}, /reconstruct      {done / took_s:9,.0f}/s   ({done} instances)",
        flush=True,
    )
    return done / took_s


def reindex(label: str, document: dict[str, Any], folder: Path, count: int, *options: str) -> float:
    """Run the command; return its rate."""
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
    started = time.perf_counter()
    peak, output = peak_bytes(words)
    rate = count / (time.perf_counter() - started)
    result = json.loads(output)
    if result["unreadable"] or result["instances"] != count:
        raise SystemExit(f"unexpected: {result['instances']} instances, {result['unreadable'][:3]}")
    print(
        f"  {label:34} {rate:9,.0f}/s   ({result['instances_per_s']:,.0f}/s; {result['files_read']:,} files,"
        f" {result['bytes_read'] / 1e6:,.1f} MB read, {sum(result['rows_changed'].values()):,} resources changed,"
        f" peak {peak / 1e6:,.0f} MB)",
        flush=True,
    )
    return rate


def main() -> None:
    """Measure, and print rates and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=8000)
    parser.add_argument("--storage", choices=["filesystem", "postgresql"], default="filesystem")
    parser.add_argument("--reconstructed", type=int, default=500, help="how many instances Orthanc does")
    parser.add_argument("--revision", type=int, default=1, help="that Orthanc's plugin knows")
    parser.add_argument("--folder", help="where files and databases are")
    given = parser.parse_args()
    objects = given.storage == "postgresql"
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as name,
        embedded.attach(Path(name) / "server", superuser=True) as server,
    ):
        folder, conn = Path(name), psycopg2.connect(server.dsn)
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
        settings = ingest.Settings(storage_dir=None if objects else folder / "area")
        ingest.run_import(target, ingest.ImportPlan([str(folder / "in")]), settings)
        with db.session(target, autocommit=True) as session, session.cursor() as cur:
            cur.execute("VACUUM ANALYZE")
        copies = [create(database, "filled") for database in ("everything", "series", "real")]
        documents = [configuration(copy, folder, large_objects=objects) for copy in copies]
        print(f"{given.files:,} files of {files[0].stat().st_size:,} bytes, {given.storage}", flush=True)
        everything = reindex("reindex", documents[0], folder, given.files)
        again = reindex("reindex, nothing to change", documents[0], folder, given.files)
        above = reindex("reindex, above the instances", documents[1], folder, given.files,
                        "--level", "patient,study,series")  # fmt: skip
        rate = reconstruct(documents[2], folder, given.reconstructed)
        print(f"  ratios: {everything / rate:,.0f}, {again / rate:,.0f}, {above / rate:,.0f}")
        conn.close()


if __name__ == "__main__":
    main()
