"""An archive that a real Orthanc kept in SQLite is the same archive in PostgreSQL, answer by answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from pgorthanc_cli import migrate
from pgorthanc_cli.migrate.sources import sqlite
from pgorthanc_cli.progress import Progress
from tests.interop import files, lifecycle
from tests.interop.archive import Archive
from tests.interop.files import Dicom
from tests.interop.orthanc import DoesNotStart, Rest
from tests.support import migrating
from tests.support.schemas import rows, snapshot

pytestmark = pytest.mark.interop

SERVER = "interop-server"
OPTIONS = {
    "DatabaseServerIdentifier": SERVER,
    "DicomModalitiesInDatabase": True,
    "OrthancPeersInDatabase": True,
    "LogExportedResources": True,
    "OverwriteInstances": True,
    "HttpTimeout": 20,
}
HELD = [*files.real(), *(file for number in "12345" for file in files.patient(number, 2, 1, 2))]
QUERIES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Patient", {"PatientID": "*"}),
    ("Patient", {"PatientName": "name*"}),
    ("Study", {"StudyInstanceUID": "1.2.1.1"}),
    ("Study", {"PatientID": "*2*", "PatientName": "*"}),
    ("Study", {"StudyDate": "19000101-20301231"}),
    ("Series", {"Modality": "CT"}),
    ("Instance", {"SOPInstanceUID": "1.2.1.1.1.1\\1.2.1.2.1.2"}),
)


@pytest.fixture
def archive(new_archive: Callable[..., Archive]) -> Archive:
    return new_archive(**OPTIONS)


def with_sqlite(archive: Archive) -> Any:
    """An Orthanc on the SQLite index, with the same configuration otherwise."""
    return archive.orthanc(PostgreSQL={**archive.section, "EnableIndex": False})


def labels(rest: Rest) -> bool:
    """Whether this Orthanc knows labels on both sides."""
    return bool(rest.get("/system").get("HasLabels"))


def live(rest: Rest) -> list[Dicom]:
    """All that leaves a trace in an index; the files that are held afterwards."""
    for file in HELD:
        rest.upload(file.content)
    study, series, patient = HELD[-1].ids[1], HELD[-1].ids[2], HELD[-1].ids[0]
    rest.put(f"/studies/{study}/metadata/1024", "of the user: [red] Ünïcode 山田 \\ \t \n end")
    rest.put(f"/patients/{patient}/metadata/2048", "")
    rest.put(f"/studies/{study}/attachments/1025", "attached by the user")
    for number in "24":
        rest.put(f"/patients/{files.patient(number)[0].ids[0]}/protected", "1")
    unprotected = files.patient("3")[0].ids[0]
    rest.put(f"/patients/{unprotected}/protected", "1")
    rest.put(f"/patients/{unprotected}/protected", "0")
    if labels(rest):
        rest.put(f"/studies/{study}/labels/seen", "")
        rest.put(f"/series/{series}/labels/to-do", "")
    gone = HELD[0]
    rest.delete(f"/patients/{gone.ids[0]}")
    rest.upload(HELD[1].content)  # overwritten: its rows are new, its old change is gone
    rest.put("/modalities/pacs", '["PACS", "127.0.0.1", 104]')
    rest.put("/peers/itself", f'["{rest.url}/"]')
    rest.post("/peers/itself/store", {"Resources": [HELD[2].ids[3]]})
    rest.post(f"/studies/{HELD[8].ids[1]}/anonymize", {"Synchronous": True})
    return [file for file in HELD if file.ids[0] != gone.ids[0]]


def said(rest: Rest) -> dict[str, Any]:
    """Every answer that should not change."""
    answers = lifecycle.answers(rest)
    answers["exports"] = rest.get("/exports?limit=1000")
    answers["last"] = rest.get("/changes?last")
    answers["modalities"] = rest.get("/modalities?expand")
    answers["peers"] = {name: rest.get(f"/peers/{name}/configuration") for name in rest.get("/peers")}
    for number, (level, query) in enumerate(QUERIES):
        answers[f"find {number}"] = sorted(rest.find(level, **query))
    for name in lifecycle.LEVELS:
        for public_id in rest.get(f"/{name}"):
            place = f"/{name}/{public_id}"
            answers[f"{place}/statistics"] = rest.get(f"{place}/statistics")
            for attachment in rest.get(f"{place}/attachments"):
                where = f"{place}/attachments/{attachment}"
                answers[where] = (rest.send("GET", f"{where}/md5"), rest.send("GET", f"{where}/data"))
            if labels(rest):
                answers[f"{place}/labels"] = rest.get(f"{place}/labels")
    return answers


def moved(archive: Archive, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Live with SQLite, convert; the answers before, and what the conversion said."""
    with with_sqlite(archive) as rest:
        live(rest)
    with with_sqlite(archive) as rest:  # a new one: only the running one knows what is not stable yet
        before = said(rest)
    assert len(before["exports"]["Exports"]) == 1
    kept = files_of(archive)
    converted = archive.done("migrate-sqlite", *words, "--verify-hashes")
    assert files_of(archive) == kept
    assert (converted["verified"], converted["skipped_rows"], converted["server_identifier"]) == (
        True,
        0,
        SERVER,
    )
    assert converted["files"]["hashed"] == converted["files"]["checked"] > 0
    assert (converted["files"]["missing"], converted["files"]["differing"]) == (0, 0)
    return before, converted


def files_of(archive: Archive) -> dict[str, tuple[int, int]]:
    found = [archive.folder / "index", *archive.storage.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()}


def check_the_same(archive: Archive, before: dict[str, Any]) -> None:
    (archive.folder / "index").rename(archive.folder / "index-of-sqlite")
    with archive.orthanc() as rest:
        after = said(rest)
        assert after.keys() == before.keys()
        assert [name for name in before if before[name] != after[name]] == []
    assert not lifecycle.CHANGED.search(archive.log())
    with archive.orthanc() as rest:
        new = files.patient("8001")
        assert [rest.upload(file.content) for file in new] == [file.ids[3] for file in new]
        assert rest.get("/changes?last")["Last"] > before["last"]["Last"]
        rest.delete(f"/studies/{HELD[-1].ids[1]}")
        rest.delete(f"/patients/{new[0].ids[0]}")
        assert new[0].ids[0] not in rest.get("/patients")
    lifecycle.check_storage(archive)


@pytest.mark.parametrize("revision", [1, 10])
def test_every_answer_is_the_same(archive: Archive, revision: int) -> None:
    """At revision 10 after a downgrade: the plugins of this machine work with revision 1."""
    before, _ = moved(archive, "--to-revision", str(revision))
    migrating.require_index(archive.target, revision)
    archive.done("verify schema", "--deep")
    if revision > 1:
        archive.done("downgrade", "--to", "1", "--yes")
    check_the_same(archive, before)


def test_into_an_index_that_the_plugin_made(archive: Archive) -> None:
    with archive.orthanc():
        pass
    before, converted = moved(archive)
    assert converted["revision"] == 1
    check_the_same(archive, before)


def test_files_into_large_objects_on_the_way(new_archive: Callable[..., Archive]) -> None:
    archive = new_archive(postgresql_storage=True, **OPTIONS)
    archive.section["EnableStorage"] = False
    before, converted = moved(archive, "--to-revision", "1", "--storage", "postgresql")
    assert converted["large_objects"] == converted["rows"]["attachedfiles"]
    archive.section["EnableStorage"] = True
    archive.storage.rename(archive.folder / "old-storage")
    check_the_same(archive, before)


def test_it_is_the_archive_that_import_makes_of_the_same_files(
    archive: Archive, new_archive: Callable[..., Archive], tmp_path: Path
) -> None:
    folder = files.write(tmp_path / "in", HELD)
    with with_sqlite(archive) as rest:
        for file in HELD:
            rest.upload(file.content)
    archive.done("migrate-sqlite")
    imported = new_archive()
    imported.done("init")
    imported.import_(folder)
    assert archive.dump() == imported.dump()


def test_a_running_orthanc_is_refused_and_a_crashed_one_is_read(archive: Archive, tmp_path: Path) -> None:
    with with_sqlite(archive) as rest:
        held = live(rest)
        refused = archive.pgorthanc("migrate-sqlite")
        assert refused.exit_code == 5
        assert "stop that Orthanc" in refused.stderr
        for name in ("index", "index-wal"):  # what a crash in this moment would leave
            shutil.copyfile(archive.folder / name, tmp_path / name)
        counts = rest.get("/statistics")
    assert (tmp_path / "index-wal").stat().st_size > 0
    converted = migrating.convert(archive.target, tmp_path / "index", server_identifier=SERVER)
    assert converted.resources["instances"] == counts["CountInstances"] > len(held)
    migrating.require_index(archive.target)


def test_an_orthanc_that_is_started_on_the_file_meanwhile_can_write_nothing(archive: Archive) -> None:
    with with_sqlite(archive) as rest:
        rest.upload(HELD[0].content)
    path = archive.folder / "index"
    before = path.read_bytes()
    with sqlite.open_index(path), with_sqlite(archive) as rest:
        rest.refused.append(HELD[1].content)
        with suppress(HTTPError):
            assert rest.post("/instances", HELD[1].content)["Status"] == "Failure"
    assert path.read_bytes() == before


def test_orthanc_does_not_start_on_a_half_index(archive: Archive) -> None:
    with with_sqlite(archive) as rest:
        live(rest)
    path = archive.folder / "index"
    settings = migrate.ConversionSettings(revision=1, server_identifier=SERVER)

    def start_orthanc(progress: Progress) -> None:
        if progress.phase == "prove":
            with pytest.raises(DoesNotStart), archive.orthanc():  # it is being converted: lock 42 is held
                pass
            raise migrating.Interruption

    with pytest.raises(migrating.Interruption):
        migrate.convert(archive.target, path, settings, report=start_orthanc)
    before = snapshot(archive.target)
    content = rows(archive.target, "SELECT count(*), min(value) FROM metadata")
    with pytest.raises(DoesNotStart), archive.orthanc():
        pass
    assert snapshot(archive.target) == before
    assert rows(archive.target, "SELECT count(*), min(value) FROM metadata") == content
    assert migrating.convert(archive.target, path, revision=1, server_identifier=SERVER).resumed
    with archive.orthanc() as rest:
        assert len(rest.get("/instances")) > 0
