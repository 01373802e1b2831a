"""An archive in the hands of the real Orthanc and of pgorthanc by turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from schemas import look, snapshot

from interop import files, lifecycle
from interop.archive import Archive
from interop.orthanc import Program
from pgorthanc_cli import db

pytestmark = pytest.mark.interop

PLUGINS = {"1.10.1": "4.0"}  # the releases whose plugin is not 5.0


@pytest.fixture(params=[False, True], ids=["filesystem", "postgresql"])
def archive(request: pytest.FixtureRequest, new_archive: Callable[..., Archive]) -> Archive:
    return new_archive(postgresql_storage=request.param)


def test_import_into_an_archive_that_orthanc_made(archive: Archive, tmp_path: Path) -> None:
    by_orthanc = [*files.real()[:3], *files.patient("1")]
    by_import = [*files.real()[3:], *files.patient("2")]
    with archive.orthanc() as rest:
        for file in by_orthanc:
            assert rest.upload(file.content) == file.ids[3]
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
    found = archive.done("status")
    plugin = PLUGINS.get(archive.program.version(), "5.0")
    assert (found["revision"], found["recorded_revision"], found["schema_version"]) == (1, 1, 6)
    assert plugin in found["plugins"]
    assert [found[name] for name in ("patients", "studies", "series", "instances")] == [1, 2, 4, 8]
    assert found["compressed_size_bytes"] == sum(len(file.content) for file in files.patient("1"))
    assert found["storage_area"] == ("postgresql" if archive.section["EnableStorage"] else "filesystem")
    assert (found["trigram"], found["locks"], found["pending"]) == ("valid", [], {})


def test_import_stays_away_while_orthanc_works(archive: Archive, tmp_path: Path) -> None:
    folder = files.write(tmp_path / "in", files.patient("1"))
    with archive.orthanc() as rest:
        [holder] = [lock for lock in look(archive.target).locks if lock.lock == db.LOCK_INDEX]
        result = archive.pgorthanc("import", folder)
        assert result.exit_code == 5
        for part in (f"pid {holder.pid}", "application", "address 127.0.0.1", str(archive.section["Username"])):
            assert part in result.stderr
        assert rest.get("/instances") == []
    assert archive.import_(folder)["imported"] == 8


def test_orthanc_takes_an_index_made_by_init(archive: Archive, tmp_path: Path) -> None:
    archive.done("init", "--revision", "1")
    made = snapshot(archive.target)
    held = [*files.real(), *files.patient("1"), *files.patient("2")]
    archive.import_(files.write(tmp_path / "in", held))
    with archive.orthanc() as rest:
        held = lifecycle.work(archive, rest, held)
    assert snapshot(archive.target) == made
    assert archive.done("init", "--revision", "1")["repaired"] == []
    with archive.orthanc() as rest:
        lifecycle.read(rest, held)
