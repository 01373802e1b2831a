"""`reindex` and the real Orthanc: after each other, and at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pgorthanc_cli import dicom, reindex
from tests.interop import lifecycle, overwriting
from tests.interop.archive import Archive
from tests.interop.test_import_beside import check, meanwhile, working
from tests.support import reindexing, samples
from tests.support.importing import run
from tests.support.schemas import rows

pytestmark = pytest.mark.interop

# No name of a retired tag: Orthanc's dictionary may take it for a private one.
EXTRA = {
    "Patient": ["0010,4000"],
    "Study": ["PatientAge"],
    "Series": ["KVP"],
    "Instance": ["Rows", "0008,1140"],
}


@pytest.fixture
def received(new_archive: Callable[..., Archive], tmp_path: Path) -> Callable[..., Archive]:
    """Makes what an Orthanc without extra tags has received; this one has them, if it can."""

    def make(*, postgresql_storage: bool) -> Archive:
        made = new_archive(postgresql_storage=postgresql_storage, ExtraMainDicomTags=EXTRA)
        with working(made):
            pass  # it makes the index
        profile = dicom.Profile(version(made))
        run(made.target, files(tmp_path / "in"), area(made), profile=profile, concurrent=True)
        return made

    return make


def files(folder: Path) -> list[Path]:
    """Four studies of six instances in two series, whose files disagree above the instance."""
    folder.mkdir(exist_ok=True)
    for n in range(24):
        reference = Dataset()
        reference.ReferencedSOPInstanceUID = f"9.{n}"
        more = {"PatientComments": f"c{n % 3}", "PatientAge": f"{n:03}Y", "KVP": str(n)}
        content = samples.instance(
            f"P{n // 12}", f"1.2.{n // 6}", f"1.2.1.{n // 3}", n + 1, StudyDescription=f"d{n}", PatientSex="MFO"[n % 3],
            ReferencedImageSequence=[reference], PixelData=bytes(80_000), **more,
        )  # fmt: skip
        (folder / f"{n:02}.dcm").write_bytes(content)
    return sorted(folder.iterdir())


def version(archive: Archive) -> tuple[int, int, int]:
    major, minor, patch = map(int, archive.program.version().split("."))
    return major, minor, patch


def area(archive: Archive) -> Path | None:
    return None if archive.section["EnableStorage"] else archive.storage


def settings(archive: Archive, **more: Any) -> reindex.Settings:
    profile = dicom.Profile(version(archive), extra_main_dicom_tags=EXTRA)
    return reindex.Settings(area(archive), profile, jobs=1, **more)


def test_a_reconstruction_after_it_changes_nothing_and_the_index_is_enough(
    received: Callable[..., Archive],
) -> None:
    archive = received(postgresql_storage=False)
    if version(archive) < (1, 11, 0):
        # It has no extra tags, and reconstructs in another order: its own import is right already.
        assert reindex.reindex(archive.target, settings(archive, keep_first=True)).changes == ()
        return
    result = reindex.reindex(archive.target, settings(archive))
    assert (result.files_read, result.unreadable) == (24, ())
    before = reindexing.rewritten(archive.target)
    with working(archive) as rest:
        for study in rest.get("/studies"):
            found = rest.get(f"/studies/{study}?requestedTags=PatientAge")
            assert found["RequestedTags"]["PatientAge"] == found["MainDicomTags"]["PatientAge"]
        for patient in rest.get("/patients"):
            rest.send("POST", f"/patients/{patient}/reconstruct", b"{}")
    assert reindexing.rewritten(archive.target) == before
    log = (archive.folder / "orthanc.log").read_text(errors="replace")
    # Tags from the storage, or a resource stored with another list (STORAGE.md B8).
    assert "W001" not in log
    assert "W002" not in log


def test_beside_an_orthanc_that_receives_overwrites_and_deletes(
    received: Callable[..., Archive], tmp_path: Path
) -> None:
    archive = received(postgresql_storage=True)
    sent = [path.read_bytes() for path in sorted((tmp_path / "in").iterdir())]
    more = [samples.instance(f"P{n % 4}", f"1.2.{n % 6}", f"1.2.7.{n}", n) for n in range(1, 25)]
    ended = threading.Event()

    with working(archive) as rest:
        studies = sorted(rest.get("/studies"))

        def traffic() -> None:
            try:
                for number, content in enumerate(more):
                    rest.upload(content)
                    if number % 10 == 5:
                        rest.delete(f"/studies/{studies[number // 10]}")
                        for file in sent[6 * (number // 10) : 6 * (number // 10) + 3]:
                            rest.upload(file)
                    instances = sorted(rest.get("/instances"))
                    rest.delete(f"/instances/{instances[number % len(instances)]}")
            finally:
                ended.set()

        with meanwhile(traffic):
            while not ended.is_set():
                result = reindex.reindex(archive.target, settings(archive, batch_files=3))
                # What Orthanc deletes between the plan and the reading is not called damaged.
                assert result.unreadable == ()
        assert lifecycle.served(rest)
    check(archive)
    signature = dicom.indexed_tags(settings(archive).profile).levels[3].signature
    found = """SELECT DISTINCT value FROM metadata m JOIN resources r ON r.internalid = m.id
               WHERE type = 15 AND resourcetype = 3"""
    assert rows(archive.target, found) == ([(signature,)] if signature else [])
    # Whatever met: now a run has only to decide parents again, and then nothing.
    reindex.reindex(archive.target, settings(archive))
    last = reindex.reindex(archive.target, settings(archive))
    assert last.changes == ()
    assert last.unreadable == ()


@pytest.mark.parametrize("postgresql_storage", [False, True])
def test_overwriting_beside_it_mixes_no_rows(
    new_archive: Callable[..., Archive], *, postgresql_storage: bool
) -> None:
    archive = new_archive(
        postgresql_storage=postgresql_storage, ExtraMainDicomTags=EXTRA, OverwriteInstances=True
    )
    with working(archive) as rest:
        outcome = overwriting.storm(archive, rest, settings(archive, batch_files=3), editions=3)
    assert outcome.problems == []
    assert outcome.actions["deletions"]
    check(archive)
