"""`reindex` again and again while a real Orthanc overwrites and deletes instances: no row is of two files.

reindex_overwriting.py [RUNS [EDITIONS]]        default: 10 runs, 20 editions of each of 12 instances

The Orthanc is the last one of PGORTHANC_ORTHANC_ROOTS. Ends with 1 if there was a problem.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import numbers
from psycopg2.extensions import make_dsn

sys.path.insert(0, str(Path(__file__).parent.parent))
from pgorthanc_cli import db, dicom, reindex
from pgorthanc_cli.server import embedded
from tests.interop import overwriting
from tests.interop.archive import Archive
from tests.interop.orthanc import programs
from tests.support.real_servers import free_port

EXTRA = {"Study": ["PatientAge"], "Series": ["KVP"], "Instance": ["Rows", "0008,1140"]}


def main(runs: int = 10, editions: int = 20) -> int:
    """Run it with files, and with large objects, in turn; return how many problems there were."""
    program, problems = programs()[-1], 0
    major, minor, patch = map(int, program.version().split("."))
    profile = dicom.Profile((major, minor, patch), extra_main_dicom_tags=EXTRA)
    with tempfile.TemporaryDirectory(prefix="pgorthanc-overwriting-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user when this runs as root
        server = embedded.start(folder / "server", port=free_port(), show_password=True)
        try:
            for number in range(runs):
                objects = bool(number % 2)
                section = {**server.orthanc["PostgreSQL"], "EnableStorage": objects, "Lock": False}
                archive = Archive(
                    program, folder, db.Target(make_dsn(server.dsn)), section,
                    {"OverwriteInstances": True, "ExtraMainDicomTags": EXTRA},
                )  # fmt: skip
                settings = reindex.Settings(
                    None if objects else archive.storage, profile, jobs=1, batch_files=3
                )
                with archive.orthanc(PostgreSQL=section) as rest:
                    outcome = overwriting.storm(archive, rest, settings, editions, seed=number)
                    for patient in rest.get("/patients"):
                        rest.delete(f"/patients/{patient}")
                problems += len(outcome.problems)
                actions = ", ".join(f"{count} {action}" for action, count in outcome.actions.items())
                print(
                    f"{'objects' if objects else 'files'}: {actions}; {outcome.runs} runs of reindex,"
                    f" {outcome.changed} resources changed, {len(outcome.problems)} problems",
                    *outcome.problems[:5],
                    flush=True,
                )
        finally:
            embedded.stop(folder / "server")
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main(*numbers(__doc__, "N", [10, 20])))
