"""The content of one attachment: read, hashed, decompressed, compared with its row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from pgorthanc_cli import dicom, storage
from pgorthanc_cli.scrub import model
from pgorthanc_cli.scrub.model import Row

DICOM_TYPES = (1, 3)
ZLIB = 2
MAX_PARSED = 1 << 30  # bytes; a larger file is compared by its MD5 only

Chunks = Callable[[], Iterator[bytes]]
"""Returns the stored bytes from the beginning, each time it is called."""


class Content(NamedTuple):
    """What an attachment holds.

    Attributes:
        stored_size, stored_md5: Of the stored bytes.
        size, md5: Of the content; None if it cannot be decompressed.
        problem: Why it cannot be decompressed.
        trailing: Bytes after the end of the compressed content.
    """

    stored_size: int
    stored_md5: str
    size: int | None
    md5: str | None
    problem: str = ""
    trailing: int = 0


def digest(chunks: Iterator[bytes], *, compressed: bool) -> Content:
    """Read the stored bytes once and return their sizes and MD5 sums."""
    stored = hashlib.md5(usedforsecurity=False)
    stored_size = 0
    inflater, content = storage.Inflater(), hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        stored.update(chunk)
        stored_size += len(chunk)
        if compressed:
            for piece in inflater.inflate(chunk):
                content.update(piece)
    if not compressed:
        return Content(stored_size, stored.hexdigest(), stored_size, stored.hexdigest())
    inflater.finish()
    size, md5 = (None, None) if inflater.problem else (inflater.size, content.hexdigest())
    return Content(stored_size, stored.hexdigest(), size, md5, inflater.problem, inflater.trailing)


def row_problem(row: Row, *, store_md5: bool | None) -> tuple[str, str] | None:
    """Return kind and detail of what is wrong with a row, whatever its file holds."""
    # Seen with the real Orthanc: NULL and empty text are not the same to it.
    if row.md5 is None or row.stored_md5 is None:
        return model.MISSING_HASH, "NULL: Orthanc can neither read nor delete this attachment"
    if bool(row.md5) != bool(row.stored_md5):
        name = "compressedhash" if row.md5 else "uncompressedhash"
        return model.MISSING_HASH, f"{name} is empty: Orthanc refuses to read this attachment"
    if not row.md5 and store_md5:
        return model.MISSING_HASH, "empty, although StoreMD5ForAttachments is on: Orthanc refuses to read it"
    if row.compression not in (1, ZLIB):
        return model.WRONG_COMPRESSION, f"compression type {row.compression}, expected 1 or 2"
    if row.size is None or row.stored_size is None:
        return model.WRONG_SIZE, "a size is NULL"
    return None


def size_problem(row: Row, actual: int) -> tuple[str, str] | None:
    """Return kind and detail if the size of the stored bytes is not that of the row."""
    if row.stored_size is None:
        return None
    # Without compression both sizes are one: the file agrees with one of them, so the other is wrong.
    if row.compression == 1 and row.size != row.stored_size and actual in (row.size, row.stored_size):
        name = "uncompressedsize" if actual == row.stored_size else "compressedsize"
        value = row.size if actual == row.stored_size else row.stored_size
        return model.WRONG_SIZE, f"{name} is {value:,}, the file has {actual:,} bytes"
    if actual == row.stored_size:
        return None
    kind = model.TRUNCATED if actual < row.stored_size else model.TOO_LONG
    return kind, f"{actual:,} of {row.stored_size:,} bytes"


def shallow_problem(row: Row, actual: int | None, *, store_md5: bool | None) -> tuple[str, str] | None:
    """Return kind and detail of what a row and the size of its file show; None if they agree."""
    difference = row_problem(row, store_md5=store_md5)
    return difference if difference or actual is None else size_problem(row, actual)


def judge(row: Row, content: Content) -> tuple[str, str] | None:
    """Compare a content with its row; return kind and detail of a difference.

    Where the content is proved right by one of the two MD5 sums, the row is wrong.
    """
    stored_right = bool(row.stored_md5) and content.stored_md5 == row.stored_md5
    right = bool(row.md5) and content.md5 == row.md5
    if row.compression == ZLIB and row.md5 and content.md5 is None and content.stored_md5 == row.md5:
        return model.WRONG_COMPRESSION, "the row says zlib, but the file is not compressed"
    # Neither sum fits: the file has changed, and the size may tell how.
    if not stored_right and not right and row.md5 and row.stored_md5:
        difference = size_problem(row, content.stored_size)
        if difference and difference[0] != model.WRONG_SIZE:
            return difference
        reason = f", and {content.problem}" if content.problem else ""
        return model.ALTERED, f"MD5 {content.stored_md5} instead of {row.stored_md5}{reason}"
    return _judge_row(row, content, stored_right=stored_right, right=right)


def _judge_row(row: Row, content: Content, *, stored_right: bool, right: bool) -> tuple[str, str] | None:
    """Return what differs although the content is right, or cannot be compared."""
    if row.stored_md5 and not stored_right:
        if content.trailing and row.stored_size == content.stored_size - content.trailing:
            return size_problem(row, content.stored_size)
        if row.compression == ZLIB and content.stored_size != row.stored_size:
            # Another release of zlib makes other bytes of the same content.
            return model.WRONG_HASH, "the content is right, but compressed in another way"
        return model.WRONG_HASH, f"compressedhash is {row.stored_md5}, the file has {content.stored_md5}"
    if content.problem:
        return model.WRONG_COMPRESSION if stored_right else model.ALTERED, content.problem
    if row.md5 and not right:
        return model.WRONG_HASH, f"uncompressedhash is {row.md5}, the content has {content.md5}"
    if not row.md5 and content.stored_size != row.stored_size:
        return size_problem(row, content.stored_size)
    if content.stored_size != row.stored_size:
        return (
            model.WRONG_SIZE,
            f"compressedsize is {row.stored_size:,}, the file has {content.stored_size:,}",
        )
    if content.size != row.size:
        return model.WRONG_SIZE, f"uncompressedsize is {row.size:,}, the content has {content.size:,}"
    return None


def instance_of(chunks: Iterator[bytes], profile: dicom.Profile, *, compressed: bool = False) -> str:
    """Return the public id of the instance in stored bytes, empty if they are not DICOM."""
    if compressed:
        inflater = storage.Inflater()
        chunks = chain.from_iterable(map(inflater.inflate, chunks))
    parts, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_PARSED:
            return ""
        parts.append(chunk)
    data = b"".join(parts)
    try:
        return dicom.parse(data, profile).levels[-1].public_id
    except dicom.Refused:
        # What this Orthanc would refuse, the one that has stored it may have accepted.
        return dicom.lenient_instance_id(data)
