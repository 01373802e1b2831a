"""Damaged files: what Orthanc refuses, import refuses; and of what both take, the rows are the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from pgorthanc_cli import db, dicom
from tests.dicom.test_fast_paths import mutated
from tests.faults.damaged import sound_file
from tests.interop.archive import Archive
from tests.support.importing import dumped, run

pytestmark = pytest.mark.interop

COUNT = 400


def posted(archive: Archive, paths: Sequence[Path]) -> dict[Path, str | None]:
    """What Orthanc makes of each: a public id, or None for a refused file; those that take it down are left out."""
    waiting = deque(paths)
    ends: dict[Path, str | None] = {}
    while waiting:
        fatal = False
        try:
            with archive.orthanc() as rest:
                rest.refused.append(b"")  # its log tells of refused files
                while waiting and not fatal:
                    path = waiting.popleft()
                    try:
                        ends[path] = rest.upload(path.read_bytes())
                    except ConnectionError:
                        fatal = True
        except AssertionError:
            if not fatal:
                raise
    return ends


def test_the_same_are_refused_and_the_rows_are_the_same(
    new_archive: Callable[..., Archive], fresh: db.Target, tmp_path: Path
) -> None:
    """Import may refuse a little more, but it takes nothing that Orthanc refuses."""
    random = Random(4)
    files = [tmp_path / f"{number:05}.dcm" for number in range(COUNT)]
    for number, path in enumerate(files):
        path.write_bytes(mutated(sound_file(number), random))
    archive = new_archive()
    major, minor, patch = map(int, archive.program.version().split("."))
    profile = dicom.Profile((major, minor, patch))
    refused = {Path(each.path) for each in run(fresh, files, tmp_path / "area", profile=profile).refusals}
    taken = [path for path in files if path not in refused]
    assert COUNT // 4 < len(taken) < COUNT

    ends = posted(archive, taken)
    assert [path for path, public_id in ends.items() if public_id is None] == []
    assert len(taken) - len(ends) <= COUNT // 100  # Orthanc did not survive them
    found, wanted = dumped(fresh), archive.dump()
    if len(ends) == len(taken):
        assert [part for part in wanted if found[part] != wanted[part]] == []
    for part in ("resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles"):
        assert [row for row in wanted[part] if row not in found[part]] == []

    stricter = [path for path, public_id in posted(archive, sorted(refused)).items() if public_id]
    assert len(stricter) <= COUNT // 50
