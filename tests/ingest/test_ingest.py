"""Import: every file ends in exactly one way, rows and attachments belong together, and a rerun completes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random

import pydicom
import pytest
from pydicom.dataelem import DataElement

from pgorthanc_cli import db, index, ingest, storage
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.ingest import content
from pgorthanc_cli.ingest.walk import Source
from tests.support import samples
from tests.support.areas import stored_bytes
from tests.support.importing import check_area, dumped, ends, run
from tests.support.real_servers import wait_until

OVERWRITES = list(index.Overwrite)


# --- what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_result_does_not_depend_on_jobs_or_batches(
    new_database: Callable[..., db.Target],
    template: str,
    tmp_path: Path,
    jobs: int,
) -> None:
    files = samples.folder(tmp_path / "in", 40, patients=3)
    files.insert(20, files[3])
    one, other = new_database(template), new_database(template)
    whole = run(one, files, tmp_path / "one")
    small = run(other, files, tmp_path / "other", jobs=jobs, batch_files=7)
    assert ends(small) == ends(whole) == (40, 1, 0, 0)
    assert dumped(one) == dumped(other)
    check_area(other, tmp_path / "other")


def test_a_rerun_finds_everything_known_and_changes_nothing(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 12)
    run(fresh, [tmp_path / "in"], tmp_path / "area")
    before = dumped(fresh)
    assert ends(run(fresh, files, tmp_path / "area")) == (0, 12, 0, 0)
    assert dumped(fresh) == before
    check_area(fresh, tmp_path / "area")


@pytest.mark.parametrize("overwrite", OVERWRITES)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("large_objects", [True, False])
def test_overwriting(
    fresh: db.Target, tmp_path: Path, overwrite: index.Overwrite, same: bool, large_objects: bool
) -> None:
    area = None if large_objects else tmp_path / "area"
    first, second, lone = (tmp_path / name for name in ("1.dcm", "2.dcm", "lone.dcm"))
    first.write_bytes(samples.instance(number=1))
    lone.write_bytes(samples.instance("P2", "1.2.2", "1.2.2.1"))
    second.write_bytes(
        samples.instance(number=1) if same else samples.instance(number=1, ImageComments="again")
    )
    run(fresh, [first, lone], area)
    replaced = overwrite is index.Overwrite.ALWAYS or (overwrite is index.Overwrite.IF_CHANGED and not same)
    report = run(fresh, [second], area, overwrite=overwrite)
    assert ends(report) == ((0, 0, 1, 0) if replaced else (0, 1, 0, 0))
    rows = dumped(fresh)
    comments = [row for row in rows["maindicomtags"] if row[1:3] == (0x0020, 0x4000)]
    assert bool(comments) is (replaced and not same)
    order = rows["recycling"]
    assert len(order) == 2
    if area:
        check_area(fresh, area)
    else:
        with db.session(fresh) as conn, conn.cursor() as cur:
            cur.execute(
                "SELECT (SELECT count(*) FROM storagearea), (SELECT count(*) FROM pg_largeobject_metadata)"
            )
            assert cur.fetchone() == (2, 2)


@pytest.mark.parametrize("large_objects", [True, False])
@pytest.mark.parametrize("compress", [True, False])
def test_stored_bytes_are_the_files(
    fresh: db.Target, tmp_path: Path, compress: bool, large_objects: bool
) -> None:
    run(fresh, [samples.REAL], None if large_objects else tmp_path / "area", compress=compress)
    with db.session(fresh) as conn, conn.cursor() as cur:
        area: storage.Area = (
            storage.LargeObjectArea(conn) if large_objects else storage.FilesystemArea(tmp_path / "area")
        )
        cur.execute(
            "SELECT filetype, uuid, compressedhash, uncompressedhash, uncompressedsize FROM attachedfiles"
        )
        rows = cur.fetchall()
        assert sorted(row[0] for row in rows) == ([1, 3] if compress else [1])
        for file_type, uuid, stored_md5, md5, size in rows:
            stored = stored_bytes(area, uuid, file_type)
            plain = storage.decode(stored) if compress else stored
            assert hashlib.md5(stored).hexdigest() == stored_md5
            assert hashlib.md5(plain).hexdigest() == md5
            assert plain == samples.REAL.read_bytes()[:size]


def test_content_too_large_for_memory(fresh: db.Target, tmp_path: Path) -> None:
    zipped = tmp_path / "zipped.dcm.gz"
    zipped.write_bytes(gzip.compress(samples.instance()))
    for area, paths in ((tmp_path / "area", [samples.REAL]), (None, [zipped])):
        assert ends(run(fresh, paths, area, memory_bytes=1000)) == (1, 0, 0, 0)
    with db.session(fresh) as conn, conn.cursor() as cur:
        cur.execute("SELECT uuid FROM storagearea")
        ((uuid,),) = cur.fetchall()
        assert stored_bytes(storage.LargeObjectArea(conn), uuid) == samples.instance()


def test_a_preamble_that_begins_like_gzip(fresh: db.Target, tmp_path: Path) -> None:
    """Of 128 arbitrary bytes; the magic behind them makes it a DICOM file."""
    for number, limit in enumerate((content.MEMORY_BYTES, 1000)):
        image = samples.instance(number=number + 1)
        (path := tmp_path / f"{number}.dcm").write_bytes(content.GZIP + image[2:])
        report = run(fresh, [path], tmp_path / "area", memory_bytes=limit)
        assert ends(report) == (1, 0, 0, 0)


def test_completed_series_and_stable_changes(fresh: db.Target, tmp_path: Path) -> None:
    paths = []
    for number in (1, 2):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(samples.instance(number=number, CardiacNumberOfImages=2))
    run(fresh, paths, tmp_path / "area", stable_changes=True)
    kinds = [(kind, level) for kind, level, _ in dumped(fresh)["changes"]]
    assert kinds == [(2, 3), (4, 2), (5, 1), (3, 0), (2, 3), (1, 2), (14, 2), (13, 1), (12, 0)]


def test_dry_run_writes_nothing(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 6)
    run(fresh, files[:2], tmp_path / "area")
    before = dumped(fresh)
    report = run(fresh, [*files, files[5], tmp_path / "absent"], tmp_path / "other", dry_run=True)
    assert ends(report) == (4, 1, 0, 1)
    assert report.restored == 2  # what is stored is not in that folder
    assert report.dry_run
    report = run(fresh, [*files, files[5], tmp_path / "absent"], tmp_path / "area", dry_run=True)
    assert ends(report) == (4, 3, 0, 1)
    assert dumped(fresh) == before
    assert not (tmp_path / "other").exists()


# --- archives, lists, walking ------------------------------------------------------------------------------


def test_archives_are_opened_in_their_place(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 6)
    folder = tmp_path / "mixed"
    folder.mkdir()
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for path in files[:4]:
            archive.write(path, f"sub/{path.name}")
        archive.writestr("notes.txt", "no DICOM")
        archive.writestr("again.zip", (folder / "b.zip").read_bytes()[:0] + b"PK\x03\x04")
    (folder / "a.dcm").write_bytes(files[4].read_bytes())
    (folder / "c.dcm.gz").write_bytes(gzip.compress(files[5].read_bytes()))
    (folder / "d.zip").write_bytes(b"PK\x03\x04" + b"damaged" * 10)
    report = run(fresh, [folder], tmp_path / "area", jobs=2)
    assert ends(report) == (6, 0, 0, 3)
    assert {r.path.rpartition("/")[2] for r in report.refusals} == {
        "b.zip!notes.txt",
        "b.zip!again.zip",
        "d.zip",
    }
    instances = [i for kind, _, i in dumped(fresh)["changes"] if kind == 2]
    alone = dumped(fresh)["resources"]
    assert len(instances) == 6
    assert len([r for r in alone if r[1] == 3]) == 6
    check_area(fresh, tmp_path / "area")


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_lists_of_files(tmp_path: Path, separator: bytes) -> None:
    names = [b"/a b.dcm", "/é.dcm".encode("latin-1"), b"/last"]
    listing = tmp_path / "list"
    listing.write_bytes(separator.join(names) + separator + separator)
    with listing.open("rb") as stream:
        assert [os.fsencode(path) for path in ingest.listed(stream)] == names


def test_order_is_sorted_by_path_components(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "a.dcm", "b.dcm", "B"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    paths = [os.path.relpath(source.path, tmp_path) for source in ingest.walk([str(tmp_path)])]
    assert paths == ["B", "a.dcm", "b/10", "b/2", "b.dcm"]


def test_the_storage_area_is_not_imported_into_itself(fresh: db.Target, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(samples.instance())
    assert ends(run(fresh, [tmp_path], tmp_path / "area")) == (1, 0, 0, 1)
    assert ends(run(fresh, [tmp_path], tmp_path / "area")) == (0, 1, 0, 1)


def test_ten_thousand_files_in_one_folder(tmp_path: Path) -> None:
    for n in range(10_000):
        (tmp_path / f"{n:05}").touch()
    names = [os.path.basename(source.path) for source in ingest.walk([str(tmp_path)])]
    assert names == [f"{n:05}" for n in range(10_000)]


# --- bad input -----------------------------------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    whole = samples.instance()
    files = {
        "empty": b"",
        "text": b"this is no DICOM file\n" * 20,
        "truncated": whole[:-3],
        "appended": whole + b"x",
        "no_sop_instance_uid": samples.instance(number=2).replace(
            b"\x08\x00\x18\x00UI", b"\x08\x00\x19\x00UI"
        ),
        "empty_study_uid": samples.instance(study=""),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "loop").symlink_to(folder)
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "dangling").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    return {path.name: path for path in folder.iterdir()}


def test_bad_files_are_refused_each_with_a_reason(fresh: db.Target, tmp_path: Path) -> None:
    names = bad_files(tmp_path / "in")
    dicomdir = samples.REAL.parent / "dicomdirtests" / "DICOMDIR"
    good = tmp_path / "good.dcm"
    good.write_bytes(samples.instance(number=9))
    report = run(fresh, [tmp_path / "in", dicomdir, good, tmp_path / "absent"], tmp_path / "area")
    assert ends(report) == (1, 0, 0, len(names) + 2)
    assert {Path(r.path).name for r in report.refusals} == {*names, "DICOMDIR", "absent"}
    assert all(r.reason for r in report.refusals)
    check_area(fresh, tmp_path / "area")


def test_an_unreadable_file_is_refused(fresh: db.Target, tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root reads everything: an existing file that even root cannot read
        path = Path("/proc/self/mem")
    else:
        path = tmp_path / "secret.dcm"
        path.write_bytes(samples.instance())
        path.chmod(0)
    report = run(fresh, [path], tmp_path / "area")
    assert ends(report) == (0, 0, 0, 1)


def test_a_path_that_is_not_utf8(fresh: db.Target, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name, data in ((b"/good\xff.dcm", samples.instance()), (b"/bad\xff", b"no")):
        with open(folder + name, "wb") as file:
            file.write(data)
    report = run(fresh, [Path(os.fsdecode(folder))], tmp_path / "area")
    assert ends(report) == (1, 0, 0, 1)
    assert report.refusals[0].path.endswith(r"caf\xe9/bad\xff")
    json.dumps(report.refusals[0].path, ensure_ascii=False).encode()


def test_bombs(fresh: db.Target, tmp_path: Path) -> None:
    """What unpacks a thousandfold is refused before it fills the disk; zeros in an image are none."""
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    (tmp_path / "blank.gz").write_bytes(gzip.compress(samples.instance(PixelData=bytes(90_000))))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    report = run(fresh, sorted(tmp_path.iterdir()), tmp_path / "area", memory_bytes=100_000)
    assert ends(report) == (1, 0, 0, 2)
    assert {r.reason for r in report.refusals} == {"it unpacks to more than 100 times its size"}
    check_area(fresh, tmp_path / "area")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "growing.dcm"
    path.write_bytes(bytes(content.MEMORY_BYTES // 2))
    begun, done = threading.Event(), threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            while not done.is_set():
                file.write(b"x")
                begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    try:
        with pytest.raises(content.UnreadableError, match="changed while it was read"):
            content.read(Source(str(path), size=path.stat().st_size))
    finally:
        done.set()
        writer.join()


def test_one_file_that_the_database_refuses(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 9)
    with db.session(fresh) as conn, conn, conn.cursor() as cur:
        cur.execute("ALTER TABLE maindicomtags ADD CHECK (value <> 'FORBIDDEN')")
    files[4].write_bytes(samples.instance("P9", "1.2.9", "1.2.9.1", StudyDescription="FORBIDDEN"))
    report = run(fresh, files, tmp_path / "area")
    assert ends(report) == (8, 0, 0, 1)
    assert report.refusals[0].path == str(files[4])
    assert "FORBIDDEN" not in report.refusals[0].reason
    check_area(fresh, tmp_path / "area")


def test_an_identifier_too_long_for_its_index(fresh: db.Target, tmp_path: Path) -> None:
    """Lists of numbers are not cut at 256 bytes, and a B-tree takes 2,704 bytes."""
    data = pydicom.dcmread(BytesIO(samples.instance()))
    numbers = Random(1)
    data[0x00080050] = DataElement(0x00080050, "UL", [numbers.getrandbits(32) for _ in range(5000)])
    path = tmp_path / "long.dcm"
    data.save_as(path)
    report = run(fresh, [path, samples.REAL], tmp_path / "area")
    assert ends(report) == (1, 0, 0, 1)
    assert "the database refuses it: index row" in report.refusals[0].reason
    check_area(fresh, tmp_path / "area")


def test_a_public_id_of_another_level(fresh: db.Target, tmp_path: Path) -> None:
    path = tmp_path / "odd.dcm"
    path.write_bytes(samples.instance("P", "1.2"))
    run(fresh, [path], tmp_path / "area")
    path.write_bytes(samples.instance("P|1.2", "1.3"))  # its patient has the identifier of the study above
    report = run(fresh, [path], tmp_path / "area")
    assert ends(report) == (0, 0, 0, 1)
    assert "is a study in the index, and a patient in this file" in report.refusals[0].reason


def test_no_index_and_no_storage_area(empty: db.Target, fresh: db.Target, tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="no Orthanc index"):
        run(empty, [samples.REAL], tmp_path / "area")
    with db.session(fresh) as conn, conn, conn.cursor() as cur:
        cur.execute("DROP TABLE storagearea")
    with pytest.raises(RevisionError, match="no storage area"):
        run(fresh, [samples.REAL], None)


def test_sequences_behind_their_table(fresh: db.Target, tmp_path: Path) -> None:
    run(fresh, [samples.REAL], tmp_path / "area")
    with db.session(fresh) as conn, conn, conn.cursor() as cur:
        cur.execute("SELECT setval('resources_internalid_seq', 1)")
    with pytest.raises(
        RevisionError, match="resources_internalid_seq stands at 1, behind the highest internalid 4"
    ):
        run(fresh, [samples.REAL], tmp_path / "area")


def test_a_sequence_that_has_given_no_number_yet(fresh: db.Target, tmp_path: Path) -> None:
    """Its last value is 1, as if it had given that one."""
    with db.session(fresh) as conn, conn, conn.cursor() as cur:
        cur.execute("INSERT INTO resources (internalid, resourcetype, publicid) VALUES (1, 0, 'p')")
    with pytest.raises(RevisionError, match="stands at 0, behind the highest internalid 1"):
        run(fresh, [samples.REAL], tmp_path / "area")


def test_no_session_is_left_open(fresh: db.Target, tmp_path: Path) -> None:
    """The worker of `jobs=1` is this process: its reading session ends with the import."""
    ours = db.Target(fresh.dsn, application="a library user")
    plan = ingest.ImportPlan([str(samples.REAL)], jobs=1)
    settings = ingest.Settings(storage_dir=tmp_path / "area")

    def fail(batch: ingest.Batch) -> None:
        if batch.imported:
            raise KeyError

    # The traceback keeps everything alive that the import has not closed.
    with pytest.raises(KeyError) as caught:
        ingest.run_import(ours, plan, settings, report=fail)
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'a library user'"
    with db.session(fresh, autocommit=True) as conn:
        wait_until(lambda: db.value(conn, query) == 0, "a session stays", timeout_s=5)
    assert caught.tb


def test_the_first_refusals_are_kept_and_all_are_counted() -> None:
    tally = ingest.Tally(max_listed=3)
    for number in range(3):
        refusals = (
            ingest.FileProblem(f"a{number}", "bad"),
            ingest.FileProblem(f"b{number}", "bad"),
        )
        tally.add(ingest.Batch(refusals=refusals))
    report = tally.result()
    assert report.refused == 6
    assert [refusal.path for refusal in report.refusals] == ["a0", "b0", "a1"]


def test_refusals_for_the_same_reason_are_counted_together() -> None:
    tally = ingest.Tally()
    reasons = (
        "element (0008,103e) at byte 12 has 9 bytes, of which 3 are there",
        "element (7fe0,0010) at byte 7 has 64 bytes, of which 3 are there",
        "the file is empty",
    )
    tally.add(ingest.Batch(refusals=tuple(ingest.FileProblem("x", reason) for reason in reasons)))
    assert [(found.files, found.reason) for found in tally.result().reasons] == [
        (2, "element … at byte … has … bytes, of which 3 are there"),
        (1, "the file is empty"),
    ]
