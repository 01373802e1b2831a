"""Whether a file is what the index has stored under its identifiers, and whether the stored content is still there.

A stored instance whose content is missing (a lost disk, a dump without large objects) is given back exactly the
bytes that its row describes, under the same uuid. A row is never changed for that: what cannot be reproduced to the
byte is reported as different.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import index, storage

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

DICOM = 1  # file type
ZLIB = 2  # compression type
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Verdict(NamedTuple):
    """How a file and the stored instance compare.

    Attributes:
        difference: In what they differ; empty: they do not, as far as was compared.
        compared: Their MD5s were compared; False: only their sizes, because the index has no MD5.
    """

    difference: str
    compared: bool


def compare(attachments: Sequence[index.StoredAttachment], size: int, md5: str) -> Verdict:
    """Compare a file with the stored DICOM file of its instance (with each one, should there be duplicates)."""
    files = [a for a in attachments if a.file_type == DICOM]
    if not files:
        return Verdict("the index has the instance, but no DICOM file of it", compared=True)
    if any(a.md5 == md5 for a in files):
        return Verdict("", compared=True)
    if any(not a.md5 and a.size == size for a in files):
        return Verdict("", compared=False)
    first = files[0]
    stored_md5 = f", MD5 {first.md5}" if first.md5 else ""
    return Verdict(
        f"the stored file is another one: {first.size} bytes{stored_md5}; this file: {size} bytes, MD5 {md5}",
        compared=True,
    )


def lost(cur: Cursor, storage_dir: Path | None, attachments: Iterable[index.StoredAttachment]) -> set[str]:
    """The uuids of those whose content is missing in the storage area: a folder, or (None) large objects.

    What is not in the folder but among the large objects is not lost: it was stored when Orthanc was set up otherwise.
    """
    if storage_dir is None:
        return {a.uuid for a in lost_objects(cur, attachments)}
    missing = lost_files(storage.FilesystemArea(storage_dir), attachments)
    return {a.uuid for a in lost_objects(cur, missing)}


def lost_files(
    area: storage.FilesystemArea, attachments: Iterable[index.StoredAttachment]
) -> list[index.StoredAttachment]:
    """Those whose file is missing, or has not the size that the index says.

    A row whose uuid is not one says nothing about a place in the area.
    """
    root = os.fspath(area.root)
    return [a for a in attachments if not a.elsewhere and _UUID.fullmatch(a.uuid) and not _is_whole(root, a)]


def _is_whole(root: str, attachment: index.StoredAttachment) -> bool:
    uuid = attachment.uuid
    try:
        status = os.stat(
            f"{root}/{uuid[:2]}/{uuid[2:4]}/{uuid}"
        )  # as `area.path`, which takes four times as long
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == attachment.stored_size


def lost_objects(cur: Cursor, attachments: Iterable[index.StoredAttachment]) -> list[index.StoredAttachment]:
    """Those whose large object is missing."""
    ours = [a for a in attachments if not a.elsewhere]
    if not ours:
        return []
    absent = index.missing_large_objects(cur, [a.uuid for a in ours])
    return [a for a in ours if a.uuid in absent]


def reproduces(lost: Sequence[index.StoredAttachment], data: memoryview) -> bool:
    """Whether this content gives exactly the bytes that the rows of the lost attachments describe."""
    return all(_reproduces(attachment, data) for attachment in lost)


def _reproduces(attachment: index.StoredAttachment, data: memoryview) -> bool:
    part = data[: attachment.size]
    if len(part) != attachment.size or not attachment.md5 or _md5(part) != attachment.md5:
        return False
    if attachment.file_type == DICOM and len(data) != attachment.size:
        return False
    if attachment.compression_type != ZLIB:
        return attachment.stored_size == attachment.size and attachment.stored_md5 == attachment.md5
    digest, size = hashlib.md5(usedforsecurity=False), 0
    for piece in encoded(attachment, data):
        digest.update(piece)
        size += len(piece)
    return (size, digest.hexdigest()) == (attachment.stored_size, attachment.stored_md5)


def encoded(attachment: index.StoredAttachment, data: memoryview) -> Iterator[bytes | memoryview]:
    """The bytes of an attachment as they are stored, made of the content of the whole DICOM file."""
    return storage.encode(data[: attachment.size], compress=attachment.compression_type == ZLIB)


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
