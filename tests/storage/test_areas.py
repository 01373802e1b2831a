"""The filesystem area in batches: what is written, where, and that it is synced."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import storage
from pgorthanc_cli.storage import durable
from tests.support.areas import stored_bytes

_NOT_TRUSTED = Path("/dev/shm")  # tmpfs: synced file by file


@pytest.fixture(params=["any", "file by file"])
def area(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> storage.FilesystemArea:
    if request.param == "file by file":
        monkeypatch.setattr(durable, "_can_sync_file_system", lambda descriptor: False)
    return storage.FilesystemArea(tmp_path)


def test_uuids_are_random_and_share_folders() -> None:
    names = storage.new_uuids(1000)
    assert len(set(names)) == 1000
    assert all(str(uuid.UUID(name)) == name and uuid.UUID(name).version == 4 for name in names)
    assert len({name[:4] for name in names}) <= 16
    assert storage.new_uuids(0) == []


@pytest.mark.parametrize("count", [1, 8, 9, 200])
def test_a_batch(area: storage.FilesystemArea, count: int) -> None:
    names = storage.new_uuids(count)
    with area.batch():
        for name in names:
            area.put(name, 1, [b"content of ", memoryview(name.encode())])
    assert {name: stored_bytes(area, name) for name in names} == {
        name: b"content of " + name.encode() for name in names
    }
    assert sum(len(files) for _, _, files in os.walk(area.root)) == count
    for name in names:
        area.delete(name)
    assert not any(area.root.iterdir())


def test_a_file_that_fails_leaves_nothing_and_the_others_stay(area: storage.FilesystemArea) -> None:
    good, bad = storage.new_uuids(2)

    def breaks() -> Iterator[bytes]:
        yield b"some"
        raise ValueError("half-way")

    with area.batch():
        area.put(good, 1, [b"whole"])
        with pytest.raises(ValueError, match="half-way"):
            area.put(bad, 1, breaks())
    assert stored_bytes(area, good) == b"whole"
    with pytest.raises(FileNotFoundError):
        stored_bytes(area, bad)


def test_after_a_batch_each_file_is_synced_by_itself_again(area: storage.FilesystemArea) -> None:
    with area.batch():
        pass
    (name,) = storage.new_uuids(1)
    area.put(name, 1, [b"x"])
    assert stored_bytes(area, name) == b"x"


def test_a_batch_never_touches_a_file_that_is_there(area: storage.FilesystemArea) -> None:
    (name,) = storage.new_uuids(1)
    area.put(name, 1, [b"x"])
    with pytest.raises(FileExistsError), area.batch():
        area.put(name, 1, [b"y"])
    assert stored_bytes(area, name) == b"x"


def test_a_file_that_is_gone_before_the_sync_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_can_sync_file_system", lambda descriptor: False)
    area = storage.FilesystemArea(tmp_path)
    (name,) = storage.new_uuids(1)
    with pytest.raises(FileNotFoundError), area.batch():
        area.put(name, 1, [b"x"])
        area.path(name).unlink()


@pytest.mark.skipif(not _NOT_TRUSTED.is_dir(), reason="no tmpfs at /dev/shm")
def test_only_file_systems_that_sync_as_a_whole_are_trusted() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platform.release", lambda: "5.7.0-generic")
        with durable.SyncGroup(Path("/")) as group:
            assert not durable._can_sync_file_system(group._descriptor)
    with durable.SyncGroup(_NOT_TRUSTED) as group:
        assert not durable._can_sync_file_system(group._descriptor)
