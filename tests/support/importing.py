"""Running an import in a test, and checking what it left."""

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

# The command, with batches so small that there are many moments between them.
SMALL_BATCHES = [sys.executable, "-m", "pgorthanc_cli", "import", "--batch-files", "20"]


def run(
    target: db.Target, paths: Sequence[Path], area: Path | None, jobs: int = 1, **settings: Any
) -> ingest.ImportResult:
    plan = ingest.ImportPlan(list(map(os.fspath, paths)), jobs=jobs)
    return ingest.run_import(target, plan, ingest.Settings(storage_dir=area, **settings))


def warnings_of(target: db.Target, paths: Sequence[Path], area: Path | None, **settings: Any) -> list[str]:
    """Import, and return the warnings."""
    warnings: list[str] = []
    ingest.run_import(
        target,
        ingest.ImportPlan(list(map(os.fspath, paths)), jobs=1),
        ingest.Settings(storage_dir=area, **settings),
        report=lambda batch: warnings.extend(batch.warnings),
    )
    return warnings


def files_read(batch: ingest.Batch) -> list[str]:
    """The names of the files of a batch that were read."""
    paths = [item.source.path for item in batch.items]
    paths += [refusal.path for refusal in batch.refusals]
    return [os.path.basename(path) for path in paths]


def ends(result: ingest.ImportResult) -> tuple[int, int, int, int]:
    return result.imported, result.known, result.overwritten, result.refused


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
