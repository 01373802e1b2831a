"""Odd files: the real Orthanc takes and refuses the same ones, and writes the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db, dicom
from tests.interop.archive import Archive
from tests.interop.test_damaged_files import posted
from tests.support.importing import dumped, run
from tests.support.oddfiles import all_of_them

pytestmark = pytest.mark.interop


def test_odd_files(new_archive: Callable[..., Archive], fresh: db.Target, tmp_path: Path) -> None:
    archive = new_archive()
    major, minor, patch = map(int, archive.program.version().split("."))
    names = {}
    for number, odd in enumerate(odd for odd in all_of_them() if not odd.hungry):
        path = tmp_path / f"{number:04}.dcm"
        path.write_bytes(odd.content)
        names[path] = odd.name
    profile = dicom.Profile((major, minor, patch))
    refused = {
        Path(each.path) for each in run(fresh, list(names), tmp_path / "area", profile=profile).refusals
    }
    answers = posted(archive, list(names))
    assert len(answers) == len(names)  # Orthanc survived all of them
    by_orthanc = {path for path, public_id in answers.items() if public_id is None}
    assert {names[path] for path in refused} == {names[path] for path in by_orthanc}
    found, wanted = dumped(fresh), archive.dump()
    assert [part for part in wanted if found[part] != wanted[part]] == []
