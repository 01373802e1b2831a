"""A DICOM file (PS3.10): preamble, file meta information, transfer syntax, and the data set behind them."""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Container
from typing import NamedTuple

from pgorthanc_cli.dicom.dictionary import is_known
from pgorthanc_cli.dicom.filemeta import FileMeta
from pgorthanc_cli.dicom.model import Buffer, Refused
from pgorthanc_cli.dicom.structure import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    NEWEST,
    UNDEFINED,
    Dialect,
    Element,
    Encoding,
    Walker,
    is_vr,
)

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
_GE_PRIVATE = "1.2.840.113619.5.2"  # implicit little endian but for its pixel data
_JPIP = (
    "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.204",
)  # the pixel data is elsewhere, never in fragments
_ENCODINGS = {
    IMPLICIT_LE: IMPLICIT,
    _GE_PRIVATE: IMPLICIT,
    EXPLICIT_LE: EXPLICIT,
    EXPLICIT_BE: BIG_ENDIAN,
    **dict.fromkeys(_JPIP, EXPLICIT),
}
_NATIVE = {IMPLICIT: IMPLICIT_LE, EXPLICIT: EXPLICIT_LE, BIG_ENDIAN: EXPLICIT_BE}

# JPIP Referenced Deflate and its HTJ2K form are deflated as a whole too (PS3.5, A.5 to A.8).
_DEFLATED = frozenset(f"1.2.840.10008.1.2.{n}" for n in ("1.99", "4.95", "4.205"))
_COMPRESSED_IMAGES = (
    *range(50, 67),
    70,
    80,
    81,
    *range(90, 94),
    *range(100, 109),
    *range(110, 113),
    *range(201, 204),
)
_ENCAPSULATED = frozenset(
    [f"1.2.840.10008.1.2.4.{n}" for n in _COMPRESSED_IMAGES]
    + [f"1.2.840.10008.1.2.4.{n}.1" for n in range(100, 107)]
    + [f"1.2.840.10008.1.2.{n}" for n in ("1.98", "5", "8.1")]
)
# Those that DCMTK 3.6.7 does not know: it guesses, as with any unknown one.
_NEW_SYNTAXES = frozenset(
    [f"1.2.840.10008.1.2.4.{n}" for n in (*range(110, 113), *range(201, 206))]
    + [f"1.2.840.10008.1.2.4.{n}.1" for n in range(100, 107)]
    + [f"1.2.840.10008.1.2.{n}" for n in ("1.98", "8.1")]
)
_ZIP = (b"PK\3\4", b"PK\5\6")

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


def read(
    data: Buffer, wanted: Container[int], meta: FileMeta | None = None, dialect: Dialect = NEWEST
) -> DataSet:
    """Walk a whole file, and remember the wanted elements of its data set.

    Args:
        data: the file.
        wanted: tags to remember.
        meta: its file meta information, if it is known already: that saves walking it again.
        dialect: which reader's.

    Raises:
        Refused: DCMTK would not parse the file.
    """
    if not len(data):
        raise Refused("the file is empty")
    if meta and meta.plain and bytes(data[meta.end : meta.end + 2]) != b"\2\0":
        return _read(data, _uid(meta.syntax or None), meta.end, wanted, dialect)
    if bytes(data[:4]) in _ZIP:
        raise Refused("the file starts as a ZIP archive: Orthanc opens it as one")
    start = 132 if bytes(data[128:132]) == b"DICM" else 0
    if start:
        return _behind(data, start, wanted, dialect)
    try:
        return _behind(data, start, wanted, dialect)
    except Refused:
        raise Refused("not a DICOM file: no DICM at byte 128, and no data set at byte 0") from None


def _behind(data: Buffer, start: int, wanted: Container[int], dialect: Dialect) -> DataSet:
    """The data set behind the file meta information at `start`, if there is any."""
    value, pos = _file_meta(data, start, dialect)
    return _read(data, _uid(value), pos, wanted, dialect)


def _read(data: Buffer, uid: str, pos: int, wanted: Container[int], dialect: Dialect) -> DataSet:
    if dialect.old and uid in _NEW_SYNTAXES:
        uid = ""
    known = uid in _ENCODINGS or uid in _ENCAPSULATED or uid in _DEFLATED
    file = data
    if uid in _DEFLATED:
        data, pos = _inflated(data, pos), 0
    encoding = _ENCODINGS.get(uid, EXPLICIT) if known else _guessed(data, pos)
    walker = Walker(data, dialect)
    elements = walker.data_set(pos, encoding, wanted, encapsulated=uid in _ENCAPSULATED)
    syntax = uid if known else _NATIVE[encoding]
    straight = walker.straight and data is file
    return DataSet(data, elements, syntax, walker.deepest, pos, straight, walker.first_late)


def _file_meta(data: Buffer, start: int, dialect: Dialect) -> tuple[bytes | None, int]:
    """The value of the first TransferSyntaxUID (None without one), and where the data set starts.

    The file meta information ends with the element in which its own length ends, wherever that is, and where the
    group changes if it gives no length. An undefined length is like 0: the rest belongs to the data set.
    """
    encoding = _guessed(data, start)
    walker, pos, kept = Walker(data, dialect), start, dict[int, Element]()
    second = b"\x00\x02" if encoding.order == ">" else b"\x02\x00"
    stop: int | None = None
    while pos < len(data) and (bytes(data[pos : pos + 2]) == second if stop is None else pos < stop):
        header = walker.header(pos, encoding)
        first, pos = pos == start, walker.element(header, encoding, _META_TAGS, kept)
        if first and header[0] == GROUP_LENGTH:
            stop = _stop(data, kept[GROUP_LENGTH], pos)
    if pos == start == len(data):
        raise Refused("there is nothing behind the preamble")
    uid = kept.get(TRANSFER_SYNTAX_UID)
    if uid is None or uid.vr != "UI" or not uid.length:
        return None, pos
    return bytes(data[uid.start : uid.start + min(uid.length, 128)]), pos


def _stop(data: Buffer, element: Element, pos: int) -> int | None:
    """Where the file meta information ends, as its first element says; None if it does not say."""
    length = element.length + element.length % 2
    if element.vr != "UL" or length == 2:
        raise Refused("the file meta information has a group length that is no number")
    value = bytes(data[element.start : element.start + min(element.length, 4)])
    number = int.from_bytes(value, "big" if element.order == ">" else "little")
    if not length:
        return None
    return pos if number == UNDEFINED else pos + number


def _uid(value: bytes | None) -> str:
    if value is None:
        return ""
    if not value.strip(b" \0"):
        raise Refused("the transfer syntax is blank, which stands for implicit big endian")
    return value[:128].decode("latin-1").rstrip(" \0")  # a UID has 64 characters at most


def _guessed(data: Buffer, pos: int) -> Encoding:
    """The encoding that the first element seems to have: big endian if only so the dictionary knows its tag."""
    head = bytes(data[pos : pos + 6])
    if not is_vr(head[4:]):
        return IMPLICIT
    if head[0] or not head[1]:
        return EXPLICIT
    return BIG_ENDIAN if is_known(int.from_bytes(head[:4], "big")) else EXPLICIT


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
