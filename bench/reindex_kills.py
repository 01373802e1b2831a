"""Kill `reindex` again and again: afterwards each resource has all of its old rows, or all of its new ones.

reindex_kills.py [RUNS [FILES]]        default: 50 runs, 600 files
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from common import numbers, superuser_dsn

from pgorthanc_cli import db, dicom, ingest, locks
from pgorthanc_cli.schema import initialize
from tests.support import ctseries, reindexing

OLD = dicom.Profile()
NEW = dicom.Profile(extra_main_dicom_tags={"Study": ["PatientAge"], "Series": ["KVP"], "Instance": ["Rows"]})


def main(runs: int = 50, files: int = 600) -> None:
    """Run it, and print how far the killed runs had come."""
    with superuser_dsn() as dsn, tempfile.TemporaryDirectory() as folder:
        target = db.Target(dsn)
        with db.session(target) as conn:
            initialize.init(conn, schema="public", require_idle=locks.require_idle)
        paths = ctseries.write(Path(folder) / "in", files, 4000)
        settings = ingest.Settings(storage_dir=Path(folder) / "area")
        ingest.run_import(target, ingest.ImportPlan([str(path) for path in paths]), settings)
        area = Path(folder) / "area"
        counts = reindexing.killed(target, area, (NEW, OLD), Path(folder), runs, report=print)
    print(f"{runs} kills, {files} files: new resources by run, median {statistics.median(counts)}")


if __name__ == "__main__":
    main(*numbers(__doc__, "N", [50, 600]))
