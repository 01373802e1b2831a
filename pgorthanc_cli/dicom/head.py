"""The first elements of a file: enough to tell whose it is, without reading all of it."""

from __future__ import annotations

import os
from collections.abc import Callable

from pgorthanc_cli import files
from pgorthanc_cli.dicom.container import EXPLICIT_BE, IMPLICIT_LE, TRANSFER_SYNTAX_UID
from pgorthanc_cli.dicom.model import Refused
from pgorthanc_cli.dicom.structure import EXPLICIT, IMPLICIT, PIXEL_DATA, UNDEFINED, Element, Walker, is_vr
from pgorthanc_cli.dicom.tags import PATIENT_ID, SERIES_UID, SOP_INSTANCE_UID, STUDY_UID

_HEAD_BYTES = 64 << 10
_DEFLATED = "1.2.840.10008.1.2.1.99"
_WANTED = frozenset((PATIENT_ID,))
_IDENTIFIERS = frozenset((SOP_INSTANCE_UID, PATIENT_ID, STUDY_UID, SERIES_UID))
_IDENTIFYING_GROUP = 0x0008  # of the first of them
_MOST_ELEMENTS = 10_000


def patient_key(path: str) -> bytes | None:
    """The bytes of PatientID, the same for all files of a patient that are written alike; b"" if it is absent.

    A guess for dividing work, not a judgement: None where the first 64 kB do not tell it in the plain way.
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
    kept: dict[int, Element] = {}
    while (header := walker.header(pos, encoding))[0] <= PATIENT_ID:
        pos = walker.element(header, encoding, _WANTED, kept)
    found = kept.get(PATIENT_ID)
    return head[found.start : found.start + found.length].strip(b" \0") if found else b""


def reject_reason(
    read: Callable[[int, int], bytes], size: int | None, known: int | None = None
) -> str | None:
    """Return why no file that begins like this can be an instance, or None if it may be one.

    Steps from element to element and reads their headers only: for large files, before they are copied. Whatever it
    is not sure of it leaves to `parse`.

    Args:
        read: Returns so many bytes from a position.
        size: Of the file, None where it is not known.
        known: How many bytes can be read; all if it is None.
    """
    marked = read(128, 4) == b"DICM"
    pos, seen = 132 if marked else 0, 0
    nothing = "not a DICOM file: no DICM at byte 128, and no data set at byte 0"
    for _ in range(_MOST_ELEMENTS):
        window = read(pos, 12)
        if len(window) < 12 or (known is not None and pos + 12 > known):
            return None  # the end, or the end of what is known
        explicit = is_vr(window[4:6])
        if explicit and not window[0] and window[1]:
            return None  # big endian
        try:
            tag, vr, start, length = Walker(window).header(0, EXPLICIT if explicit else IMPLICIT)
        except Refused:
            return f"not a DICOM file: no element at byte {pos}" if marked else nothing
        seen += tag in _IDENTIFIERS
        if length == UNDEFINED or vr == "SQ" or tag >= PIXEL_DATA:
            return None if marked or seen or tag >> 16 <= _IDENTIFYING_GROUP else nothing
        if tag == TRANSFER_SYNTAX_UID and read(pos + start, length).rstrip(b" \0") == _DEFLATED.encode():
            return None
        pos += start + length
        if size is not None and pos > size:
            return f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) ends behind the file" if marked else nothing
    if seen or size is None:
        return None  # packed: there is a limit to what comes out
    return f"{_MOST_ELEMENTS:,} elements, and none of them identifies an instance"
