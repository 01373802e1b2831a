"""What import writes for a file is what the real Orthanc writes for it, and each reads the other's files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest

from pgorthanc_cli import db, storage
from tests.interop import files, lifecycle
from tests.interop.archive import Archive
from tests.support.areas import stored_bytes
from tests.support.compressors import with_isal, without_isal
from tests.support.schemas import rows

pytestmark = pytest.mark.interop

NAMES = {1: "dicom", 3: "dicom-until-pixel-data"}  # of file types

OWN_FILES = sorted(
    path for folder in ("charset_files", "test_files") for path in (files.DATA / folder).glob("*.dcm")
)


@pytest.mark.parametrize(
    ("postgresql_storage", "compressed"),
    [(False, False), (True, False), (True, True)],
    ids=["filesystem", "postgresql", "postgresql-compressed"],
)
def test_import_writes_what_orthanc_writes(
    new_archive: Callable[..., Archive], postgresql_storage: bool, compressed: bool
) -> None:
    by_orthanc, by_import = (
        new_archive(postgresql_storage=postgresql_storage, StorageCompression=compressed) for _ in range(2)
    )
    with by_orthanc.orthanc() as rest:
        refused = {str(path) for path in OWN_FILES if rest.upload(path.read_bytes()) is None}
        served = lifecycle.served(rest)
    with by_import.orthanc():
        pass  # it makes its index
    with without_isal():  # Orthanc has none either
        result = by_import.pgorthanc(
            "import", "--json", "--orthanc-version", by_import.program.version(), *OWN_FILES
        )
    assert {refusal["path"] for refusal in json.loads(result.stdout)["refusals"]} == refused
    assert by_import.dump() == by_orthanc.dump()
    lifecycle.check_storage(by_import)
    with by_import.orthanc() as rest:
        assert lifecycle.served(rest) == served
    assert read_by_pgorthanc(by_orthanc) == served


@pytest.mark.parametrize("postgresql_storage", [False, True], ids=["filesystem", "postgresql"])
def test_orthanc_reads_what_isal_has_compressed(
    new_archive: Callable[..., Archive], postgresql_storage: bool
) -> None:
    archive = new_archive(postgresql_storage=postgresql_storage, StorageCompression=True)
    with archive.orthanc():
        pass  # it makes its index
    with with_isal():
        result = archive.pgorthanc(
            "import", "--json", "--orthanc-version", archive.program.version(), *OWN_FILES
        )
    refused = {refusal["path"] for refusal in json.loads(result.stdout)["refusals"]}
    imported = {path.read_bytes() for path in OWN_FILES if str(path) not in refused}
    lifecycle.check_storage(archive)
    query = """SELECT r.publicid, a.filetype, a.uncompressedhash, a.compressedhash FROM attachedfiles a
               JOIN resources r ON r.internalid = a.id"""
    attachments = rows(archive.target, query)
    assert {file_type for _, file_type, _, _ in attachments} == {1, 3}
    with archive.orthanc() as rest:
        assert set(lifecycle.served(rest).values()) <= imported
        for public_id, file_type, md5, stored_md5 in attachments:
            attachment = f"/instances/{public_id}/attachments/{NAMES[file_type]}"
            for part, expected in (("data", md5), ("compressed-data", stored_md5)):
                assert hashlib.md5(rest.send("GET", f"{attachment}/{part}")).hexdigest() == expected
            rest.send("POST", f"{attachment}/verify-md5", b"{}")


def read_by_pgorthanc(archive: Archive) -> dict[str, bytes]:
    """Public id -> DICOM file, as pgorthanc finds it in the storage area of Orthanc."""
    query = """SELECT r.publicid, a.uuid, a.compressiontype FROM attachedfiles a
               JOIN resources r ON r.internalid = a.id WHERE a.filetype = 1"""
    named = rows(archive.target, query)
    with db.session(archive.target) as conn:
        large_objects = archive.section["EnableStorage"]
        area: storage.Area = (
            storage.LargeObjectArea(conn) if large_objects else storage.FilesystemArea(archive.storage)
        )
        stored = [(public_id, stored_bytes(area, uuid), kind) for public_id, uuid, kind in named]
    return {public_id: storage.decode(data) if kind == 2 else data for public_id, data, kind in stored}
