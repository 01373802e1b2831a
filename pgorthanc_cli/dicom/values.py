"""From the bytes of an element to the text that Orthanc's index has for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

from pgorthanc_cli.dicom.charset import Charset, charset
from pgorthanc_cli.dicom.dictionary import XS, is_private, name_of, vr_of, written
from pgorthanc_cli.dicom.model import Buffer, Profile, Refused
from pgorthanc_cli.dicom.structure import UNDEFINED, Dialect, Element, vrs
from pgorthanc_cli.dicom.tags import SPECIFIC_CHARACTER_SET

LIMIT = 256  # bytes of UTF-8; a longer text is not stored
_HEAD = 1 << 16  # bytes of a value that are enough, but for oddities, to see that its text is too long
_MAX_NUMBERS = 256  # of OF, OD, OL and OV
_MAX_NUMBER_BYTES = 16 << 20  # of the other numbers, which Orthanc stores whole

# Orthanc versions since which the same value gives another text.
NEWER_DCMTK_SINCE = (1, 12, 3)  # newer than 3.6.7; it trims trailing 00
_SPLITS_JAPANESE_SINCE = (1, 12, 9)
_ALL_NUMBERS_SINCE = (1, 12, 11)

TEXT_VRS = vrs("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT")
_BINARY = frozenset({"OB", "OW", "", XS})  # XS: PixelRepresentation does not say what it is
_WHITE = b" \t\n\x0b\x0c\r"

# VR -> code of `struct`, form of a number. Orthanc stores the lists of the first kind whole, however long.
_NUMBERS = {
    "US": ("H", "%d"),
    "SS": ("h", "%d"),
    "UL": ("I", "%d"),
    "SL": ("i", "%d"),
    "UV": ("Q", "%d"),
    "SV": ("q", "%d"),
    "FL": ("f", "%.17g"),
    "FD": ("d", "%.17g"),
}
_ARRAYS = {"OF": ("f", "%.9g"), "OD": ("d", "%.17g"), "OL": ("I", "%d"), "OV": ("Q", "%d")}
_LATE = frozenset({"UV", "SV", *_ARRAYS})
_STRUCTS = {(code, order): Struct(order + code) for code in "HhIiQqfd" for order in "<>"}
_TAGS = {order: Struct(order + "HH") for order in "<>"}


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes texts of the elements of one file.

    Attributes:
        data: what the elements point into.
        charset: of the file.
        trims_nul: trailing 00 bytes are padding as spaces are (DCMTK after 3.6.7).
        all_numbers: AT has all its values, and SV, UV, OF, OD, OL and OV have a text (Orthanc 1.12.11).
    """

    data: Buffer
    charset: Charset
    trims_nul: bool
    all_numbers: bool

    def text(self, element: Element) -> str | None:
        """The text of an element, None if it is a sequence, binary, a number without value, or too long."""
        if element.length <= LIMIT and element.vr in TEXT_VRS and self.charset.plain:
            raw = bytes(self.data[element.start : element.start + element.length])
            if (text := _plain(raw, element.vr)) is not None:
                return text
        text = self._whole_text(element)
        return None if text is None or _too_long(element.vr, text) else text

    def raw(self, element: Element, limit: int = UNDEFINED) -> bytes:
        """The bytes of a value, the first ones if it has more than `limit`."""
        return bytes(self.data[element.start : element.start + min(element.length, limit)])

    def _whole_text(self, element: Element) -> str | None:
        vr = element.vr
        if element.items is not None or vr in _BINARY:
            return None
        if vr in TEXT_VRS or vr == "UN":
            head = self._decoded(element, _HEAD)
            if element.length <= _HEAD or head is None or _too_long(vr, head):
                return head
            return self._decoded(element, element.length)
        return self._numbers(element, vr)

    def _trimmed(self, raw: bytes, vr: str) -> bytes:
        if vr == "UI":
            return raw.partition(b"\0")[0].translate(None, _WHITE)
        return raw.rstrip(b" \0" if self.trims_nul else b" ").partition(b"\0")[0]

    def _decoded(self, element: Element, limit: int) -> str | None:
        """A text; UN is one if the dictionary has a text VR for the tag, and then has one byte of padding at most."""
        vr, raw = element.vr, self.raw(element, limit)
        if vr != "UN":
            return self.charset.decode(self._trimmed(raw, vr), vr)
        vr = vr_of(element.tag)
        if vr not in TEXT_VRS or is_private(element.tag):
            return None
        if len(raw) % 2 == 0 and raw.endswith(b"\0"):
            raw = raw[:-1]
        return self.charset.decode(raw, vr)

    def _numbers(self, element: Element, vr: str) -> str | None:
        if vr in _LATE and not self.all_numbers:
            return None
        if vr == "AT":
            return self._tags(element)
        if vr in _ARRAYS:
            code, form = _ARRAYS[vr]
            unpacker = _STRUCTS[code, element.order]
            raw = _padded(self.raw(element, _MAX_NUMBERS * unpacker.size))
            return "\\".join(form % number for number in unpacker.iter_unpack(raw))
        if element.length > _MAX_NUMBER_BYTES:
            raise Refused(
                f"({written(element.tag)}) has {element.length} bytes of numbers, too many for the index"
            )
        code, form = _NUMBERS[vr]
        return _joined(self.raw(element), _STRUCTS[code, element.order], form)

    def _tags(self, element: Element) -> str | None:
        if self.all_numbers:  # of more than LIMIT bytes the text is too long
            raw = _padded(self.raw(element, LIMIT))
        else:
            raw = _padded(self.raw(element, 4))
            raw = raw if len(raw) == 4 else b""
        texts = [written(group << 16 | tag) for group, tag in _TAGS[element.order].iter_unpack(raw)]
        return "\\".join(texts) if self.all_numbers else next(iter(texts), None)

    def json(self, sequences: list[Element]) -> str:
        """Metadata 16: sequences as one JSON document, with everything inside them."""
        content = {"Sequences": {written(s.tag): self._described(s) for s in sequences}, "Version": 1}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return _ESCAPE.sub(_bare_delete, text) if "\\u007f" in text else text

    def _described(self, element: Element) -> dict[str, Any]:
        name = name_of(element.tag)
        if element.items is not None:
            items = [
                {written(tag): self._described(member) for tag, member in item.items()}
                for item in element.items
            ]
            return {"Name": name, "Type": "Sequence", "Value": items}
        text = self._whole_text(element)
        if text is None:
            return {"Name": name, "Type": "Null", "Value": None}
        if _too_long(element.vr, text):
            return {"Name": name, "Type": "TooLong", "Value": None}
        return {"Name": name, "Type": "String", "Value": text}


_ESCAPE = re.compile(r"\\(u007f|.)")


def _bare_delete(escape: re.Match[str]) -> str:
    """Orthanc's JSON writer leaves the character 7F as it is."""
    return "\x7f" if escape[1] == "u007f" else escape[0]


def reader_of(data: Buffer, elements: Mapping[int, Element], profile: Profile) -> Reader:
    """The reader of the texts of a data set, under a profile."""
    version = profile.orthanc_version
    split = version >= _SPLITS_JAPANESE_SINCE
    reader = Reader(
        data,
        charset(b"", profile.default_encoding, split=split),
        trims_nul=version >= NEWER_DCMTK_SINCE,
        all_numbers=version >= _ALL_NUMBERS_SINCE,
    )
    specific = elements.get(SPECIFIC_CHARACTER_SET)
    if specific is not None and specific.vr in TEXT_VRS:
        terms = charset(reader.raw(specific), profile.default_encoding, split=split)
        reader = replace(reader, charset=terms)
    return reader


def dialect(version: tuple[int, int, int]) -> Dialect:
    """How this version of Orthanc reads the structure of a file."""
    return Dialect(old=version < NEWER_DCMTK_SINCE, whole_arrays=version >= _ALL_NUMBERS_SINCE)


def _plain(raw: bytes, vr: str) -> str | None:
    """Nearly all texts: printable ASCII and nothing behind it but padding. None for all others."""
    try:
        text = raw.rstrip(b"\0" if vr == "UI" else b" ").decode("ascii")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and (vr != "UI" or " " not in text) else None


def _too_long(vr: str, text: str) -> bool:
    if vr in _NUMBERS or 4 * len(text) <= LIMIT:
        return False
    return len(text.encode()) > LIMIT


def _padded(raw: bytes) -> bytes:
    """A value of even length, as DCMTK makes it."""
    return raw + b"\0" if len(raw) % 2 else raw


def _joined(raw: bytes, unpacker: Struct, form: str) -> str | None:
    r"""Numbers joined with `\`; only the first one if the padded length fits no whole number of them."""
    raw = _padded(raw)
    if len(raw) % unpacker.size:
        raw = raw[: unpacker.size]
    if len(raw) < unpacker.size:
        return None
    return "\\".join(form % number for number in unpacker.iter_unpack(raw))


def normalized(text: str) -> str:
    """The form in which Orthanc searches identifiers: ASCII, upper case, no wildcards, no outer spaces."""
    ascii_text = text.translate(_WILDCARDS).encode("ascii", "ignore").translate(None, _NOT_PRINTABLE)
    return ascii_text.decode().upper().strip(" ")


_WILDCARDS = {ord("%"): " ", ord("_"): " "}
_NOT_PRINTABLE = bytes(b for b in range(256) if not 0x20 <= b <= 0x7E)
