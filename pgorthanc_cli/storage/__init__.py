"""Storage areas: folders as Orthanc stores files, or PostgreSQL's large objects."""

from pgorthanc_cli.storage.area import (
    CHUNK_BYTES,
    UUID_PATTERN,
    Area,
    Stream,
    compressed,
    decode,
    decompressed,
    encode,
    file_path,
    is_uuid,
    new_uuids,
    write_error,
)
from pgorthanc_cli.storage.filesystem import JOURNAL_FOLDER, FilesystemArea, temporary_name
from pgorthanc_cli.storage.large_objects import LargeObjectArea
from pgorthanc_cli.storage.named_files import NamedFiles

__all__ = [
    "CHUNK_BYTES", "JOURNAL_FOLDER", "UUID_PATTERN", "Area", "FilesystemArea", "LargeObjectArea", "NamedFiles",
    "Stream", "compressed", "decode", "decompressed", "encode", "file_path", "is_uuid", "new_uuids",
    "temporary_name", "write_error",
]  # fmt: skip
