"""The first elements of a file: whose it is, why it cannot be an instance, and where it may be cut."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable

from pgorthanc_cli import files
from pgorthanc_cli.dicom.file import EXPLICIT_BE, IMPLICIT_LE, TRANSFER_SYNTAX_UID
from pgorthanc_cli.dicom.instance import public_id
from pgorthanc_cli.dicom.model import Refused
from pgorthanc_cli.dicom.structure import (
    EXPLICIT,
    IMPLICIT,
    ITEM,
    LENGTH,
    LONG_VR_CODES,
    PIXEL_DATA,
    SEQUENCE_END,
    TAG_LENGTH,
    UNDEFINED,
    Element,
    Walker,
    is_vr,
)
from pgorthanc_cli.dicom.tags import PATIENT_ID, SERIES_UID, SOP_INSTANCE_UID, STUDY_UID, format_tag

_HEAD_BYTES = 64 << 10
# The same text in every character set of DICOM, and for every version of Orthanc.
_PLAIN = re.compile(rb"[0-9A-Za-z._^+-]+(?: [0-9A-Za-z._^+-]+)*")
_MAX_PLAIN = 64  # bytes of an identifier (PS3.5, 6.2)
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IDENTIFIERS = frozenset((SOP_INSTANCE_UID, PATIENT_ID, STUDY_UID, SERIES_UID))
# In their order in a file, little endian.
_IDENTIFIER_VRS = (
    (b"\x08\0\x18\0", b"UI"),
    (b"\x10\0\x20\0", b"LO"),
    (b"\x20\0\x0d\0", b"UI"),
    (b"\x20\0\x0e\0", b"UI"),
)
_META_START = 132
_FIRST_IDENTIFIER_GROUP = 0x0008
_MAX_ELEMENTS = 10_000


def patient_key(path: str) -> bytes | None:
    """Return the bytes of PatientID, b"" if the file has none.

    For dividing work only: None where the first 64 kB are not in a common form, or not
    readable.
    """
    try:
        with os.fdopen(files.open_regular(path), "rb", buffering=0) as file:
            head = file.read(_HEAD_BYTES)
        return _patient_id(head) if head[128:132] == b"DICM" else None
    except (OSError, Refused):
        return None


def _patient_id(head: bytes) -> bytes | None:
    walker, pos, syntax = Walker(head), 132, ""
    while head[pos : pos + 2] == b"\x02\x00":
        tag, _, start, length = walker.header(pos, EXPLICIT)
        pos = start + length
        if tag == TRANSFER_SYNTAX_UID:
            syntax = head[start:pos].decode("latin-1").rstrip(" \0")
    if syntax in (EXPLICIT_BE, _DEFLATED):
        return None
    encoding = IMPLICIT if syntax == IMPLICIT_LE else EXPLICIT
    elements: dict[int, Element] = {}
    while (header := walker.header(pos, encoding))[0] <= PATIENT_ID:
        pos = walker.element(header, encoding, (PATIENT_ID,), elements)
    patient_id = elements.get(PATIENT_ID)
    if patient_id is None:
        return b""
    return head[patient_id.start : patient_id.start + patient_id.length].strip(b" \0")


def probable_ids(data: bytes | mmap.mmap) -> tuple[str, str] | None:
    """Return what the public ids of the patient and the instance probably are, None if not in a plain form.

    Looks for the identifiers instead of walking the file, in a twentieth of the time of
    `parse`, which alone decides. Enough to ask whether an instance with the MD5 of this
    file is stored: the answer is proof.
    """
    texts, pos = [], _META_START
    for tag, vr in _IDENTIFIER_VRS:
        start = data.find(tag, pos, pos + _HEAD_BYTES)
        # Without PatientID, the study of an unknown patient.
        if start < 0 and vr != b"LO":
            return None
        text = b""
        if start >= 0:
            explicit = bytes(data[start + 4 : start + 6]) == vr
            length = bytes(data[start + 6 : start + 8] if explicit else data[start + 4 : start + 8])
            pos = start + 8 + int.from_bytes(length, "little")
            text = bytes(data[start + 8 : min(pos, start + 8 + _MAX_PLAIN + 1)])
        text = text.rstrip(b"\0" if vr == b"UI" else b" ")
        if len(text) > _MAX_PLAIN or not (_PLAIN.fullmatch(text) or (text == b"" and vr == b"LO")):
            return None
        texts.append(text.decode())
    instance, patient, study, series = texts
    return public_id(patient), public_id(f"{patient}|{study}|{series}|{instance}")


def reject_reason(
    read: Callable[[int, int], bytes], size: int | None, available: int | None = None
) -> str | None:
    """Return why no file with this beginning can be an instance, None if it may be one.

    Steps from header to header: for large files, before they are copied. `parse` decides
    all doubtful cases.

    Args:
        read: Returns so many bytes from a position.
        size: Of the file, None if unknown.
        available: How many bytes can be read, None for all.
    """
    has_prefix = read(128, 4) == b"DICM"
    pos, identifiers = 132 if has_prefix else 0, 0
    not_dicom = "not a DICOM file: it begins neither with a DICOM header nor with DICOM elements"
    for _ in range(_MAX_ELEMENTS):
        window = read(pos, 12)
        if len(window) < 12 or (available is not None and pos + 12 > available):
            return None  # the end, or as far as can be read
        explicit = is_vr(window[4:6])
        if explicit and not window[0] and window[1]:
            return None  # big endian
        try:
            tag, vr, start, length = Walker(window).header(0, EXPLICIT if explicit else IMPLICIT)
        except Refused:
            return f"not a DICOM file: no element at byte {pos}" if has_prefix else not_dicom
        identifiers += tag in _IDENTIFIERS
        # The next header can only be reached through this value: that is left to `parse`.
        if length == UNDEFINED or vr == "SQ" or tag >= PIXEL_DATA:
            return None if has_prefix or identifiers or tag >> 16 <= _FIRST_IDENTIFIER_GROUP else not_dicom
        if tag == TRANSFER_SYNTAX_UID and read(pos + start, length).rstrip(b" \0") == _DEFLATED.encode():
            return None
        pos += start + length
        if size is not None and pos > size:
            return f"element ({format_tag(tag)}) ends behind the file" if has_prefix else not_dicom
    # Without a size the file is compressed, and its content limited.
    if identifiers or size is None:
        return None
    return f"{_MAX_ELEMENTS:,} elements, and none of them identifies an instance"


PIXEL_HEADER_BYTES = 12  # the longest header of pixel data: tag, VR, reserved, length


def ends_with_pixel_data(read: Callable[[int, int], bytes], offset: int, size: int) -> bool:
    """Return whether the element at `offset` is pixel data, and the last one of the file.

    If so, `parse` gives the same rows for the bytes before it as for the whole file, but
    for those about the pixel data itself (metadata 14 and 17).

    Args:
        read: Returns so many bytes from a position, fewer at the end.
        offset: Where the index says that the pixel data begins (metadata 14).
        size: Of the file.
    """
    return pixel_data_end(read, offset, size) == size


def pixel_data_end(read: Callable[[int, int], bytes], offset: int, size: int) -> int | None:
    """Return where the pixel data at `offset` ends, None if there is none or it is odd; see `ends_with_pixel_data`."""
    header = read(offset, PIXEL_HEADER_BYTES)
    order = "<" if header[:4] == b"\xe0\x7f\x10\0" else ">"
    if len(header) < PIXEL_HEADER_BYTES or (order == ">" and header[:4] != b"\x7f\xe0\0\x10"):
        return None
    start, length = offset + 8, LENGTH[order](header, 4)[0]
    if is_vr(header[4:6]):
        # With any other VR the file is odd enough to be read whole.
        if header[4:6] not in LONG_VR_CODES:
            return None
        start, length = offset + 12, LENGTH[order](header, 8)[0]
    if length != UNDEFINED:
        return int(start + length)
    return _fragments_end(read, start, size, order)


def _fragments_end(read: Callable[[int, int], bytes], pos: int, size: int, order: str) -> int | None:
    """Return where fragments of pixel data end (PS3.5, A.4), None if they do not."""
    while pos + 8 <= size:
        header = read(pos, 8)
        if len(header) < 8:
            return None
        group, element, length = TAG_LENGTH[order](header, 0)
        pos += 8
        if group << 16 | element == SEQUENCE_END:
            return pos
        if group << 16 | element != ITEM or length == UNDEFINED:
            return None
        pos += length
    return None
