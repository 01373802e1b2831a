"""What import writes for a file is what the real Orthanc writes for it, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from interop import files, lifecycle
from interop.archive import Archive
from pgorthanc_cli import db, storage

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("postgresql_storage", [False, True], ids=["filesystem", "postgresql"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_rows_and_files(
    new_archive: Callable[..., Archive], tmp_path: Path, postgresql_storage: bool, compressed: bool
) -> None:
    by_orthanc, by_import = (new_archive(postgresql_storage=postgresql_storage) for _ in range(2))
    paths = sorted(path for name in ("test_files", "charset_files") for path in (files.DATA / name).glob("*.dcm"))
    with by_import.orthanc(StorageCompression=compressed):
        pass  # it makes its index
    with by_orthanc.orthanc(StorageCompression=compressed) as rest:
        refused = {str(path) for path in paths if rest.upload(path.read_bytes()) is None}
    result = by_import.pgorthanc("import", "--orthanc-version", by_import.program.version(), "--json", *paths)
    report = json.loads(result.stdout)
    assert {refusal["path"] for refusal in report["refusals"]} == refused
    assert by_import.dump() == by_orthanc.dump()
