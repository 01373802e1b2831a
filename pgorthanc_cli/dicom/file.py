"""A DICOM file (PS3.10): preamble, file meta information, transfer syntax, data set.

`read_file` accepts what Orthanc accepts, which means what DCMTK parses to the last byte.
"""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Container
from typing import NamedTuple

from pgorthanc_cli.dicom.model import Buffer, Refused
from pgorthanc_cli.dicom.structure import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    LENGTH,
    LONG_VR_CODES,
    NEWEST,
    SHORT_VR_CODES,
    TAG_VR_LENGTH,
    UNDEFINED,
    Dialect,
    Element,
    Encoding,
    Walker,
    is_vr,
)
from pgorthanc_cli.dicom.tags import is_known

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
_GE_PRIVATE = "1.2.840.113619.5.2"  # implicit little endian, except for its pixel data
# JPIP: the pixel data is on a server, so it is never in fragments here.
_JPIP = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.204")
_ENCODINGS = {
    IMPLICIT_LE: IMPLICIT,
    _GE_PRIVATE: IMPLICIT,
    EXPLICIT_LE: EXPLICIT,
    EXPLICIT_BE: BIG_ENDIAN,
    **dict.fromkeys(_JPIP, EXPLICIT),
}
_SYNTAX_OF = {IMPLICIT: IMPLICIT_LE, EXPLICIT: EXPLICIT_LE, BIG_ENDIAN: EXPLICIT_BE}

# The data set is deflated as a whole (PS3.5, A.5 to A.8), also in JPIP Referenced Deflate
# and its HTJ2K form.
_DEFLATED = frozenset(f"1.2.840.10008.1.2.{n}" for n in ("1.99", "4.95", "4.205"))
# N of 1.2.840.10008.1.2.4.N (PS3.6, A); 94 and 95 are JPIP.
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
# DCMTK 3.6.7 does not know these, and guesses the encoding as for any unknown UID.
_SINCE_DCMTK_3_6_8 = frozenset(
    [f"1.2.840.10008.1.2.4.{n}" for n in (*range(110, 113), *range(201, 206))]
    + [f"1.2.840.10008.1.2.4.{n}.1" for n in range(100, 107)]
    + [f"1.2.840.10008.1.2.{n}" for n in ("1.98", "8.1")]
)
_ZIP_MAGIC = (b"PK\3\4", b"PK\5\6")

# Deflate shrinks zeros to a thousandth: a small file could fill the disk of a worker.
MAX_INFLATED = 512 << 20  # bytes of an inflated data set
_IN_MEMORY = 16 << 20  # bytes; a larger one goes to a temporary file

GROUP_LENGTH, TRANSFER_SYNTAX_UID = 0x00020000, 0x00020010
_META_TAGS = frozenset((GROUP_LENGTH, TRANSFER_SYNTAX_UID))

_SYNTAX_ELEMENT = 0x0010  # of group 0002: TransferSyntaxUID
_META_START = 144  # after the preamble, DICM and the group length
# What Orthanc's reader accepts (INGEST.md 7.4). DA, DT and TM have the length of a range,
# as in queries (PS3.5, 6.2).
_MAX_LENGTHS = {
    **dict.fromkeys(("AE", "CS", "DS", "SH"), 16),
    **dict.fromkeys(("LO", "UI"), 64),
    **dict.fromkeys(("AS", "AT", "UL", "SL", "FL"), 4),
    **dict.fromkeys(("US", "SS"), 2),
    **dict.fromkeys(("FD", "SV", "UV"), 8),
    "DA": 18,
    "DT": 54,
    "IS": 12,
    "LT": 10240,
    "ST": 1024,
    "TM": 28,
}
_MAX_LENGTH_OF = {vr.encode(): length for vr, length in _MAX_LENGTHS.items()}


class FileMeta(NamedTuple):
    """File meta information (PS3.10, 7.1) as Orthanc sees it: up to its group length.

    Attributes:
        syntax: value of the last TransferSyntaxUID, empty if there is none.
        earlier: values of the other TransferSyntaxUIDs.
        end: position after the last element.
        exact: the last element ends where the group length ends.
        overlong: a value is longer than its VR allows.
        plain: exact, one TransferSyntaxUID, elements of group 0002 only, no sequence.
    """

    syntax: bytes
    earlier: tuple[bytes, ...]
    end: int
    exact: bool
    overlong: bool
    plain: bool


class File(NamedTuple):
    """A file whose data set was walked to its end.

    Attributes:
        meta: file meta information, None if it is missing or malformed.
        data: what the elements point into: the file, or the inflated data set.
        elements: the elements asked for of the top level, the first of each tag.
        transfer_syntax: the one that the data set was read with.
        depth: number of nested sequences.
        start: position of the first element in `data`.
        linear, first_from_pixel_data: see `Walker`.
    """

    meta: FileMeta | None
    data: Buffer
    elements: dict[int, Element]
    transfer_syntax: str
    depth: int
    start: int
    linear: bool
    first_from_pixel_data: tuple[int, int, str] | None


def read_file(data: Buffer, tags: Container[int], dialect: Dialect = NEWEST) -> File:
    """Walk a whole file, and remember the elements with these tags.

    Raises:
        Refused: Orthanc would not parse the file.
    """
    meta = file_meta(data)
    if meta and meta.plain and bytes(data[meta.end : meta.end + 2]) != b"\2\0":
        # Nearly every file: DCMTK sees the same file meta information, so it is walked
        # only once.
        return _read_data_set(data, meta, _uid(meta.syntax or None), meta.end, tags, dialect)
    if not len(data):
        raise Refused("the file is empty")
    if bytes(data[:4]) in _ZIP_MAGIC:
        raise Refused("the file starts as a ZIP archive: Orthanc opens it as one")
    start = 132 if bytes(data[128:132]) == b"DICM" else 0
    try:
        value, pos = _dcmtk_file_meta(data, start, dialect)
        return _read_data_set(data, meta, _uid(value), pos, tags, dialect)
    except Refused:
        if start:
            raise
        raise Refused(
            "not a DICOM file: it begins neither with a DICOM header nor with DICOM elements"
        ) from None


# --- file meta information --------------------------------------------------------------


def file_meta(data: Buffer) -> FileMeta | None:
    """Return the file meta information, None if it is missing or malformed.

    Raises:
        Refused: Orthanc's reader meets a VR that it does not know.
    """
    size, header, long_length = len(data), TAG_VR_LENGTH["<"], LENGTH["<"]
    # Orthanc's reader requires the group length as first element (INGEST.md 7.3).
    if size < _META_START or bytes(data[128:140]) != b"DICM\2\0\0\0UL\4\0":
        if size >= _META_START and bytes(data[128:132]) == b"DICM":
            _check_vr(bytes(data[136:138]), 132)
        return None
    earlier: tuple[bytes, ...] = ()
    pos, stop = _META_START, _META_START + long_length(data, 140)[0]
    if stop > size:
        return None
    syntax, has_syntax, overlong, plain = b"", False, False, True
    while pos < stop:
        if pos + 8 > size:
            return None
        group, element, vr, length = header(data, pos)
        pos += 8
        # `length` is the reserved field of a long header here, which is 0 (PS3.5, 7.1.2).
        if vr in LONG_VR_CODES and length == 0 and pos + 4 <= size:
            length, pos = long_length(data, pos)[0], pos + 4
        elif vr not in SHORT_VR_CODES:
            _check_vr(vr, pos - 8)
            return None
        end = pos + length
        if end > size:
            return None
        overlong = overlong or length > _MAX_LENGTH_OF.get(vr, UNDEFINED)
        plain = plain and group == 2 and vr != b"SQ"
        if element == _SYNTAX_ELEMENT and group == 2:
            plain = plain and not has_syntax and vr == b"UI"
            earlier = (*earlier, syntax) if has_syntax else ()
            has_syntax, syntax = True, bytes(data[pos:end]) if vr == b"UI" else b""
        pos = end
    exact = pos == stop
    return FileMeta(syntax, earlier, pos, exact, overlong, plain and exact and has_syntax)


def _check_vr(letters: bytes, pos: int) -> None:
    if letters not in SHORT_VR_CODES and letters not in LONG_VR_CODES:
        raise Refused(f"the file meta information has an unknown value representation at byte {pos}")


def _dcmtk_file_meta(data: Buffer, start: int, dialect: Dialect) -> tuple[bytes | None, int]:
    """Return the first TransferSyntaxUID, if any, and where the data set starts.

    For DCMTK, the file meta information ends with the element in which its group length
    ends. Without a group length it ends where the group changes. An undefined length
    counts as 0: the rest belongs to the data set.
    """
    # PS3.10, 7.1 requires explicit little endian here; DCMTK guesses all the same.
    encoding = _guess_encoding(data, start)
    walker, pos, elements = Walker(data, dialect), start, dict[int, Element]()
    group_2 = b"\x00\x02" if encoding.order == ">" else b"\x02\x00"
    stop: int | None = None
    while pos < len(data) and (pos < stop if stop is not None else bytes(data[pos : pos + 2]) == group_2):
        header = walker.header(pos, encoding)
        is_first = pos == start
        pos = walker.element(header, encoding, _META_TAGS, elements)
        if is_first and header[0] == GROUP_LENGTH:
            stop = _meta_end(data, elements[GROUP_LENGTH], pos)
    if pos == start == len(data):
        raise Refused("the file ends after its DICOM header")
    uid = elements.get(TRANSFER_SYNTAX_UID)
    if uid is None or uid.vr != "UI" or not uid.length:
        return None, pos
    return bytes(data[uid.start : uid.start + min(uid.length, 128)]), pos


def _meta_end(data: Buffer, group_length: Element, pos: int) -> int | None:
    """Return the end of the group by its group length, None if that is empty."""
    length = group_length.length + group_length.length % 2
    if group_length.vr != "UL" or length == 2:
        raise Refused("the file meta information has a group length that is not a number")
    if not length:
        return None
    value = bytes(data[group_length.start : group_length.start + min(group_length.length, 4)])
    number = int.from_bytes(value, "big" if group_length.order == ">" else "little")
    return pos if number == UNDEFINED else pos + number


def _uid(value: bytes | None) -> str:
    if value is None:
        return ""
    if not value.strip(b" \0"):
        raise Refused("the transfer syntax is blank, which stands for implicit big endian")
    # A UID has 64 characters at most.
    return value[:128].decode("latin-1").rstrip(" \0")


# --- data set ---------------------------------------------------------------------------


def _read_data_set(
    file: Buffer, meta: FileMeta | None, uid: str, pos: int, tags: Container[int], dialect: Dialect
) -> File:
    """Walk the data set that starts at `pos`, in the transfer syntax `uid`."""
    if dialect.old and uid in _SINCE_DCMTK_3_6_8:
        uid = ""
    data = file
    if uid in _DEFLATED:
        data, pos = _inflate(file, pos), 0
    is_standard = uid in _ENCODINGS or uid in _ENCAPSULATED or uid in _DEFLATED
    encoding = _ENCODINGS.get(uid, EXPLICIT) if is_standard else _guess_encoding(data, pos)
    walker = Walker(data, dialect)
    elements = walker.data_set(pos, encoding, tags, encapsulated=uid in _ENCAPSULATED)
    return File(
        meta,
        data,
        elements,
        uid if is_standard else _SYNTAX_OF[encoding],
        walker.depth,
        pos,
        # Positions in an inflated data set are not positions in the file.
        walker.linear and data is file,
        walker.first_from_pixel_data,
    )


def _guess_encoding(data: Buffer, pos: int) -> Encoding:
    """Return the encoding that the first element seems to have.

    It is big endian if the group is below 0100 only when read that way, and the
    dictionary has the tag.
    """
    head = bytes(data[pos : pos + 6])
    if not is_vr(head[4:]):
        return IMPLICIT
    if head[0] or not head[1]:
        return EXPLICIT
    return BIG_ENDIAN if is_known(int.from_bytes(head[:4], "big")) else EXPLICIT


def _inflate(data: Buffer, pos: int) -> Buffer:
    """Inflate a data set (PS3.5, A.5); like DCMTK, ignore what follows it."""
    # Negative: without the header of zlib (RFC 1951), as PS3.5, A.5 requires.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # A mapped file cannot be closed while a view of it exists.
        with memoryview(data) as whole, whole[pos:] as deflated:
            inflated = inflater.decompress(deflated, min(_IN_MEMORY, MAX_INFLATED))
        if inflater.unconsumed_tail:
            return _inflate_to_file(inflated, inflater)
    except zlib.error:
        raise Refused("the deflated data set is damaged") from None
    if not inflater.eof:
        raise Refused("the deflated data set is cut off")
    return inflated


def _inflate_to_file(head: bytes, inflater: zlib._Decompress) -> mmap.mmap:
    """Inflate a large data set into a mapped temporary file: memory stays bounded."""
    try:
        # It has no name, so nothing is left of it, even if this process is killed.
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
        folder = tempfile.gettempdir()
        raise Refused(f"the deflated data set does not fit into {folder}: {error.strerror}") from None
