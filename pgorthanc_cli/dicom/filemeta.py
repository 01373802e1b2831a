"""The file meta information (PS3.10, 7.1), as Orthanc's own reader finds it at the start of a file."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from pgorthanc_cli.dicom.model import Buffer, Refused
from pgorthanc_cli.dicom.structure import LONG_VRS, SHORT_VRS, UNDEFINED

_SYNTAX_ELEMENT = 0x0010  # of group 0002: TransferSyntaxUID
_START = 144  # preamble, DICM and the group length are before it
_LONGEST_BY_NAME = {
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

_LONGEST = {vr.encode(): length for vr, length in _LONGEST_BY_NAME.items()}
_SHORT = frozenset(vr.encode() for vr in SHORT_VRS)
_LONG = frozenset(vr.encode() for vr in LONG_VRS)
_HEADER = Struct("<HH2sH").unpack_from
_LENGTH = Struct("<I").unpack_from


class FileMeta(NamedTuple):
    """The file meta information, read to the length that it gives itself.

    Attributes:
        syntax: the value of its last TransferSyntaxUID, empty without one.
        earlier: the values of those before it.
        end: position after its last element.
        exact: that is where its length ends, too.
        overlong: a value is longer than its VR can be.
        plain: it is exact, and has one TransferSyntaxUID, and elements of group 0002 only, none of them a sequence.
    """

    syntax: bytes
    earlier: tuple[bytes, ...]
    end: int
    exact: bool
    overlong: bool
    plain: bool


def file_meta(data: Buffer) -> FileMeta | None:
    """The file meta information, None where there is none that is well-formed.

    Raises:
        Refused: Orthanc's reader meets a VR that it does not know.
    """
    size, header = len(data), _HEADER
    if size < _START or bytes(data[128:140]) != b"DICM\2\0\0\0UL\4\0":
        if size >= _START and bytes(data[128:132]) == b"DICM":
            _check_vr(bytes(data[136:138]), 132)
        return None
    earlier: tuple[bytes, ...] = ()
    pos, stop = _START, _START + _LENGTH(data, 140)[0]
    if stop > size:
        return None
    syntax, overlong, plain, found = b"", False, True, False
    while pos < stop:
        if pos + 8 > size:
            return None
        group, element, vr, length = header(data, pos)
        pos += 8
        if vr in _LONG and length == 0 and pos + 4 <= size:
            length, pos = _LENGTH(data, pos)[0], pos + 4
        elif vr not in _SHORT:
            _check_vr(vr, pos - 8)
            return None
        end = pos + length
        if end > size:
            return None
        overlong = overlong or length > _LONGEST.get(vr, UNDEFINED)
        plain = plain and group == 2 and vr != b"SQ"
        if element == _SYNTAX_ELEMENT and group == 2:
            plain = plain and not found and vr == b"UI"
            earlier = (*earlier, syntax) if found else ()
            found, syntax = True, bytes(data[pos:end]) if vr == b"UI" else b""
        pos = end
    exact = pos == stop
    return FileMeta(syntax, earlier, pos, exact, overlong, plain and exact and found)


def _check_vr(letters: bytes, pos: int) -> None:
    if letters not in _SHORT and letters not in _LONG:
        raise Refused(f"the file meta information has an unknown value representation at byte {pos}")
