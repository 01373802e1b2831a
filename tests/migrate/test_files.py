"""The attachments of a converted index: compared with their files, or copied into PostgreSQL."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, storage
from pgorthanc_cli.errors import PgOrthancError
from tests.support import migrating, sqliteindex
from tests.support.migrating import convert
from tests.support.schemas import rows, snapshot


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, Path]:
    """An index whose attachments have files, and their folder."""
    path = sqliteindex.rich(tmp_path / "index", instances=130)
    folder = tmp_path / "storage"
    area = storage.FilesystemArea(folder, sync=False)
    area.prepare()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE AttachedFiles SET customData = NULL")
        for rowid, uuid in conn.execute("SELECT rowid, uuid FROM AttachedFiles").fetchall():
            content = uuid.encode() * (rowid % 7)
            area.put(uuid, 1, [content])
            md5 = hashlib.md5(content).hexdigest()
            conn.execute(
                "UPDATE AttachedFiles SET compressedSize = ?, compressedMD5 = ? WHERE rowid = ?",
                (len(content), md5, rowid),
            )
        conn.commit()
    return path, folder


def spoil(path: Path, folder: Path) -> None:
    """One file is missing, one is shorter, one has another content."""
    area = storage.FilesystemArea(folder)
    with closing(sqlite3.connect(path)) as conn:
        names = [
            name
            for (name,) in conn.execute(
                "SELECT uuid FROM AttachedFiles WHERE rowid IN (8, 9, 10) ORDER BY rowid"
            )
        ]
    area.path(names[0]).unlink()
    area.path(names[1]).write_bytes(area.path(names[1]).read_bytes()[:-1])
    area.path(names[2]).write_bytes(area.path(names[2]).read_bytes()[::-1])


@pytest.mark.parametrize(
    ("option", "hashed", "differing"), [("verify_files", 0, 1), ("verify_hashes", 129, 2)]
)
def test_files_are_compared(
    empty: db.Target, archive: tuple[Path, Path], option: str, hashed: int, differing: int
) -> None:
    path, folder = archive
    sound = migrating.check(path, storage_dir=folder, verify_hashes=True).files
    assert sound
    assert (sound.checked, sound.hashed, sound.missing, sound.differing) == (131, 131, 0, 0)
    spoil(path, folder)
    options: dict[str, Any] = {option: True}
    found = convert(empty, path, storage_dir=folder, **options).files
    assert found
    assert (found.checked, found.hashed, found.missing, found.differing) == (131, hashed, 1, differing)
    assert str(found).startswith(
        f"131 looked for, {hashed} hashed, 1 missing, {differing} differing, such as "
    )
    assert len(found.examples) == 1 + differing
    migrating.require_index(empty)  # the index is what it was; the report tells of the files


def test_what_a_storage_plugin_keeps_is_compared_where_it_keeps_it(
    archive: tuple[Path, Path], tmp_path: Path
) -> None:
    path, folder = archive
    elsewhere, adopted, stored = "unknown", '{"o":false,"p":"/no/file","v":1}', '{"o":true,"s":"1","v":1}'
    for condition, data in (("< 31", elsewhere), ("= 31", adopted), ("IN (32, 33)", stored)):
        change = f"UPDATE AttachedFiles SET customData = CAST('{data}' AS BLOB) WHERE rowid {condition}"
        sqliteindex.change(path, change)
    second = tmp_path / "second"
    with closing(sqlite3.connect(path)) as conn:
        ((uuid,),) = conn.execute("SELECT uuid FROM AttachedFiles WHERE rowid = 32")
    target = storage.FilesystemArea(second).path(uuid)
    target.parent.mkdir(parents=True)
    storage.FilesystemArea(folder).path(uuid).rename(target)
    options: dict[str, Any] = {"storage_dir": folder, "verify_hashes": True}
    found = migrating.check(path, storages={"1": second}, **options).files
    assert found
    assert (found.elsewhere, found.checked, found.missing, found.differing) == (30, 101, 2, 0)
    unknown = migrating.check(path, **options).files
    assert unknown
    assert (unknown.elsewhere, unknown.checked, unknown.missing) == (32, 99, 1)


def test_files_become_large_objects(empty: db.Target, archive: tuple[Path, Path]) -> None:
    path, folder = archive
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    converted = convert(empty, path, storage_dir=folder, large_objects=True)
    assert converted.large_objects == 131
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    stored = "SELECT uuid, length(lo_get(content)), md5(lo_get(content)) FROM storagearea ORDER BY 1"
    assert rows(empty, stored) == rows(
        empty, "SELECT uuid, compressedsize, compressedhash FROM attachedfiles ORDER BY 1"
    )
    assert rows(empty, "SELECT type, count(*) FROM storagearea GROUP BY 1 ORDER BY 1") == [(0, 1), (1, 130)]
    migrating.require_index(empty)


def test_with_files_missing_there_is_no_index_until_they_are_back(
    empty: db.Target, archive: tuple[Path, Path]
) -> None:
    path, folder = archive
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    spoil(path, folder)
    with pytest.raises(
        PgOrthancError, match="1 files of the storage folder are missing, 2 are not what"
    ) as error:
        convert(empty, path, storage_dir=folder, large_objects=True)
    assert "run it again" in (error.value.hint or "")
    assert "table pgorthanc_migration" in snapshot(empty)
    for file, content in kept.items():
        file.write_bytes(content)
    converted = convert(empty, path, storage_dir=folder, large_objects=True)
    assert (converted.resumed, converted.large_objects) == (True, 131)
    assert rows(empty, "SELECT count(*), count(DISTINCT uuid) FROM storagearea") == [(131, 131)]
    assert rows(empty, "SELECT count(*) FROM pg_largeobject_metadata") == [(131,)]
    migrating.require_index(empty)
