"""Every damage is named, and nothing else: in folders and in large objects."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli import db, scrub
from pgorthanc_cli.scrub import StorageReport
from tests.scrub.injected import (
    BOTH,
    FILES,
    Store,
    altered_end,
    awaiting_deletion,
    bomb,
    half,
    huge_prefix,
    longer,
    missing,
    null_hash,
    orphan_other,
)
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import rows
from tests.support.schemas import run as execute


@pytest.fixture(params=["files", "large objects", "compressed files", "compressed large objects"])
def store(request: pytest.FixtureRequest, fresh: db.Target, tmp_path: Path) -> Store:
    area = tmp_path / "area" if "files" in request.param else None
    compress = "compressed" in request.param
    files = samples.folder(tmp_path / "in", 30)
    import_files(fresh, files, area, compress=compress)
    return Store(fresh, area, compress)


def kinds(report: StorageReport) -> dict[str, str]:
    """UUID, or name of the file -> kind."""
    return {each.uuid or Path(each.path or "").name: each.kind for each in report.findings}


def test_an_untouched_store_has_no_finding(store: Store) -> None:
    for depth in scrub.DEPTHS:
        report = store.check(depth=depth)
        assert (report.findings, report.counts, report.complete) == ((), {}, True)
        expected = 60 if store.compress else 30
        assert (report.attachments, report.checked) == (expected, expected)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_damage_is_named_and_nothing_else(store: Store, jobs: int) -> None:
    expected = {damage(store): kind for damage, kind in BOTH.items()}
    if store.compress:
        expected |= {huge_prefix(store): "altered"}
    for depth in ("hash", "identity"):
        report = store.check(depth=depth, jobs=jobs)
        assert kinds(report) == expected
        assert len(report.findings) == len(expected) == sum(report.counts.values())
        assert report.complete
        assert report.checked == report.attachments
    details = {each.detail for each in report.findings if each.kind == "orphan-dicom"}
    assert sum("the index has its instance as attachment" in detail for detail in details) == 1
    assert all(each.level == "instance" for each in report.findings if each.file_type)
    assert all(each.public_id for each in report.findings if each.file_type)


def test_a_small_file_that_inflates_without_end(store: Store) -> None:
    uuid = bomb(store)
    assert kinds(store.check())[uuid] in ("too-long", "truncated")


def test_a_file_of_another_instance_with_a_right_row(store: Store) -> None:
    """Both rows were exchanged, hashes included: only the identifiers in the file prove it."""
    one, other = store.take(), store.take()
    execute(
        store.target,
        f"UPDATE attachedfiles SET uuid = 'x' WHERE uuid = '{one}' AND filetype = 1",
        f"""UPDATE attachedfiles SET uuid = '{one}', uncompressedhash = b.uncompressedhash,
                compressedhash = b.compressedhash FROM attachedfiles b
            WHERE false""",
    )
    execute(
        store.target,
        f"""WITH both_rows AS (
                SELECT id, filetype, lead(id, 1, first) OVER (ORDER BY id) AS other_id FROM (
                    SELECT id, filetype, min(id) OVER () AS first FROM attachedfiles
                    WHERE uuid IN ('x', '{other}') AND filetype = 1) listed)
            UPDATE attachedfiles a SET uuid = CASE b.uuid WHEN 'x' THEN '{one}' ELSE b.uuid END,
                uncompressedhash = b.uncompressedhash, compressedhash = b.compressedhash,
                uncompressedsize = b.uncompressedsize, compressedsize = b.compressedsize
            FROM both_rows, attachedfiles b
            WHERE both_rows.id = a.id AND both_rows.filetype = a.filetype
                AND b.id = other_id AND b.filetype = 1""",
    )
    assert store.check().findings == ()
    report = store.check(depth="identity")
    assert kinds(report) == {one: "wrong-instance", other: "wrong-instance"}


@pytest.mark.parametrize("store", ["files"], indirect=True)
def test_a_file_that_only_an_older_orthanc_stores(store: Store) -> None:
    """Orthanc 1.10.1 keeps bytes after the last element, 1.13.0 refuses such a file: it is not damaged."""
    for count in (2, 8, 40):
        uuid = store.take()
        content = store.read(uuid) + bytes(count)
        store.write(uuid, content)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        hashes = f"compressedhash = '{digest}', uncompressedhash = '{digest}'"
        sizes = f"compressedsize = {len(content)}, uncompressedsize = {len(content)}"
        store.update(uuid, f"{hashes}, {sizes}")
    assert store.check(depth="identity").findings == ()


def test_shallow_depths_find_what_they_look_at(store: Store) -> None:
    expected = {
        missing(store): "missing",
        half(store): "truncated",
        longer(store): "too-long",
        null_hash(store): "missing-hash",
        orphan_other(store): "orphan-other",
    }
    altered = altered_end(store)
    assert kinds(store.check(depth="size")) == expected
    report = store.check(depth="exists")
    assert set(report.counts) == {"missing", "orphan-other"}
    assert altered in kinds(store.check(depth="hash"))


def test_studies_are_counted_and_listed_on_request(store: Store) -> None:
    half(store), longer(store)
    report = store.check(depth="size")
    assert report.studies is None
    listed = store.check(depth="size", list_studies=True)
    studies = {
        public_id
        for (public_id,) in rows(store.target, "SELECT publicid FROM resources WHERE resourcetype = 1")
    }
    assert set(listed.studies or ()) <= studies
    assert 1 <= len(listed.studies or ()) == report.affected_studies <= 2


# --- files only -----------------------------------------------------------------------------


@pytest.fixture
def files(fresh: db.Target, tmp_path: Path) -> Store:
    import_files(fresh, samples.folder(tmp_path / "in", 30), tmp_path / "area")
    return Store(fresh, tmp_path / "area", compress=False)


@pytest.mark.parametrize("depth", scrub.DEPTHS)
def test_damages_of_folders(files: Store, depth: str) -> None:
    expected = {damage(files): kind for damage, kind in FILES.items()}
    report = files.check(depth=depth)
    assert kinds(report) == expected
    assert len(report.findings) == len(expected)
    moved = next(each for each in report.findings if "a file of this name" in each.detail)
    assert moved.kind == "missing"


def test_what_awaits_its_deletion_is_no_problem(files: Store) -> None:
    awaiting_deletion(files)
    report = files.check()
    assert report.counts == {"pending-deletion": 1}
    assert not report.has_problems


def test_the_folder_is_compared_with_large_objects_left_behind(fresh: db.Target, tmp_path: Path) -> None:
    """Orthanc was configured for large objects, then for files: the first ones are still in the database."""
    import_files(fresh, samples.folder(tmp_path / "one", 3), None)
    import_files(fresh, samples.folder(tmp_path / "two", 3, first=100), tmp_path / "area")
    report = Store(fresh, tmp_path / "area", compress=False).check()
    assert report.counts == {"missing": 3}
    assert {each.detail for each in report.findings} == {"it is among the large objects of the database"}


def test_files_of_the_storage_plugin(files: Store, tmp_path: Path) -> None:
    """Adopted in place, in a storage of its own, and with a path of its own: each is read where it lies."""
    places = {
        '{"o":false,"p":"%s","v":1}' % (tmp_path / "adopted.dcm"): tmp_path / "adopted.dcm",
        '{"o":true,"p":"own/x.dcm","v":1}': tmp_path / "area" / "own" / "x.dcm",
        '{"o":true,"p":"y.dcm","s":"1","v":1}': tmp_path / "s1" / "y.dcm",
    }
    uuid = ""
    for data, place in places.items():
        uuid = files.take()
        place.parent.mkdir(parents=True, exist_ok=True)
        files.path(uuid).rename(place)
        files.update(uuid, f"customdata = '{data}'")
    settings = scrub.Settings(
        files.area, grace_s=0, jobs=1, storages={"1": tmp_path / "s1"}, advanced_storage=True
    )
    report = scrub.check(files.target, settings)
    assert (report.findings, report.checked) == ((), 30)
    without = scrub.check(files.target, replace(settings, storages={}))
    assert kinds(without) == {uuid: "aborting-customdata"}
    (tmp_path / "adopted.dcm").unlink()
    assert scrub.check(files.target, settings).counts == {"missing": 1}
