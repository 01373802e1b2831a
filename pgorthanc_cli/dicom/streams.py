"""Where the pixel data starts, and which transfer syntax a file names: Orthanc's own forward readers.

They are apart from the walk over the structure on purpose. Orthanc reads these two from the raw bytes, and where
its readers give up a row is missing although the file is stored.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from pgorthanc_cli.dicom.container import EXPLICIT_BE, IMPLICIT_LE, DataSet
from pgorthanc_cli.dicom.filemeta import FileMeta
from pgorthanc_cli.dicom.model import Buffer
from pgorthanc_cli.dicom.structure import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    PIXEL_DATA,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
)

_IMAGES = (*range(50, 67), 70, 80, 81, *range(90, 96), *range(100, 109), 110, 111, 112, 201, 202, 203)
KNOWN = frozenset(
    [f"1.2.840.10008.1.2{n}" for n in ("", ".1", ".1.99", ".2", ".5", ".6.1", ".6.2")]
    + [f"1.2.840.10008.1.2.4.{n}" for n in _IMAGES]
)
_KNOWN_BEFORE_HTJ2K = KNOWN - {f"1.2.840.10008.1.2.4.{n}" for n in (110, 111, 112, 201, 202, 203)}
HTJ2K_SINCE = (1, 12, 3)  # and JPEG XL: 1.10.1 does not have them, 1.13.0 does

_SHORT = frozenset(vr.encode() for vr in SHORT_VRS)
_LONG = frozenset(vr.encode() for vr in LONG_VRS)
_HEADER = {order: Struct(f"{order}HH2sH").unpack_from for order in "<>"}
_TAG_LENGTH = {order: Struct(f"{order}HHI").unpack_from for order in "<>"}
_LENGTH = {order: Struct(f"{order}I").unpack_from for order in "<>"}


NO_VR = "Not supported"  # Orthanc's name for letters that are no VR of DICOM


class _Malformed(Exception):
    """The reader gives up."""


class PixelData(NamedTuple):
    """The pixel data element of the top level.

    Attributes:
        offset: position of its first byte in the file.
        transfer_syntax: of the file.
        vr: as written in the file; empty in implicit files.
    """

    offset: int
    transfer_syntax: str
    vr: str


def known(version: tuple[int, int, int]) -> frozenset[str]:
    """The transfer syntaxes that this version of Orthanc knows."""
    return KNOWN if version >= HTJ2K_SINCE else _KNOWN_BEFORE_HTJ2K


def named_transfer_syntax(meta: FileMeta | None, known: frozenset[str]) -> str | None:
    """The transfer syntax that the file meta information names, "" if it names none that Orthanc knows.

    Returns:
        None if there is no file meta information, or it is not strictly well-formed.
    """
    if meta is None or meta.overlong:
        return None
    name = meta.syntax.removesuffix(b"\0").translate(None, b" \t\n\x0b\x0c\r").decode("latin-1")
    return name if name in known else ""


def pixel_data(
    data: Buffer, meta: FileMeta | None, data_set: DataSet, known: frozenset[str]
) -> PixelData | None:
    """The pixel data, None where Orthanc's reader does not find it; the data set is that of the file."""
    if meta is None or not meta.exact:
        return None
    name = _name(meta.syntax)
    if name not in known or any(_name(value) not in known for value in meta.earlier):
        return None
    if data_set.straight and data_set.start == meta.end and name not in (IMPLICIT_LE, EXPLICIT_BE):
        found = data_set.first_late  # the walk went where this reader goes
        if found is None:
            return None
        if found[2] != "SQ":
            return PixelData(found[1], name, found[2] or NO_VR) if found[0] == PIXEL_DATA else None
    try:
        forward = _forward(data, meta.end, name)
    except _Malformed:
        return None
    return None if forward is None else PixelData(forward[0], name, forward[1])


def _name(value: bytes) -> str:
    """A transfer syntax without its padding, which is one byte."""
    return (value[:-1] if value[-1:] in (b"\0", b" ") else value).decode("latin-1")


def _forward(data: Buffer, pos: int, syntax: str) -> tuple[int, str] | None:
    """Position and VR of the pixel data, None if a later tag comes first."""
    order, implicit = ">" if syntax == EXPLICIT_BE else "<", syntax == IMPLICIT_LE
    header, size, depth = _HEADER[order], len(data), 0
    short_vrs: frozenset[bytes] = frozenset() if implicit else _SHORT
    while pos + 8 <= size:
        group, element, letters, short_length = header(data, pos)
        tag = group << 16 | element
        if tag < PIXEL_DATA and letters in short_vrs:  # nearly all elements: nothing to decide
            pos += 8 + short_length
            continue
        if tag in (ITEM, ITEM_END, SEQUENCE_END):
            pos, depth = _delimiter(data, pos, tag, order, depth)
            continue
        vr = b"" if implicit else letters
        start, length = _value(data, pos, order, vr, short_length)
        nests = length == UNDEFINED and vr not in _SHORT
        end = start if nests else start + length
        # A long value is judged by its header, a short one only when it was read, a sequence never.
        judged = vr != b"SQ" and (vr or not nests) and (vr not in _SHORT or end <= size)
        if judged and depth == 0 and tag >= PIXEL_DATA:
            return (pos, _vr_name(vr)) if tag == PIXEL_DATA else None
        pos, depth = end, depth + nests
    raise _Malformed


def _value(data: Buffer, pos: int, order: str, vr: bytes, short_length: int) -> tuple[int, int]:
    """Position and length of a value; no VR is an implicit element."""
    if not vr:
        return pos + 8, _LENGTH[order](data, pos + 4)[0]
    if vr in _SHORT:
        return pos + 8, short_length
    if pos + 12 > len(data) or (short_length and vr != b"SQ"):  # the reserved bytes
        raise _Malformed
    return pos + 12, _LENGTH[order](data, pos + 8)[0]


def _delimiter(data: Buffer, pos: int, tag: int, order: str, depth: int) -> tuple[int, int]:
    """Position and depth after the header of an item, or after one of the two delimiters."""
    length = _LENGTH[order](data, pos + 4)[0]
    if tag == ITEM:
        return pos + 8 + (0 if length == UNDEFINED else length), depth
    if length or not depth:
        raise _Malformed
    return pos + 8, depth - (tag == SEQUENCE_END)


def _vr_name(vr: bytes) -> str:
    return vr.decode() if not vr or vr in _SHORT or vr in _LONG else NO_VR
