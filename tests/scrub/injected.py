"""Damages of a store: each function causes one, and returns the name of what it damaged."""

from __future__ import annotations

import json
import os
import struct
import uuid as uuids
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, scrub, storage
from pgorthanc_cli.scrub import StorageReport
from tests.support import samples
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

    def contents(self) -> dict[str, bytes]:
        """All that is stored, by UUID."""
        if self.area:
            return {path.name: path.read_bytes() for path in self.area.rglob("*") if path.is_file()}
        query = "SELECT uuid, lo_get(oid) FROM storagearea JOIN pg_largeobject_metadata ON oid = content"
        return {uuid: bytes(content) for uuid, content in rows(self.target, query)}

    def copy_to(self, folder: Path) -> Path:
        """Write everything into a folder that is laid out as a storage area."""
        for uuid, content in self.contents().items():
            path = folder / uuid[:2] / uuid[2:4] / uuid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

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


# --- files only -----------------------------------------------------------------------------


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
