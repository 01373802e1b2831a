"""The real Orthanc serves every instance before, between and after the phases of `storage move`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.archive import Archive
from tests.interop.orthanc import Rest
from tests.support import samples

pytestmark = pytest.mark.interop


def served(rest: Rest) -> dict[str, bytes]:
    """All instances with their files."""
    return {each: rest.send("GET", f"/instances/{each}/file") for each in rest.get("/instances")}


@pytest.mark.parametrize(
    ("to_objects", "compress"), [(False, True), (True, False)], ids=["to-files", "to-objects"]
)
def test_all_phases(
    new_archive: Callable[..., Archive], tmp_path: Path, to_objects: bool, compress: bool
) -> None:
    archive = new_archive(postgresql_storage=not to_objects)
    contents = [path.read_bytes() for path in samples.folder(tmp_path / "in", 9)]
    contents.append(samples.REAL.read_bytes())
    ends = ["--to", "postgresql" if to_objects else "filesystem", "--storage-dir", archive.storage]

    with archive.orthanc(StorageCompression=compress) as rest:
        identifiers = [rest.upload(content) for content in contents[:8]]
        before = served(rest)
        archive.done("storage move", *ends)
        assert served(rest) == before
        rest.delete(f"/instances/{identifiers[0]}")
        rest.upload(contents[8])
        refused = archive.pgorthanc("storage move", *ends, "--phase", "switch")
        assert (refused.exit_code, "is in use" in refused.output) == (5, True)
        between = served(rest)

    switched = archive.done("storage move", *ends, "--phase", "switch")
    assert (switched["copied"], switched["unknown"]) == (2, 2) if compress else (1, 1)
    with archive.orthanc(StorageCompression=compress) as rest:  # going back needs nothing
        assert served(rest) == between

    archive.section["EnableStorage"] = to_objects
    with archive.orthanc(StorageCompression=compress) as rest:
        assert served(rest) == between
        rest.upload(contents[9])
        after = served(rest)
        cleaned = archive.done("storage move", *ends, "--phase", "clean")
        assert cleaned["removed"] >= len(between)
        assert served(rest) == after
    with archive.orthanc(StorageCompression=compress) as rest:
        assert served(rest) == after
        identifier, *_ = after
        rest.delete(f"/instances/{identifier}")
    verified = json.loads(archive.pgorthanc("verify storage --json --grace 0").stdout)
    assert set(verified["counts"]) <= {"orphan-dicom", "orphan-other"}  # deleted since the copy


def test_compression_on_the_way(new_archive: Callable[..., Archive], tmp_path: Path) -> None:
    """Compressed files become large objects without compression, and compressed files again."""
    archive = new_archive(postgresql_storage=False)
    contents = [path.read_bytes() for path in samples.folder(tmp_path / "in", 2)]
    with archive.orthanc(StorageCompression=True) as rest:
        for content in (*contents, samples.REAL.read_bytes()):
            rest.upload(content)
        before, size = served(rest), rest.get("/statistics")["TotalDiskSize"]
    for to, compression in (("postgresql", "none"), ("filesystem", "zlib")):
        ends = ["--to", to, "--storage-dir", str(archive.storage), "--compression", compression]
        archive.done("storage move", *ends, "--phase", "switch")
        archive.section["EnableStorage"] = to == "postgresql"
        with archive.orthanc() as rest:
            assert served(rest) == before
            for identifier in before:
                rest.send("POST", f"/instances/{identifier}/attachments/dicom/verify-md5", b"")
            assert (rest.get("/statistics")["TotalDiskSize"] == size) == (compression == "zlib")
        archive.done("storage move", *ends, "--phase", "clean")
    assert json.loads(archive.pgorthanc("verify storage --json --grace 0").stdout)["counts"] == {}
