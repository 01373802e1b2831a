"""Storage areas: folders as Orthanc stores files, or PostgreSQL's large objects."""

from pgorthanc_cli.storage.area import (
    CHUNK_BYTES,
    UUID_PATTERN,
    Area,
    Stream,
    decode,
    encode,
    is_uuid,
    new_uuids,
    write_error,
)
from pgorthanc_cli.storage.filesystem import JOURNAL_FOLDER, FilesystemArea, temporary_name
from pgorthanc_cli.storage.large_objects import LargeObjectArea

__all__ = [
    "CHUNK_BYTES", "JOURNAL_FOLDER", "UUID_PATTERN", "Area", "FilesystemArea", "LargeObjectArea", "Stream",
    "decode", "encode", "is_uuid", "new_uuids", "temporary_name", "write_error",
]  # fmt: skip
