"""An archive in the hands of the real Orthanc and of pgorthanc by turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import files, lifecycle
from tests.interop.archive import Archive
from tests.support.schemas import rows, snapshot

pytestmark = pytest.mark.interop


def test_import_into_an_archive_that_orthanc_made(archive: Archive, tmp_path: Path) -> None:
    by_orthanc = [*files.real()[:3], *files.patient("1")]
    by_import = [*files.real()[3:], *files.patient("2")]
    with archive.orthanc() as rest:
        for file in by_orthanc:
            assert rest.upload(file.content) == file.ids[3]
    assert lifecycle.CHANGED.search(archive.log())
    report = archive.import_(files.write(tmp_path / "in", [*by_import, *by_orthanc]))
    assert (report["imported"], report["known"]) == (len(by_import), len(by_orthanc))
    lifecycle.check_storage(archive)
    with archive.orthanc() as rest:
        held = lifecycle.work(archive, rest, [*by_orthanc, *by_import])
    with archive.orthanc() as rest:
        lifecycle.read(rest, held)


def test_status_knows_what_orthanc_made(archive: Archive) -> None:
    with archive.orthanc() as rest:
        for file in files.patient("1"):
            rest.upload(file.content)
        rest.get("/statistics")
    archive.done("verify schema", "--deep")
    found = archive.done("status")
    assert (found["revision"], found["recorded_revision"], found["schema_version"]) == (1, 1, 6)
    oldest, newest = (tuple(map(int, release.split("."))) for release in found["plugins"].split(" to "))
    assert oldest <= tuple(map(int, archive.program.plugin_version().split(".")[:2])) <= newest
    assert [found[name] for name in ("patients", "studies", "series", "instances")] == [1, 2, 4, 8]
    assert found["compressed_size_bytes"] == sum(len(file.content) for file in files.patient("1"))
    assert found["storage_area"] == ("postgresql" if archive.section["EnableStorage"] else "filesystem")
    trigram = rows(archive.target, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'")
    assert found["trigram"] == ("valid" if trigram == [(1,)] else "unavailable")
    assert found["locks"] == []
    assert found["pending"] == {"statistics_deltas": 0, "child_counts": 0}


def test_orthanc_takes_an_index_made_by_init(archive: Archive, tmp_path: Path) -> None:
    archive.done("init", "--revision", "1")
    made = snapshot(archive.target)
    held = [*files.real(), *files.patient("1"), *files.patient("2")]
    archive.import_(files.write(tmp_path / "in", held))
    with archive.orthanc() as rest:
        held = lifecycle.work(archive, rest, held)
    assert not lifecycle.CHANGED.search(archive.log())
    assert snapshot(archive.target) == made
    assert archive.done("init", "--revision", "1")["repaired"] == []
    with archive.orthanc() as rest:
        lifecycle.read(rest, held)
