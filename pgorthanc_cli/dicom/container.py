"""A DICOM file (PS3.10): preamble, file meta information, transfer syntax, and the data set behind them."""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Container
from typing import NamedTuple

from pgorthanc_cli.dicom.filemeta import FileMeta
from pgorthanc_cli.dicom.model import Buffer, Refused
from pgorthanc_cli.dicom.structure import BIG_ENDIAN, EXPLICIT, IMPLICIT, Element, Encoding, Walker, is_vr

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
_GE_PRIVATE = "1.2.840.113619.5.2"  # implicit little endian but for its pixel data
_ENCODINGS = {IMPLICIT_LE: IMPLICIT, _GE_PRIVATE: IMPLICIT, EXPLICIT_LE: EXPLICIT, EXPLICIT_BE: BIG_ENDIAN}
_NATIVE = {IMPLICIT: IMPLICIT_LE, EXPLICIT: EXPLICIT_LE, BIG_ENDIAN: EXPLICIT_BE}

# JPIP Referenced Deflate and its HTJ2K form are deflated as a whole too (PS3.5, A.5 to A.8).
_DEFLATED = frozenset(f"1.2.840.10008.1.2.{n}" for n in ("1.99", "4.95", "4.205"))
_COMPRESSED_IMAGES = (
    *range(50, 67),
    70,
    80,
    81,
    *range(90, 96),
    *range(100, 109),
    *range(110, 113),
    *range(201, 206),
)
_ENCAPSULATED = frozenset(
    [f"1.2.840.10008.1.2.4.{n}" for n in _COMPRESSED_IMAGES]
    + [f"1.2.840.10008.1.2.4.{n}.1" for n in range(100, 107)]
    + [f"1.2.840.10008.1.2.{n}" for n in ("1.98", "5", "6.1", "6.2", "8.1")]
) - {"1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}

MAX_INFLATED = 512 << 20  # bytes of a deflated data set
_IN_MEMORY = 16 << 20

GROUP_LENGTH, TRANSFER_SYNTAX_UID = 0x00020000, 0x00020010
_META_TAGS = frozenset((GROUP_LENGTH, TRANSFER_SYNTAX_UID))


class DataSet(NamedTuple):
    """A data set that was walked to its end.

    Attributes:
        data: what the elements point into: the file, or the inflated data set.
        elements: the wanted ones of the top level, the first of each tag.
        transfer_syntax: the one that it was read with.
        deepest: number of nested sequences.
        start: position of the first element.
        straight: a reader that only jumps from header to header comes to the same elements (see `Walker`).
        first_late: the first element from the pixel data on: its tag, position and VR.
    """

    data: Buffer
    elements: dict[int, Element]
    transfer_syntax: str
    deepest: int
    start: int
    straight: bool
    first_late: tuple[int, int, str] | None


def read(data: Buffer, wanted: Container[int], meta: FileMeta | None = None) -> DataSet:
    """Walk a whole file, and remember the wanted elements of its data set.

    Args:
        data: the file.
        wanted: tags to remember.
        meta: its file meta information, if it is known already: that saves walking it again.

    Raises:
        Refused: DCMTK would not parse the file.
    """
    if not len(data):
        raise Refused("the file is empty")
    if meta and meta.plain and bytes(data[meta.end : meta.end + 2]) != b"\2\0":
        return _read(data, _uid(meta.syntax), meta.end, wanted)
    if bytes(data[128:132]) == b"DICM":
        return _read(data, *_file_meta(data, 132), wanted)
    try:
        return _read(data, *_file_meta(data, 0), wanted)
    except Refused:
        raise Refused("not a DICOM file: no DICM at byte 128, and no data set at byte 0") from None


def _read(data: Buffer, uid: str, pos: int, wanted: Container[int]) -> DataSet:
    known = uid in _ENCODINGS or uid in _ENCAPSULATED or uid in _DEFLATED
    file = data
    if uid in _DEFLATED:
        data, pos = _inflated(data, pos), 0
    encoding = _ENCODINGS.get(uid, EXPLICIT) if known else _guessed(data, pos)
    walker = Walker(data)
    elements = walker.data_set(pos, encoding, wanted, encapsulated=uid in _ENCAPSULATED)
    syntax = uid if known else _NATIVE[encoding]
    straight = walker.straight and data is file
    return DataSet(data, elements, syntax, walker.deepest, pos, straight, walker.first_late)


def _file_meta(data: Buffer, start: int) -> tuple[str, int]:
    """The transfer syntax UID ("" without one), and where the data set starts.

    The group length is believed if it goes beyond group 0002, and ignored if it ends before.
    """
    encoding = EXPLICIT if start else _guessed(data, 0)
    walker, pos, stop = Walker(data), start, 0
    kept: dict[int, Element] = {}
    second = b"\x00\x02" if encoding.order == ">" else b"\x02\x00"
    while pos < len(data) and (pos < stop or bytes(data[pos : pos + 2]) == second):
        header = walker.header(pos, encoding)
        if not header[1]:
            raise Refused(f"the file meta information has an unknown value representation at byte {pos}")
        first, pos = pos == start, walker.element(header, encoding, _META_TAGS, kept)
        if first and GROUP_LENGTH in kept:
            stop = pos + _number(data, kept[GROUP_LENGTH])
    if pos == start == len(data):
        raise Refused("there is nothing behind the preamble")
    uid = kept.get(TRANSFER_SYNTAX_UID)
    return ("" if uid is None else _uid(bytes(data[uid.start : uid.start + min(uid.length, 128)]))), pos


def _number(data: Buffer, element: Element) -> int:
    value = bytes(data[element.start : element.start + 4]) if element.length == 4 else b""
    return int.from_bytes(value, "big" if element.order == ">" else "little")


def _uid(value: bytes) -> str:
    return value[:128].decode("latin-1").rstrip(" \0")  # a UID has 64 characters at most


def _guessed(data: Buffer, pos: int) -> Encoding:
    """The encoding that the first element seems to have."""
    group, letters = bytes(data[pos : pos + 2]), bytes(data[pos + 4 : pos + 6])
    if not is_vr(letters):
        return IMPLICIT
    return BIG_ENDIAN if len(group) == 2 and group[0] == 0 and group[1] else EXPLICIT


def _inflated(data: Buffer, pos: int) -> Buffer:
    """The data set of a deflated transfer syntax (PS3.5, A.5); DCMTK ignores what follows the stream."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        with memoryview(data) as whole, whole[pos:] as deflated:
            inflated = inflater.decompress(deflated, min(_IN_MEMORY, MAX_INFLATED))
        if inflater.unconsumed_tail:
            return _spooled(inflated, inflater)
    except zlib.error:
        raise Refused("the deflated data set is damaged") from None
    if not inflater.eof:
        raise Refused("the deflated data set is cut off")
    return inflated


def _spooled(head: bytes, inflater: zlib._Decompress) -> mmap.mmap:
    """A large data set, in a mapped file without a name: memory stays bounded, whatever comes out."""
    try:
        with tempfile.TemporaryFile() as file:
            size = file.write(head)
            while chunk := inflater.decompress(inflater.unconsumed_tail, _IN_MEMORY):
                size += file.write(chunk)
                if size > MAX_INFLATED:
                    raise Refused(f"the deflated data set has more than {MAX_INFLATED >> 20} MiB")
            if not inflater.eof:
                raise Refused("the deflated data set is cut off")
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        where = tempfile.gettempdir()
        raise Refused(f"the deflated data set does not fit into {where}: {error.strerror}") from None
