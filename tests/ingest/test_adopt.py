"""Adopting files where they lie: rows, places of other attachments, and what is refused.

That all rows are those of the real plugin is compared by `.ci/checks.py` (adopt_check.py). Facts: STORAGE.md A, H1.
"""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, ingest, storage
from pgorthanc_cli.db import Target
from pgorthanc_cli.index import Overwrite, customdata
from pgorthanc_cli.ingest.adoption import Adoption
from tests.support import samples
from tests.support.adopting import Archive, customdata_of
from tests.support.importing import ends
from tests.support.schemas import as_role, init, rows
from tests.support.schemas import run as execute

ADOPTED, INDEXED = "advst-adopted-path", "advst-indexer-path"


@pytest.fixture
def archive(fresh: Target, tmp_path: Path) -> Archive:
    return Archive(fresh, tmp_path)


# --- rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/ü/日本/e\u0301", "/\\u00fc/\\u65e5\\u672c/e\\u0301"),
        ("/\U0001f600", "/\\ud83d\\ude00"),
        ('/a"b\\c//x/../y ', '/a\\"b\\\\c//x/../y '),
        ("/\n\t\x07\x85\u2028<>&", "/\\n\\t\\u0007\\u0085\\u2028<>&"),
        ("/\x7f\\u007f\x7f", "/\x7f\\\\u007f\x7f"),
    ],
)
def test_the_customdata_of_odd_paths(path: str, text: str) -> None:
    """ASCII as jsoncpp writes it, which leaves 7F as it is (STORAGE.md A2)."""
    data = customdata.written(owned=False, path=path)
    assert data == f'{{"o":false,"p":"{text}","v":1}}'.encode()
    assert customdata.read(data) == customdata.CustomData("AdvancedStorage", path, adopted=True)


@pytest.mark.parametrize("owned", [False, True])
def test_files_stay_where_they_lie(archive: Archive, owned: bool) -> None:
    report = archive.adopt(archive.folder / "in", *(["--take-ownership"] if owned else []))
    assert (report["imported"], report["adopted"], report["refused"]) == (3, 3, 0)
    assert archive.custom_data() == [(1, customdata_of(path, owned=owned)) for path in archive.files]
    kept = archive.stores(ADOPTED)
    assert list(kept) == [str(path) for path in archive.files]
    ids = [
        public_id
        for (public_id,) in rows(archive.target, "SELECT publicid FROM resources WHERE resourcetype = 3")
    ]
    assert list(kept.values()) == [{"c": 1, "r": public_id, "t": 3, "v": 1} for public_id in ids]
    assert archive.stores(INDEXED) == {}
    origin = "SELECT type, value FROM metadata WHERE type IN (8, 11, 13) GROUP BY type, value"
    assert rows(archive.target, origin) == [(8, "Plugins")]
    assert list((archive.folder / "storage").iterdir()) == []
    assert archive.check().counts == {}
    again = archive.adopt(archive.folder / "in", "--take-ownership")
    assert (again["known"], again["adopted"]) == (3, 0)
    assert archive.custom_data()[0] == (1, customdata_of(archive.files[0], owned=owned))


def test_the_screen_says_adopted(archive: Archive) -> None:
    words = ["import", "--adopt", "--uri", archive.target.dsn, "--config", archive.folder / "orthanc.json"]
    run = CliRunner().invoke(cli.main, [*map(str, (*words, "-j", "1", "--dry-run", archive.folder / "in"))])
    assert "Dry run, nothing was adopted: 3 of 3 files could be adopted" in run.stdout
    assert rows(archive.target, "SELECT FROM resources") == []
    page = archive.folder / "page.html"
    run = CliRunner().invoke(
        cli.main, [*map(str, (*words, "-j", "2", "--html", page, archive.folder / "in"))]
    )
    assert "Adopted 3 files" in run.stdout
    assert "their own folders (adopted)" in page.read_text()


def test_the_owner_of_the_index_needs_no_other_right(empty: Target, tmp_path: Path, role: str) -> None:
    execute(empty, f"ALTER SCHEMA public OWNER TO {role}")
    target = as_role(empty, role)
    init(target)
    archive = Archive(target, tmp_path)
    archive.configure({"Indexer": {"Enable": True, "Folders": [str(tmp_path / "in")]}})
    assert archive.adopt(archive.folder / "in")["adopted"] == 3
    assert archive.check().counts == {}


def test_the_real_hash_is_recorded_even_without_storemd5(archive: Archive) -> None:
    archive.configure(StoreMD5ForAttachments=False)
    archive.adopt(archive.files[0])
    assert rows(archive.target, "SELECT count(*) FROM attachedfiles WHERE uncompressedhash <> ''") == [(1,)]


def test_large_files_are_read_in_pieces(archive: Archive) -> None:
    """Also then a file that is no DICOM is known to the indexer, and a packed one is not unpacked."""
    folder = archive.folder / "in"
    (folder / "large.txt").write_text("no DICOM" * 200)
    (folder / "x.gz").write_bytes(gzip.compress(os.urandom(2000) + samples.instance("x")))
    adoption = Adoption(owned=False, roots=(), indexed=(str(folder),))
    plan = ingest.ImportPlan([str(folder)], jobs=1)
    settings = ingest.Settings(adopt=adoption, memory_bytes=300)
    assert ends(ingest.run_import(archive.target, plan, settings)) == (3, 0, 0, 2)
    assert len(archive.stores(INDEXED)) == 5
    assert archive.check().counts == {}


# --- with StorageCompression the beginning of a file is stored, too ----------------------------------------


@pytest.mark.parametrize(
    ("section", "folder", "custom"),
    [
        ({}, "storage", None),
        ({"OtherAttachmentsPrefix": "ignored"}, "storage", None),
        (
            {"MultipleStorages": {"Storages": {"1": "s1", "2": "s2"}, "CurrentWriteStorage": "2"}},
            "s2",
            '{"o":true,"s":"2","v":1}',
        ),
        ({"NamingScheme": "{PatientID}/{UUID}"}, "storage", '{"o":true,"p":"PLACE","v":1}'),
        (
            {"NamingScheme": "{PatientID}/{UUID}", "OtherAttachmentsPrefix": "/other/heads/"},
            "storage/other/heads",
            '{"o":true,"p":"other/heads/PLACE","v":1}',
        ),
        (
            {
                "NamingScheme": "{PatientID}/{UUID}",
                "OtherAttachmentsPrefix": "heads",
                "MultipleStorages": {"Storages": {"1": "s1"}, "CurrentWriteStorage": "1"},
            },
            "s1/heads",
            '{"o":true,"p":"heads/PLACE","s":"1","v":1}',
        ),
    ],
)
def test_the_head_is_where_the_plugin_puts_it(
    archive: Archive, section: dict[str, Any], folder: str, custom: str | None
) -> None:
    for name in ("s1", "s2"):
        (archive.folder / name).mkdir()
    archive.configure(section, StorageCompression=True)
    assert archive.adopt(archive.files[0])["adopted"] == 1
    [(uuid, sizes)] = rows(
        archive.target,
        "SELECT uuid, compressedsize <> uncompressedsize FROM attachedfiles WHERE filetype = 3",
    )
    assert sizes
    place = f"{uuid[:2]}/{uuid[2:4]}/{uuid}"
    expected = custom.replace("PLACE", place) if custom else None
    assert archive.custom_data() == [(1, customdata_of(archive.files[0])), (3, expected)]
    stored = archive.folder / folder / place
    assert archive.files[0].read_bytes().startswith(storage.decode(stored.read_bytes()))
    assert archive.check().counts == {}


def test_a_killed_import_leaves_no_head(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the batch are refused by the server: its heads are removed."""
    archive.configure(StorageCompression=True)
    execute(archive.target, "ALTER TABLE keyvaluestores ADD CONSTRAINT none CHECK (storeid = '') NOT VALID")
    assert "the database refuses it" in archive.refused(archive.folder / "in")
    assert [path for path in (archive.folder / "storage").rglob("*") if path.is_file()] == []
    assert rows(archive.target, "SELECT FROM resources") == []


# --- folders that the indexer watches -----------------------------------------------------------------------


@pytest.fixture
def watched(archive: Archive) -> Archive:
    archive.configure({"Indexer": {"Enable": True, "Folders": [f"{archive.folder}/in/"]}})
    return archive


def state(path: Path, *, dicom: bool) -> dict[str, Any]:
    return {"d": dicom, "r": False, "s": path.stat().st_size, "t": int(path.stat().st_mtime), "v": 1}


def test_the_indexer_gets_its_rows(watched: Archive) -> None:
    """Also of what it would try in vain: what is no DICOM, and what the index has already."""
    copy = watched.folder / "in" / "copy.dcm"
    copy.write_bytes(watched.files[0].read_bytes())
    text = watched.folder / "in" / "notes.txt"
    text.write_text("no DICOM")
    report = watched.adopt(watched.folder / "in")
    assert (report["adopted"], report["known"], report["refused"]) == (3, 1, 1)
    expected = {str(path): state(path, dicom=True) for path in watched.files}
    expected |= {str(path): state(path, dicom=False) for path in (copy, text)}
    assert watched.stores(INDEXED) == expected
    assert len(watched.stores(ADOPTED)) == 3
    watched.adopt(watched.folder / "in")
    assert watched.stores(INDEXED) == expected


def test_a_folder_that_is_watched_only_later(archive: Archive) -> None:
    """The second row is added, with which the indexer notices that a file vanishes."""
    archive.adopt(archive.folder / "in")
    archive.configure({"Indexer": {"Enable": True, "Folders": [str(archive.folder / "in")]}})
    archive.adopt(archive.folder / "in")
    assert archive.stores(INDEXED) == {str(path): state(path, dicom=True) for path in archive.files}


def test_extensions_that_the_indexer_does_not_read(archive: Archive) -> None:
    """It would take them for vanished, and delete their instances."""
    folders = {"Enable": True, "Folders": [str(archive.folder / "in")]}
    archive.configure({"Indexer": {**folders, "SkippedExtensions": [".dcm"]}})
    archive.adopt(archive.files[0])
    archive.configure({"Indexer": {**folders, "ParsedExtensions": [".DCM"]}})
    archive.adopt(archive.files[1])
    assert len(archive.stores(ADOPTED)) == 2
    assert archive.stores(INDEXED) == {}


def test_another_spelling_than_the_indexers(watched: Archive) -> None:
    (watched.folder / "link").symlink_to("in")
    (watched.folder / "elsewhere.dcm").write_bytes(samples.instance("other"))
    (watched.folder / "in" / "link.dcm").symlink_to("../elsewhere.dcm")
    names = ("in/../in/00000.dcm", "in/./00001.dcm", "in//00002.dcm", "link/00000.dcm", "in/link.dcm")
    report = watched.adopt(*(f"{watched.folder}/{name}" for name in names))
    assert report["refused"] == 5
    for refusal in report["refusals"]:
        assert "indexer" in refusal["reason"]
        assert str(watched.folder / "in") in refusal["reason"]


# --- paths --------------------------------------------------------------------------------------------------


def test_a_relative_path_becomes_absolute_and_keeps_its_link(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive.folder / "link").symlink_to("in")
    monkeypatch.chdir(archive.folder / "link")
    monkeypatch.setenv("PWD", str(archive.folder / "link"))
    archive.adopt("./00000.dcm")
    monkeypatch.delenv("PWD")
    archive.adopt("00001.dcm")
    monkeypatch.setenv("PWD", "/")
    archive.adopt("../in/00002.dcm")
    assert list(archive.stores(ADOPTED)) == [
        f"{archive.folder}/link/00000.dcm",
        f"{archive.folder}/in/00001.dcm",
        f"{archive.folder}/in/../in/00002.dcm",
    ]
    assert archive.check().counts == {}


def test_a_path_is_kept_as_it_was_given(archive: Archive) -> None:
    path = f"{archive.folder}/in//../in/00000.dcm"
    archive.adopt(path)
    assert list(archive.stores(ADOPTED)) == [path]


def test_a_path_that_is_not_utf8(archive: Archive) -> None:
    """The plugin would store an instance that nobody can read (STORAGE.md A3)."""
    odd = os.fsencode(archive.folder / "in") + b"/caf\xe9\\x.dcm"
    with open(odd, "wb") as file:
        file.write(samples.instance("odd"))
    report = archive.adopt(archive.folder / "in")
    assert (report["adopted"], report["refused"]) == (3, 1)
    [refusal] = report["refusals"]
    assert "not UTF-8" in refusal["reason"]
    assert refusal["path"] == f"{archive.folder}/in/caf\\xe9\\x.dcm"
    listed = archive.folder / "refused.txt"
    archive.adopt("--refused", listed, archive.folder / "in")
    assert listed.read_text().startswith(f"{archive.folder}/in/caf\\xe9\\\\x.dcm\t")


def test_files_in_orthancs_own_storage(archive: Archive) -> None:
    """As an argument it is refused before anything is written, below one in the report."""
    archive.configure({"MultipleStorages": {"Storages": {"1": "in/s1"}, "CurrentWriteStorage": "1"}})
    own = archive.folder / "in" / "s1"
    (own / "ab").mkdir(parents=True)
    (own / "ab" / "x.dcm").write_bytes(samples.instance("own"))
    (archive.folder / "in" / "z.dcm").symlink_to(own / "ab" / "x.dcm")
    run = archive.run(own / "ab", archive.files[0])
    assert run.exit_code == 2
    assert "Orthanc's own storage" in json.loads(run.stderr)["message"]
    assert rows(archive.target, "SELECT FROM resources") == []
    report = archive.adopt(archive.folder / "in")
    assert (report["adopted"], report["refused"]) == (3, 2)
    assert all("storage" in refusal["reason"] for refusal in report["refusals"])


def test_packed_files_are_refused(archive: Archive, tmp_path: Path) -> None:
    (archive.folder / "x.gz").write_bytes(gzip.compress(samples.instance("x")))
    with zipfile.ZipFile(archive.folder / "x.zip", "w") as packed:
        packed.writestr("x.dcm", samples.instance("y"))
    assert "packed" in archive.refused(archive.folder / "x.gz", archive.folder / "x.zip")


# --- what the index has already -------------------------------------------------------------------------------


def test_an_owned_file_is_never_adopted_in_place_of_itself(archive: Archive) -> None:
    """The plugin deletes the file that it has just adopted (STORAGE.md A6)."""
    archive.adopt("--take-ownership", archive.folder / "in")
    before = archive.custom_data(), archive.stores(ADOPTED)
    (archive.folder / "link").symlink_to("in")
    for path in (archive.files[0], archive.folder / "link" / "00000.dcm"):
        for overwrite in ("always", "if-changed"):
            archive.files[0].write_bytes(
                samples.instance("P1", "1.2.1", "1.2.1.0", StudyDescription=overwrite)
            )
            assert "Orthanc owns the file of the stored instance" in archive.refused(
                "--overwrite", overwrite, path
            )
    assert (archive.custom_data(), archive.stores(ADOPTED)) == before


def test_the_same_owned_file_twice_in_one_run(archive: Archive) -> None:
    reason = archive.refused("--take-ownership", "--overwrite", "always", archive.files[0], archive.files[0])
    assert "Orthanc owns the file of the stored instance" in reason
    assert archive.custom_data() == [(1, customdata_of(archive.files[0], owned=True))]


def test_a_plain_file_is_adopted_again(watched: Archive) -> None:
    """Upstream does so without harm (STORAGE.md A6); the owner may change, too."""
    watched.adopt(watched.folder / "in")
    report = watched.adopt("--overwrite", "always", "--take-ownership", watched.files[0])
    assert (report["overwritten"], report["adopted"]) == (1, 1)
    assert (1, customdata_of(watched.files[0], owned=True)) in watched.custom_data()
    assert watched.stores(INDEXED) == {str(path): state(path, dicom=True) for path in watched.files}


def test_a_stored_file_is_replaced_and_removed(archive: Archive) -> None:
    area = archive.folder / "storage"
    plan = ingest.ImportPlan([str(archive.files[0])], jobs=1)
    ingest.run_import(archive.target, plan, ingest.Settings(storage_dir=area))
    assert len(list(area.rglob("*-*"))) == 1
    assert archive.adopt("--overwrite", "always", archive.files[0])["adopted"] == 1
    assert list(area.rglob("*-*")) == []
    assert archive.check().counts == {}


def test_a_path_whose_instance_has_changed(archive: Archive) -> None:
    archive.adopt(archive.files[0])
    archive.files[0].write_bytes(samples.instance("another"))
    assert "as the instance" in archive.refused(archive.files[0])
    # As an Orthanc without the plugin does it.
    delete = "DELETE FROM resources WHERE resourcetype = 3"
    execute(archive.target, "SELECT createdeletedfilestemporarytable()", delete)
    assert archive.adopt(archive.files[0])["adopted"] == 1


def test_a_file_that_changes_is_followed(archive: Archive) -> None:
    """With --follow, the rows of an earlier version of the file are replaced."""
    archive.adopt(archive.files[0])
    [(uuid,)] = rows(archive.target, "SELECT uuid FROM attachedfiles")
    archive.files[0].write_bytes(samples.instance("P1", "1.2.1", "1.2.1.0", StudyDescription="new"))
    size = archive.files[0].stat().st_size
    source = ingest.Source(str(archive.files[0]), size=size, replaces=uuid)
    settings = ingest.Settings(adopt=Adoption(owned=False, roots=()))
    ingest.import_sources(archive.target, [source], settings, jobs=1)
    assert rows(archive.target, "SELECT compressedsize FROM attachedfiles") == [(size,)]
    assert archive.check().counts == {}


def test_a_rerun_with_a_journal_reads_nothing(archive: Archive) -> None:
    words = ("--journal", archive.folder / "journal.db", archive.folder / "in")
    assert archive.adopt(*words)["adopted"] == 3
    os.truncate(archive.files[2], 10)
    report = archive.adopt(*words)
    assert (report["known"], report["refused"]) == (2, 1)


@pytest.mark.parametrize("overwrite", [Overwrite.NEVER, Overwrite.ALWAYS])
def test_an_ordinary_import_of_an_adopted_instance(archive: Archive, overwrite: Overwrite) -> None:
    archive.adopt(archive.files[0])
    plan = ingest.ImportPlan([str(archive.files[0])], jobs=1)
    settings = ingest.Settings(storage_dir=archive.folder / "storage", overwrite=overwrite)
    report = ingest.run_import(archive.target, plan, settings)
    assert ends(report) == ((0, 1, 0, 0) if overwrite is Overwrite.NEVER else (0, 0, 1, 0))
    assert report.adopted == 0
    assert len(archive.stores(ADOPTED)) == (overwrite is Overwrite.NEVER)
