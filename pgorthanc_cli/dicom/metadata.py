"""The metadata that Orthanc derives from a file: types 1, 4, 9, 10, 14 and 17.

Types 9, 14 and 17 come from Orthanc's own forward readers, which do not use DCMTK. They
read the raw bytes again, and where they give up the metadata is missing although the file
is stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from pgorthanc_cli.dicom.file import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, File
from pgorthanc_cli.dicom.model import Buffer
from pgorthanc_cli.dicom.structure import (
    ITEM,
    ITEM_END,
    LENGTH,
    LONG_VR_CODES,
    PIXEL_DATA,
    SEQUENCE_END,
    SHORT_VR_CODES,
    TAG_VR_LENGTH,
    UNDEFINED,
)
from pgorthanc_cli.dicom.tags import (
    BITS_ALLOCATED,
    EXPECTED_INSTANCES,
    IMAGE_INDEX,
    INSTANCE_NUMBER,
    SOP_CLASS_UID,
)

# Orthanc's MetadataType.
INDEX_IN_SERIES, EXPECTED_INSTANCE_COUNT, TRANSFER_SYNTAX, SOP_CLASS, PIXEL_DATA_OFFSET = 1, 4, 9, 10, 14
MAIN_TAGS_SIGNATURE, SEQUENCES, PIXEL_DATA_VR = 15, 16, 17

_PIXEL_DATA_VR_SINCE = (1, 12, 1)
# Also for JPEG XL: 1.10.1 does not have them, 1.13.0 does.
_HTJ2K_SINCE = (1, 12, 3)

_HTJ2K = (110, 111, 112, 201, 202, 203)
_IMAGES = (*range(50, 67), 70, 80, 81, *range(90, 96), *range(100, 109), *_HTJ2K)
# Orthanc's list, not that of PS3.6: 1.98, 7.x and 8.1 are missing (INGEST.md 7.4).
_SYNTAXES = frozenset(
    [f"1.2.840.10008.1.2{n}" for n in ("", ".1", ".1.99", ".2", ".5", ".6.1", ".6.2")]
    + [f"1.2.840.10008.1.2.4.{n}" for n in _IMAGES]
)
_SYNTAXES_BEFORE_HTJ2K = _SYNTAXES - {f"1.2.840.10008.1.2.4.{n}" for n in _HTJ2K}

_INTEGER = re.compile(r"[+-]?[0-9]+")
_WHITE = " \t\n\x0b\x0c\r"
_UNKNOWN_VR = "Not supported"  # Orthanc's name for letters that are not a VR of DICOM


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


def instance_metadata(
    file: File,
    texts: Mapping[int, str],
    index: str | None,
    pixels: PixelData | None,
    version: tuple[int, int, int],
) -> dict[int, str]:
    """Return the metadata that only instances have; `index` is metadata 1."""
    metadata = {
        INDEX_IN_SERIES: index,
        TRANSFER_SYNTAX: _transfer_syntax(file, known_syntaxes(version)),
        SOP_CLASS: texts.get(SOP_CLASS_UID),
    }
    if pixels:
        metadata[PIXEL_DATA_OFFSET] = str(pixels.offset)
        if version >= _PIXEL_DATA_VR_SINCE:
            metadata[PIXEL_DATA_VR] = _unexpected_vr(pixels, texts)
    return {kind: storable(text) for kind, text in metadata.items() if text is not None}


def storable(text: str) -> str:
    """Return a text up to its first 00, which PostgreSQL cannot store."""
    return text.partition("\0")[0] if "\0" in text else text


def expected_instances(texts: Mapping[int, str]) -> int | None:
    """Return metadata 4: the announced number of instances in the series, if any.

    The first of these (pairs of) tags that the file has decides, even if the texts are
    not numbers.
    """
    for tags in EXPECTED_INSTANCES:
        if all(tag in texts for tag in tags):
            return _product([texts[tag] for tag in tags])
    return None


def _product(texts: list[str]) -> int | None:
    """Return the positive product of 64-bit integers, which wraps around as in C."""
    product = 1
    for text in texts:
        if not _INTEGER.fullmatch(text) or not -(1 << 63) <= int(text) < 1 << 63:
            return None
        product *= int(text)
    wrapped = (product + (1 << 63)) % (1 << 64) - (1 << 63)
    return wrapped if wrapped > 0 else None


def index_in_series(texts: Mapping[int, str], *, has_number: bool) -> str | None:
    """Return metadata 1: InstanceNumber, or ImageIndex without such an element.

    It is not always a number.
    """
    # An InstanceNumber without a usable text hides ImageIndex all the same (INGEST.md
    # 7.2).
    text = texts.get(INSTANCE_NUMBER if has_number else IMAGE_INDEX)
    return None if text is None else text.strip(_WHITE)


def known_syntaxes(version: tuple[int, int, int]) -> frozenset[str]:
    """Return the transfer syntaxes that this Orthanc knows."""
    return _SYNTAXES if version >= _HTJ2K_SINCE else _SYNTAXES_BEFORE_HTJ2K


def _transfer_syntax(file: File, known: frozenset[str]) -> str | None:
    """Return metadata 9: the named transfer syntax, else the one DCMTK read with.

    None if the file meta information names one that Orthanc does not know.
    """
    if file.meta is None or file.meta.overlong:
        return file.transfer_syntax if file.transfer_syntax in known else None
    value = file.meta.syntax.removesuffix(b"\0").translate(None, b" \t\n\x0b\x0c\r")
    name = value.decode("latin-1")
    return name if name in known else None


def _unexpected_vr(pixels: PixelData, texts: Mapping[int, str]) -> str | None:
    """Return metadata 17: the VR of the pixel data if unexpected (PS3.5, A.1 to A.4)."""
    # In all others Orthanc assumes the expected VR, whatever the file says.
    if pixels.transfer_syntax not in (EXPLICIT_LE, EXPLICIT_BE):
        return None
    bits = texts.get(BITS_ALLOCATED, "").strip(_WHITE)
    # BitsAllocated that is absent or not one number counts as 8 (INGEST.md 7.3).
    expected = "OW" if _INTEGER.fullmatch(bits) and int(bits) > 8 else "OB"
    return pixels.vr if pixels.vr != expected else None


# --- pixel data, as Orthanc's forward reader finds it -----------------------------------


class _Malformed(Exception):
    """The reader gives up."""


def find_pixel_data(data: Buffer, file: File, version: tuple[int, int, int]) -> PixelData | None:
    """Return the pixel data, None where Orthanc's reader does not find it."""
    meta = file.meta
    if meta is None or not meta.exact:
        return None
    known = known_syntaxes(version)
    name = _without_padding(meta.syntax)
    if name not in known or any(_without_padding(value) not in known for value in meta.earlier):
        return None
    if file.linear and file.start == meta.end and name not in (IMPLICIT_LE, EXPLICIT_BE):
        # The forward reader would meet the same elements as the walk did: the result is
        # known already.
        first = file.first_from_pixel_data
        if first is None:
            return None
        tag, pos, vr = first
        if vr != "SQ":
            return PixelData(pos, name, vr or _UNKNOWN_VR) if tag == PIXEL_DATA else None
    try:
        return _search(data, meta.end, name)
    except _Malformed:
        return None


def _without_padding(value: bytes) -> str:
    """Return a transfer syntax without its padding, which is one byte."""
    return (value[:-1] if value[-1:] in (b"\0", b" ") else value).decode("latin-1")


def _search(data: Buffer, pos: int, syntax: str) -> PixelData | None:
    """Return the first pixel data, None if a later tag comes first."""
    # It takes all others for explicit little endian, even deflated ones, in which it then
    # finds no pixel data.
    order, implicit = ">" if syntax == EXPLICIT_BE else "<", syntax == IMPLICIT_LE
    header, size, depth = TAG_VR_LENGTH[order], len(data), 0
    short_vrs: frozenset[bytes] = frozenset() if implicit else SHORT_VR_CODES
    while pos + 8 <= size:
        group, element, letters, short_length = header(data, pos)
        tag = group << 16 | element
        if tag < PIXEL_DATA and letters in short_vrs:  # nearly all elements
            pos += 8 + short_length
            continue
        if tag in (ITEM, ITEM_END, SEQUENCE_END):
            pos, depth = _after_delimiter(data, pos, tag, order, depth)
            continue
        vr = b"" if implicit else letters
        start, length = _value(data, pos, order, vr, short_length)
        nests = length == UNDEFINED and vr not in SHORT_VR_CODES
        end = start if nests else start + length
        # Orthanc compares the tag when it has the header of a long value, but the whole
        # of a short one, and never for a sequence.
        compares = vr != b"SQ" and (vr or not nests) and (vr not in SHORT_VR_CODES or end <= size)
        if compares and depth == 0 and tag >= PIXEL_DATA:
            return PixelData(pos, syntax, _vr_name(vr)) if tag == PIXEL_DATA else None
        pos, depth = end, depth + nests
    raise _Malformed


def _value(data: Buffer, pos: int, order: str, vr: bytes, short_length: int) -> tuple[int, int]:
    """Return position and length of a value; implicit elements have an empty VR."""
    if not vr:
        return pos + 8, LENGTH[order](data, pos + 4)[0]
    if vr in SHORT_VR_CODES:
        return pos + 8, short_length
    reserved = short_length
    if pos + 12 > len(data) or (reserved and vr != b"SQ"):
        raise _Malformed
    return pos + 12, LENGTH[order](data, pos + 8)[0]


def _after_delimiter(data: Buffer, pos: int, tag: int, order: str, depth: int) -> tuple[int, int]:
    """Return position and depth after the header of an item or a delimiter."""
    length = LENGTH[order](data, pos + 4)[0]
    if tag == ITEM:
        return pos + 8 + (0 if length == UNDEFINED else length), depth
    if length or not depth:
        raise _Malformed
    return pos + 8, depth - (tag == SEQUENCE_END)


def _vr_name(vr: bytes) -> str:
    return vr.decode() if not vr or vr in SHORT_VR_CODES or vr in LONG_VR_CODES else _UNKNOWN_VR
