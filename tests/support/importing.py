"""Running an import in a test, and looking at what it left."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, ingest
from pgorthanc_cli.ingest.journal import FOLDER
from tests.support.indexdump import attachments, dump

# The program, with batches so small that there are many moments between them.
SMALL_BATCHES = [
    sys.executable,
    "-c",
    "from pgorthanc_cli.ingest import pipeline; pipeline.BATCH_FILES = 20; from pgorthanc_cli.cli import main; main()",
]


def run(
    target: db.Target, paths: Sequence[Path], area: Path | None, jobs: int = 1, **settings: Any
) -> ingest.Report:
    tally = ingest.Tally(dry_run=settings.get("dry_run", False))
    for batch in ingest.run(
        target,
        map(os.fspath, paths),
        ingest.Settings(storage_dir=area, **settings),
        jobs=jobs,
    ):
        tally.add(batch)
    return tally.report()


def ends(report: ingest.Report) -> tuple[int, int, int, int]:
    return report.imported, report.known, report.overwritten, report.refused


def dumped(target: db.Target) -> dict[str, Any]:
    with db.session(target) as conn:
        return dump(conn)


def stored_files(area: Path) -> dict[str, tuple[int, str]]:
    """All that is in a filesystem area: name -> size and MD5; its journals must be gone."""
    assert not (area / FOLDER).exists()
    return {
        path.name: (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())
        for path in area.rglob("*")
        if path.is_file()
    }


def check_area(target: db.Target, area: Path) -> None:
    """Each row has its file, each file its row."""
    with db.session(target) as conn:
        assert stored_files(area) == attachments(conn)
