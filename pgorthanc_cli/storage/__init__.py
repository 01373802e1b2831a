"""Where the files of instances are stored: in folders as Orthanc keeps them, or as large objects of PostgreSQL."""

from pgorthanc_cli.storage.areas import (
    CHUNK_BYTES,
    UUID,
    Area,
    FilesystemArea,
    LargeObjectArea,
    decode,
    encode,
    is_uuid,
    new_uuids,
    open_folder,
    temporary_name,
    unusable,
)

__all__ = [
    "CHUNK_BYTES", "UUID", "Area", "FilesystemArea", "LargeObjectArea", "decode", "encode", "is_uuid", "new_uuids",
    "open_folder", "temporary_name", "unusable",
]  # fmt: skip
