"""Files whose instance is stored already, but whose content is lost: it is put back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, index, storage
from pgorthanc_cli.index import Overwrite
from pgorthanc_cli.ingest.stored import COMPRESSED_DIFFERENTLY
from pgorthanc_cli.ingest.worker import Worker
from tests.ingest.test_compared import changed, lose, md5, stored, whole
from tests.support import samples
from tests.support.compressors import with_isal, without_isal
from tests.support.importing import check_area, dumped, ends, run
from tests.support.schemas import rows
from tests.support.schemas import run as execute


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("overwrite", [Overwrite.NEVER, Overwrite.IF_CHANGED])
def test_lost_content_is_put_back(
    fresh: db.Target, tmp_path: Path, area: Path | None, compress: bool, jobs: int, overwrite: Overwrite
) -> None:
    files = samples.folder(tmp_path / "in", 4)
    run(fresh, files, area, compress=compress)
    before = dumped(fresh)
    lose(fresh, area, md5(files[1]))
    again = shutil.copy(files[1], tmp_path / "again.dcm")  # the same twice: it is put back once
    settings: dict[str, Any] = {"compress": compress, "overwrite": overwrite}
    report = run(fresh, [*files, Path(again)], area, dry_run=True, **settings)
    assert (report.restored, ends(report)) == (1, (0, 4, 0, 0))
    report = run(fresh, [*files, Path(again)], area, jobs, **settings)
    assert (report.restored, ends(report)) == (1, (0, 4, 0, 0))
    whole(fresh, area)
    assert dumped(fresh) == before
    report = run(fresh, files, area, **settings)
    assert (report.restored, ends(report)) == (0, (0, 4, 0, 0))


def test_a_row_without_a_large_object_gets_it_back(fresh: db.Target, tmp_path: Path) -> None:
    """The row of storagearea is missing as well."""
    files = samples.folder(tmp_path / "in", 3)
    run(fresh, files, None)
    execute(fresh, "DELETE FROM storagearea")
    assert run(fresh, files, None).restored == 3
    whole(fresh, None)


def test_a_large_object_too_large_to_hand_over(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, None, transfer_bytes=10)
    lose(fresh, None, md5(files[0]))
    assert run(fresh, files, None, transfer_bytes=10).restored == 1
    whole(fresh, None)


def test_a_file_of_another_size_is_replaced(fresh: db.Target, tmp_path: Path) -> None:
    area = tmp_path / "area"
    files = samples.folder(tmp_path / "in", 3)
    run(fresh, files, area)
    names = [storage.FilesystemArea(area).path(uuid) for uuid in stored(fresh)]
    names[0].write_bytes(b"")
    os.truncate(names[1], 100)
    assert run(fresh, files, area).restored == 2
    whole(fresh, area)


def test_other_content_never_takes_the_place_of_what_is_lost(
    fresh: db.Target, tmp_path: Path, area: Path | None
) -> None:
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, area)
    lose(fresh, area, md5(files[0]))
    changed(files[0])
    report = run(fresh, files, area)
    assert (report.restored, report.differing, ends(report)) == (0, 1, (0, 2, 0, 0))
    assert ends(run(fresh, files, area, overwrite=Overwrite.IF_CHANGED)) == (0, 1, 1, 0)
    whole(fresh, area)


@pytest.mark.parametrize("column", ["uncompressedhash", "compressedhash"])
def test_what_cannot_be_proved_equal_is_not_put_back(
    fresh: db.Target, tmp_path: Path, area: Path | None, column: str
) -> None:
    """Without an MD5, or when the stored form cannot be reproduced (another zlib)."""
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, area, compress=True)
    lose(fresh, area, md5(files[0]))
    execute(fresh, f"UPDATE attachedfiles SET {column} = '{'' if column[0] == 'u' else '0' * 32}'")
    report = run(fresh, files, area, compress=True)
    assert (report.restored, report.differing) == (0, 1)
    assert "--overwrite always" in report.differences[0].reason
    assert ends(run(fresh, files, area, compress=True, overwrite=Overwrite.ALWAYS)) == (0, 0, 1, 0)
    whole(fresh, area)


def test_what_zlib_has_compressed_is_put_back_with_isal_installed(
    fresh: db.Target, tmp_path: Path, area: Path | None
) -> None:
    """As Orthanc has stored it: each installed compressor is tried."""
    files = samples.folder(tmp_path / "in", 2)
    with without_isal():
        run(fresh, files, area, compress=True)
    before = dumped(fresh)
    lose(fresh, area, md5(files[1]))
    with with_isal():
        report = run(fresh, files, area, compress=True)
    assert (report.restored, report.differing) == (1, 0)
    assert dumped(fresh) == before
    whole(fresh, area)


def test_what_this_machine_compresses_in_another_way_is_refused(
    fresh: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent compresses large content again, for the row that a worker elsewhere has measured."""
    files = samples.folder(tmp_path / "in", 2)

    def elsewhere(worker: Worker, *arguments: Any) -> list[Any]:
        with without_isal():
            return prepare(worker, *arguments)

    prepare = Worker.prepare
    monkeypatch.setattr(Worker, "prepare", elsewhere)
    with with_isal():
        report = run(fresh, files, None, compress=True, transfer_bytes=0)
    assert [refusal.reason for refusal in report.refusals] == [COMPRESSED_DIFFERENTLY] * 2
    assert rows(fresh, "SELECT count(*) FROM attachedfiles") == [(0,)]
    assert rows(fresh, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]
    monkeypatch.undo()
    assert run(fresh, files, None, compress=True, transfer_bytes=0).imported == 2
    whole(fresh, None)


def test_nothing_is_put_back_where_no_file_is_stored(fresh: db.Target, tmp_path: Path) -> None:
    """StoreDicom false: rows without files are as they should be."""
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, tmp_path / "area", store_dicom=False)
    report = run(fresh, files, tmp_path / "area", store_dicom=False)
    assert (report.restored, report.known) == (0, 2)


def test_content_among_the_large_objects_is_not_lost(fresh: db.Target, tmp_path: Path) -> None:
    """An archive that was moved to another storage: files of both names would leave orphans."""
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, None)
    report = run(fresh, files, tmp_path / "area")
    assert (report.known, report.restored) == (2, 0)


def test_a_dry_run_without_a_table_for_large_objects(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 2)
    execute(fresh, "DROP TABLE storagearea")
    run(fresh, files, tmp_path / "area")
    assert run(fresh, files, None, dry_run=True).restored == 2


def test_a_row_whose_uuid_is_a_path_is_left_alone(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, tmp_path / "area")
    execute(fresh, "UPDATE attachedfiles SET uuid = '../../planted'")
    assert run(fresh, files, tmp_path / "area").restored == 0
    assert sorted(os.listdir(tmp_path)) == ["area", "in"]


def test_an_instance_that_is_deleted_meanwhile_leaves_no_file(
    fresh: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orthanc removes the rows first, then the file: what is written in between must go again."""
    area = tmp_path / "area"
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, area)
    lose(fresh, area, md5(files[0]))
    put = storage.FilesystemArea.put

    def put_late(self: storage.FilesystemArea, *arguments: Any) -> None:
        gone = f"DELETE FROM attachedfiles WHERE uuid = '{arguments[0]}'"
        execute(fresh, f"SELECT createdeletedfilestemporarytable(); {gone}")
        put(self, *arguments)

    monkeypatch.setattr(storage.FilesystemArea, "put", put_late)
    run(fresh, files, area)
    check_area(fresh, area)


def test_a_leftover_of_a_killed_run_is_no_obstacle(fresh: db.Target, tmp_path: Path) -> None:
    area = tmp_path / "area"
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, area)
    uuid = lose(fresh, area, md5(files[0]))
    left = storage.FilesystemArea(area).path(uuid).with_name(storage.temporary_name(uuid))
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert run(fresh, files, area).restored == 1
    check_area(fresh, area)


def test_a_folder_in_the_place_of_a_file_does_not_stop_the_import(fresh: db.Target, tmp_path: Path) -> None:
    area = tmp_path / "area"
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, area)
    uuid = lose(fresh, area, md5(files[0]))
    (storage.FilesystemArea(area).path(uuid) / "folder").mkdir(parents=True)
    report = run(fresh, [*files, *samples.folder(tmp_path / "more", 1, first=5)], area)
    assert (report.imported, report.known, report.differing, report.restored) == (1, 2, 1, 0)


def test_what_is_restored_stays_when_a_dead_run_is_settled(fresh: db.Target, tmp_path: Path) -> None:
    """A run that is killed between writing a file back and its end has the uuid in its journal."""
    area = tmp_path / "area"
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, area)
    lose(fresh, area, md5(files[0]))
    program = (
        "import os; from pgorthanc_cli.ingest import stored\n"
        "stored.index.still_referenced = lambda *a, **k: os._exit(9)\n"
        "from pgorthanc_cli.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "import",
        "-j",
        "1",
        "--uri",
        fresh.dsn,
        "--storage-dir",
        str(area),
    ]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, check=False, timeout=60)
    assert done.returncode == 9
    assert len(list((area / ".pgorthanc").glob("*/*restored.json"))) == 1
    report = run(fresh, files, area)
    assert (report.known, report.restored) == (2, 0)
    check_area(fresh, area)


def test_adopted_files_are_not_looked_for(fresh: db.Target, tmp_path: Path, area: Path | None) -> None:
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, area)
    lose(fresh, area, md5(files[0]))
    execute(fresh, """UPDATE attachedfiles SET customdata = '{"o":false,"p":"/x.dcm","v":1}'""")
    report = run(fresh, files, area)
    assert (report.known, report.restored, report.differing) == (1, 0, 0)


def test_one_query_finds_the_absent_objects(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 3)
    run(fresh, files, None)
    gone = lose(fresh, None, md5(files[1]))
    with db.session(fresh, readonly=True) as conn, conn.cursor() as cur:
        assert index.missing_large_objects(cur, [*stored(fresh), "no-such"]) == {gone, "no-such"}
