"""Storage areas: folders as Orthanc stores files, or PostgreSQL's large objects."""

from pgorthanc_cli.constants import file_path
from pgorthanc_cli.storage.area import UUID_PATTERN, Area, Stream, is_uuid, new_uuids, write_error
from pgorthanc_cli.storage.compression import (
    CHUNK_BYTES,
    Inflater,
    NewCompressor,
    compressed,
    compressors,
    decode,
    decompressed,
    encode,
)
from pgorthanc_cli.storage.filesystem import JOURNAL_FOLDER, FilesystemArea, temporary_name
from pgorthanc_cli.storage.large_objects import LargeObjectArea
from pgorthanc_cli.storage.named_files import NamedFiles

__all__ = [
    "CHUNK_BYTES", "JOURNAL_FOLDER", "UUID_PATTERN", "Area", "FilesystemArea", "Inflater",
    "LargeObjectArea", "NamedFiles", "NewCompressor",
    "Stream", "compressed", "compressors", "decode", "decompressed", "encode", "file_path", "is_uuid", "new_uuids",
    "temporary_name", "write_error",
]  # fmt: skip
