"""Every damage is named, and nothing else: in folders and in large objects."""

from __future__ import annotations

import json
import os
import struct
import uuid as uuids
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, scrub, storage
from pgorthanc_cli.scrub import StorageReport
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import rows
from tests.support.schemas import run as execute


@dataclass
class Store:
    """An index and its area, written by `import`; each damage takes another attachment."""

    target: db.Target
    area: Path | None
    compress: bool
    _taken: int = 0

    def take(self) -> str:
        """The UUID of an attachment that no damage has taken yet."""
        query = "SELECT uuid FROM attachedfiles WHERE filetype = 1 ORDER BY uuid"
        self._taken += 1
        return str(rows(self.target, query)[self._taken - 1][0])

    def path(self, uuid: str) -> Path:
        assert self.area
        return self.area / uuid[:2] / uuid[2:4] / uuid

    def read(self, uuid: str) -> bytes:
        if self.area:
            return self.path(uuid).read_bytes()
        query = f"SELECT lo_get(content) FROM storagearea WHERE uuid = '{uuid}' AND type = 1"
        ((content,),) = rows(self.target, query)
        return bytes(content)

    def write(self, uuid: str, content: bytes) -> None:
        if self.area:
            self.path(uuid).parent.mkdir(parents=True, exist_ok=True)
            self.path(uuid).write_bytes(content)
            return
        execute(
            self.target,
            f"""UPDATE storagearea SET content = lo_from_bytea(0, '\\x{content.hex()}')
                WHERE uuid = '{uuid}' AND type = 1""",
        )

    def add(self, content: bytes) -> str:
        """Store something that no row names."""
        name = str(uuids.uuid4())
        if self.area:
            self.write(name, content)
        else:
            execute(
                self.target,
                f"INSERT INTO storagearea VALUES ('{name}', lo_from_bytea(0, '\\x{content.hex()}'), 1)",
            )
        return name

    def update(self, uuid: str, assignment: str) -> None:
        execute(self.target, f"UPDATE attachedfiles SET {assignment} WHERE uuid = '{uuid}' AND filetype = 1")

    def check(self, **settings: Any) -> StorageReport:
        given: dict[str, Any] = {"depth": "hash", "grace_s": 0.0, "jobs": 1} | settings
        return scrub.check(self.target, scrub.Settings(self.area, **given))


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


# --- damages: each returns the name of what it damaged ---------------------------------------


def missing(store: Store) -> str:
    uuid = store.take()
    if store.area:
        store.path(uuid).unlink()
    else:
        execute(store.target, f"DELETE FROM storagearea WHERE uuid = '{uuid}'")
    return uuid


def missing_object(store: Store) -> str:
    """The row of the storage area is there, its large object is not; with files, the folders are gone."""
    uuid = store.take()
    if store.area:
        store.path(uuid).unlink()
        for folder in store.path(uuid).parents[:2]:
            if not any(folder.iterdir()):
                folder.rmdir()
    else:
        execute(
            store.target, f"SELECT lo_unlink(content) FROM storagearea WHERE uuid = '{uuid}' AND type = 1"
        )
    return uuid


def half(store: Store) -> str:
    uuid = store.take()
    content = store.read(uuid)
    store.write(uuid, content[: len(content) // 2])
    return uuid


def one_byte_less(store: Store) -> str:
    uuid = store.take()
    store.write(uuid, store.read(uuid)[:-1])
    return uuid


def empty(store: Store) -> str:
    uuid = store.take()
    store.write(uuid, b"")
    return uuid


def longer(store: Store) -> str:
    uuid = store.take()
    store.write(uuid, store.read(uuid) + bytes(10))
    return uuid


def altered_end(store: Store) -> str:
    uuid = store.take()
    content = bytearray(store.read(uuid))
    content[-1] ^= 0xFF
    store.write(uuid, bytes(content))
    return uuid


def altered_beginning(store: Store) -> str:
    uuid = store.take()
    content = bytearray(store.read(uuid))
    content[3] ^= 0xFF  # of the preamble, or of the size
    store.write(uuid, bytes(content))
    return uuid


def zeros(store: Store) -> str:
    uuid = store.take()
    store.write(uuid, bytes(len(store.read(uuid))))
    return uuid


def other_instance(store: Store) -> str:
    uuid = store.take()
    store.write(uuid, store.read(store.take()))
    return uuid


def wrong_both_hashes(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, f"uncompressedhash = '{'0' * 32}', compressedhash = '{'0' * 32}'")
    return uuid


def wrong_stored_hash(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, f"compressedhash = '{'0' * 32}'")
    return uuid


def wrong_content_hash(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, f"uncompressedhash = '{'0' * 32}'")
    return uuid


def null_hash(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "uncompressedhash = NULL")
    return uuid


def one_empty_hash(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "compressedhash = ''")
    return uuid


def wrong_size(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "uncompressedsize = uncompressedsize + 1")
    return uuid


def wrong_stored_size(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "compressedsize = compressedsize - 1")
    return uuid


def both_sizes_wrong(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "compressedsize = compressedsize + 2, uncompressedsize = uncompressedsize + 2")
    return uuid


def null_size(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "compressedsize = NULL")
    return uuid


def unknown_compression(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "compressiontype = 7")
    return uuid


def not_compressed(store: Store) -> str:
    """The row says zlib, the bytes are plain."""
    uuid = store.take()
    content = store.read(uuid)
    if store.compress:
        store.write(uuid, zlib.decompress(content[8:]))
    else:
        store.update(uuid, "compressiontype = 2")
    return uuid


def other_level(store: Store) -> str:
    """The same content, compressed by another zlib level."""
    uuid = store.take()
    content = store.read(uuid)
    if not store.compress:
        return wrong_stored_hash(store)
    plain = zlib.decompress(content[8:])
    store.write(uuid, struct.pack("<Q", len(plain)) + zlib.compress(plain, 1))
    return uuid


def huge_prefix(store: Store) -> str:
    uuid = store.take()
    store.write(uuid, struct.pack("<Q", 1 << 60) + store.read(uuid)[8:])
    return uuid


def bomb(store: Store) -> str:
    """A small file that would inflate to 100 MB."""
    uuid = store.take()
    store.write(uuid, struct.pack("<Q", 5) + zlib.compress(bytes(100_000_000), 9))
    return uuid


def unknown_customdata(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, "customdata = '{}'")
    return uuid


def newer_customdata(store: Store) -> str:
    uuid = store.take()
    store.update(uuid, """customdata = '{"o":true,"p":"x","v":2}'""")
    return uuid


def s3_zip(store: Store) -> str:
    uuid = store.take()
    data = {"storage": "s3-zip", "local": "x", "s3zip": "k", "series-id": "s", "size": 3}
    store.update(uuid, f"customdata = '{json.dumps(data)}'")
    return uuid


def orphan_dicom(store: Store) -> str:
    return store.add(samples.instance("P9", "1.9", "1.9.1"))


def orphan_indexed(store: Store) -> str:
    return store.add(samples.instance("P1", "1.2.1", "1.2.1.0", 1))


def orphan_compressed(store: Store) -> str:
    content = samples.instance("P8", "1.8", "1.8.1")
    return store.add(struct.pack("<Q", len(content)) + zlib.compress(content))


def orphan_other(store: Store) -> str:
    return store.add(b"nothing in particular")


def orphan_empty(store: Store) -> str:
    return store.add(b"")


BOTH: dict[Callable[[Store], str], str] = {
    missing: "missing",
    missing_object: "missing",
    half: "truncated",
    one_byte_less: "truncated",
    empty: "truncated",
    longer: "too-long",
    altered_end: "altered",
    altered_beginning: "altered",
    zeros: "altered",
    other_instance: "wrong-instance",
    wrong_both_hashes: "altered",
    wrong_stored_hash: "wrong-hash",
    wrong_content_hash: "wrong-hash",
    null_hash: "missing-hash",
    one_empty_hash: "missing-hash",
    wrong_size: "wrong-size",
    wrong_stored_size: "wrong-size",
    both_sizes_wrong: "wrong-size",
    null_size: "wrong-size",
    unknown_compression: "wrong-compression",
    not_compressed: "wrong-compression",
    other_level: "wrong-hash",
    unknown_customdata: "aborting-customdata",
    newer_customdata: "aborting-customdata",
    s3_zip: "unknown-customdata",
    orphan_dicom: "orphan-dicom",
    orphan_indexed: "orphan-dicom",
    orphan_compressed: "orphan-dicom",
    orphan_other: "orphan-other",
    orphan_empty: "orphan-other",
}


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


def folder_in_its_place(store: Store) -> str:
    uuid = store.take()
    store.path(uuid).unlink()
    store.path(uuid).mkdir()
    return uuid


def symlink(store: Store) -> str:
    uuid = store.take()
    moved = store.path(uuid).rename(store.area.parent / "moved")  # type: ignore[union-attr]
    store.path(uuid).symlink_to(moved)
    return uuid


def pipe(store: Store) -> str:
    uuid = store.take()
    store.path(uuid).unlink()
    os.mkfifo(store.path(uuid))
    return uuid


def moved_to_another_folder(store: Store) -> str:
    uuid = store.take()
    other = store.area / "ff" / "ff"  # type: ignore[operator]
    other.mkdir(parents=True, exist_ok=True)
    store.path(uuid).rename(other / uuid)
    return uuid


def at_the_top(store: Store) -> str:
    name = str(uuids.uuid4())
    (store.area / name).write_bytes(b"x")  # type: ignore[operator]
    return name


def bad_name(store: Store) -> str:
    folder = store.path(store.take()).parent
    (folder / "Thumbs.db").write_bytes(b"x")
    return "Thumbs.db"


def bad_name_above(store: Store) -> str:
    (store.path(store.take()).parent.parent / "note\n.txt").write_bytes(b"x")
    return "note\n.txt"


def temporary(store: Store) -> str:
    name = storage.temporary_name(str(uuids.uuid4()))
    (store.path(store.take()).parent / name).write_bytes(b"half")
    return name


def recorded(store: Store) -> str:
    """A file that an import has recorded in its journal, before it was killed."""
    uuid = store.add(samples.instance("P7", "1.7", "1.7.1"))
    folder = store.area / storage.JOURNAL_FOLDER / "dead"  # type: ignore[operator]
    folder.mkdir(parents=True)
    (folder / "00000001.json").write_text(json.dumps({"database": "x", "uuids": [uuid]}))
    return uuid


def uuid_that_is_none(store: Store) -> str:
    uuid = store.take()
    store.path(uuid).unlink()
    store.update(uuid, "uuid = '../../etc/passwd'")
    return "../../etc/passwd"


def shared(store: Store) -> str:
    uuid, lost = store.take(), store.take()
    store.path(lost).unlink()
    store.update(lost, f"uuid = '{uuid}'")
    return uuid


def awaiting_deletion(store: Store) -> str:
    uuid = store.add(samples.instance("P6", "1.6", "1.6.1"))
    path = str(store.path(uuid)).encode().hex()
    execute(store.target, f"INSERT INTO queues VALUES (DEFAULT, 'advst-delayed-deletion', '\\x{path}')")
    return uuid


FILES: dict[Callable[[Store], str], str] = {
    folder_in_its_place: "missing",
    symlink: "symlink",
    pipe: "missing",
    moved_to_another_folder: "missing",
    at_the_top: "orphan-other",
    bad_name: "foreign-file",
    bad_name_above: "foreign-file",
    temporary: "import-leftover",
    recorded: "import-leftover",
    uuid_that_is_none: "invalid-uuid",
    shared: "duplicate-uuid",
    awaiting_deletion: "pending-deletion",
}


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
