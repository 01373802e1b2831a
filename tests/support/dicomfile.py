"""A writer of DICOM files, byte by byte, that checks nothing: odd and broken files are what it is for."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from pgorthanc_cli.dicom import Instance, Profile, parse

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
UNDEFINED = 0xFFFFFFFF
LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
PIXELS = 0x7FE00010


@dataclass(frozen=True)
class El:
    """One element; its value is bytes, text (padded to even length), items, or fragments (a tuple).

    `length` overrides the length that is written; `UNDEFINED` also adds the delimiters.
    """

    tag: int
    vr: str
    value: bytes | str | list[list[El]] | tuple[bytes, ...] = b""
    length: int | None = None
    item_length: int | None = None


def encode(elements: list[El], syntax: str = EXPLICIT) -> bytes:
    """The elements, in the order given."""
    return b"".join(_element(e, syntax) for e in elements)


def _element(e: El, syntax: str) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    if isinstance(e.value, list):
        inner = IMPLICIT if e.vr == "UN" else syntax
        body = b"".join(_item(encode(item, inner), e.item_length, order) for item in e.value)
    elif isinstance(e.value, tuple):
        body = b"".join(_item(fragment, None, order) for fragment in e.value)
    else:
        body = e.value if isinstance(e.value, bytes) else _padded(e)
    length = len(body) if e.length is None else e.length
    if isinstance(e.value, tuple) or (isinstance(e.value, list) and length == UNDEFINED):
        length, body = UNDEFINED, body + struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)
    return header(e.tag, e.vr, length, syntax) + body


def header(tag: int, vr: str, length: int, syntax: str = EXPLICIT) -> bytes:
    """Tag, VR and length of an element."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    number = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return number + struct.pack("<I", length)
    if vr in LONG:
        return number + vr.encode("latin-1") + b"\0\0" + struct.pack(order + "I", length)
    return number + vr.encode("latin-1") + struct.pack(order + "H", length)


def _padded(e: El) -> bytes:
    raw = str(e.value).encode("latin-1")
    return raw + (b"\0" if e.vr == "UI" else b" ") * (len(raw) % 2)


def _item(body: bytes, length: int | None, order: str) -> bytes:
    if length == UNDEFINED:
        body += struct.pack(order + "HHI", 0xFFFE, 0xE00D, 0)
    return struct.pack(order + "HHI", 0xFFFE, 0xE000, len(body) if length is None else length) + body


def meta(syntax: str | None = EXPLICIT, *, group_length: int | None = None) -> bytes:
    """File meta information; a group length of -1 leaves that element out."""
    elements = [El(0x00020001, "OB", b"\0\1"), El(0x00020002, "UI", "1.2.840.10008.5.1.4.1.1.7")]
    if syntax is not None:
        elements.append(El(0x00020010, "UI", syntax))
    body = encode([*elements, El(0x00020012, "UI", "1.2.3.4")])
    if group_length == -1:
        return body
    length = struct.pack("<I", len(body) if group_length is None else group_length)
    return encode([El(0x00020000, "UL", length)]) + body


def elements(*extra: El, without: tuple[int, ...] = ()) -> list[El]:
    """A small data set in the order of its tags; extra elements replace those of the same tag."""
    basic = [
        El(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.7"),
        El(0x00080018, "UI", "1.2.3.1.1.1"),
        El(0x00100020, "LO", "P1"),
        El(0x0020000D, "UI", "1.2.3.1"),
        El(0x0020000E, "UI", "1.2.3.1.1"),
        El(0x00280100, "US", struct.pack("<H", 8)),
        El(PIXELS, "OB", b"\1\2\3\4"),
    ]
    chosen = {e.tag: e for e in [*basic, *extra] if e.tag not in without}
    return sorted(chosen.values(), key=lambda e: e.tag)


def dicom_file(
    *extra: El,
    syntax: str = EXPLICIT,
    without: tuple[int, ...] = (),
    preamble: bytes = bytes(128) + b"DICM",
    head: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A whole file: `elements` behind the preamble and the file meta information (or `head`)."""
    body = encode(elements(*extra, without=without), syntax) + tail
    if syntax == DEFLATED:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = deflater.compress(body) + deflater.flush()
    return preamble + (meta(syntax) if head is None else head) + body


def read(
    *extra: El, profile: Profile | None = None, syntax: str = EXPLICIT, without: tuple[int, ...] = ()
) -> Instance:
    """What `parse` makes of a `dicom_file`."""
    return parse(dicom_file(*extra, syntax=syntax, without=without), profile or Profile())
