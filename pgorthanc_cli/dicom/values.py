"""The bytes of an element -> the text that Orthanc's index has for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

from pgorthanc_cli.dicom.charset import Charset, charset
from pgorthanc_cli.dicom.model import Buffer, Profile, Refused
from pgorthanc_cli.dicom.structure import UNDEFINED, Dialect, Element, vrs
from pgorthanc_cli.dicom.tags import SPECIFIC_CHARACTER_SET, XS, format_tag, is_private, name_of, vr_of

LIMIT = 256  # bytes of UTF-8; a longer text is not stored
_HEAD = 1 << 16  # bytes of a value that usually suffice to see that its text is too long
_MAX_NUMBERS = 256  # of OF, OD, OL and OV
_MAX_NUMBER_BYTES = 16 << 20  # of the other numbers, which Orthanc stores whole

# Orthanc versions since which the same value gives another text.
_NEWER_DCMTK_SINCE = (1, 12, 3)  # newer than 3.6.7; it trims trailing 00
_SPLITS_JAPANESE_SINCE = (1, 12, 9)
_ALL_NUMBERS_SINCE = (1, 12, 11)

TEXT_VRS = vrs("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT")
# XS is binary here: PixelRepresentation does not say what it is.
_BINARY = frozenset({"OB", "OW", "", XS})
_WHITE = b" \t\n\x0b\x0c\r"

# VR -> code of `struct`, form of a number. Orthanc stores the lists of the first kind
# whole, however long.
# A float is widened to a double first, so that 0.1 becomes 0.10000000149011612.
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
_SINCE_ALL_NUMBERS = frozenset({"UV", "SV", *_ARRAYS})
_STRUCTS = {(code, order): Struct(order + code) for code in "HhIiQqfd" for order in "<>"}
_TAGS = {order: Struct(order + "HH") for order in "<>"}


@dataclass(frozen=True, slots=True)
class TextReader:
    """Converts elements of one file to texts.

    Attributes:
        data: what the elements point into.
        charset: of the file.
        trims_nul: trailing 00 bytes are padding, like spaces (DCMTK after 3.6.7).
        all_numbers: AT has all its values, and SV, UV, OF, OD, OL and OV have a text
            (Orthanc 1.12.11).
    """

    data: Buffer
    charset: Charset
    trims_nul: bool
    all_numbers: bool

    def text(self, element: Element) -> str | None:
        """Return the text, None for sequences, binary, empty numbers and long texts."""
        if element.length <= LIMIT and element.vr in TEXT_VRS and self.charset.plain:
            raw = bytes(self.data[element.start : element.start + element.length])
            if (text := _plain_ascii(raw, element.vr)) is not None:
                return text
        text = self._whole_text(element)
        return None if text is None or _too_long(element.vr, text) else text

    def raw(self, element: Element, limit: int = UNDEFINED) -> bytes:
        """Return the bytes of a value, at most `limit`."""
        return bytes(self.data[element.start : element.start + min(element.length, limit)])

    def _whole_text(self, element: Element) -> str | None:
        vr = element.vr
        if element.items is not None or vr in _BINARY:
            return None
        if vr in TEXT_VRS or vr == "UN":
            # A long text is rarely stored, so its first 64 kB are decoded first. They do not
            # suffice if most of it is skipped as malformed.
            head = self._decode(element, _HEAD)
            if element.length <= _HEAD or head is None or _too_long(vr, head):
                return head
            return self._decode(element, element.length)
        return self._numbers(element, vr)

    def _trim(self, raw: bytes, vr: str) -> bytes:
        if vr == "UI":
            # Orthanc removes white space also inside a UID, not only around it (INGEST.md
            # 3.1).
            return raw.partition(b"\0")[0].translate(None, _WHITE)
        # A 00 that remains ends the text for DCMTK, and spaces before it stay.
        return raw.rstrip(b" \0" if self.trims_nul else b" ").partition(b"\0")[0]

    def _decode(self, element: Element, limit: int) -> str | None:
        """Return the decoded text; UN is one if the tag has a text VR."""
        vr, raw = element.vr, self.raw(element, limit)
        if vr != "UN":
            return self.charset.decode(self._trim(raw, vr), vr)
        vr = vr_of(element.tag)
        if vr not in TEXT_VRS or is_private(element.tag):
            return None
        if len(raw) % 2 == 0 and raw.endswith(b"\0"):
            # Of UN, Orthanc removes one byte of padding only.
            raw = raw[:-1]
        return self.charset.decode(raw, vr)

    def _numbers(self, element: Element, vr: str) -> str | None:
        if vr in _SINCE_ALL_NUMBERS and not self.all_numbers:
            return None
        if vr == "AT":
            return self._tags(element)
        if vr in _ARRAYS:
            code, form = _ARRAYS[vr]
            unpacker = _STRUCTS[code, element.order]
            raw = _pad(self.raw(element, _MAX_NUMBERS * unpacker.size))
            return "\\".join(form % number for number in unpacker.iter_unpack(raw))
        if element.length > _MAX_NUMBER_BYTES:
            raise Refused(
                f"({format_tag(element.tag)}) has {element.length} bytes of numbers, too many for the index"
            )
        code, form = _NUMBERS[vr]
        return _join_numbers(self.raw(element), _STRUCTS[code, element.order], form)

    def _tags(self, element: Element) -> str | None:
        # The text of more than LIMIT bytes would be too long.
        if self.all_numbers:
            raw = _pad(self.raw(element, LIMIT))
        else:
            raw = _pad(self.raw(element, 4))
            raw = raw if len(raw) == 4 else b""
        texts = [format_tag(group << 16 | tag) for group, tag in _TAGS[element.order].iter_unpack(raw)]
        return "\\".join(texts) if self.all_numbers else next(iter(texts), None)

    def json(self, sequences: list[Element]) -> str:
        """Return metadata 16: sequences as one JSON document."""
        content = {"Sequences": {format_tag(s.tag): self._json_value(s) for s in sequences}, "Version": 1}
        # As JsonCpp writes it, to the byte (INGEST.md 3.4).
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return _ESCAPE.sub(_bare_delete, text) if "\\u007f" in text else text

    def _json_value(self, element: Element) -> dict[str, Any]:
        name = name_of(element.tag)
        if element.items is not None:
            items = [
                {format_tag(tag): self._json_value(member) for tag, member in item.items()}
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
    """Return the character 7F as it is: Orthanc's JSON writer does not escape it."""
    return "\x7f" if escape[1] == "u007f" else escape[0]


def reader_of(data: Buffer, elements: Mapping[int, Element], profile: Profile) -> TextReader:
    """Return the reader of the texts of a data set, under a profile."""
    version = profile.orthanc_version
    split = version >= _SPLITS_JAPANESE_SINCE
    reader = TextReader(
        data,
        charset(b"", profile.default_encoding, split=split),
        trims_nul=version >= _NEWER_DCMTK_SINCE,
        all_numbers=version >= _ALL_NUMBERS_SINCE,
    )
    specific = elements.get(SPECIFIC_CHARACTER_SET)
    if specific is not None and specific.vr in TEXT_VRS:
        file_charset = charset(reader.raw(specific), profile.default_encoding, split=split)
        reader = replace(reader, charset=file_charset)
    return reader


def dialect(version: tuple[int, int, int]) -> Dialect:
    """Return how this version of Orthanc reads the structure of a file."""
    return Dialect(old=version < _NEWER_DCMTK_SINCE, whole_arrays=version >= _ALL_NUMBERS_SINCE)


def _plain_ascii(raw: bytes, vr: str) -> str | None:
    """Return the text if it is printable ASCII and padding, as nearly all are."""
    try:
        text = raw.rstrip(b"\0" if vr == "UI" else b" ").decode("ascii")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and (vr != "UI" or " " not in text) else None


def _too_long(vr: str, text: str) -> bool:
    # A character has at most 4 bytes in UTF-8.
    if vr in _NUMBERS or 4 * len(text) <= LIMIT:
        return False
    return len(text.encode()) > LIMIT


def _pad(raw: bytes) -> bytes:
    """Return a value padded to an even length, as DCMTK does."""
    return raw + b"\0" if len(raw) % 2 else raw


def _join_numbers(raw: bytes, unpacker: Struct, form: str) -> str | None:
    r"""Join numbers with `\`; only the first one if the length is not a multiple."""
    raw = _pad(raw)
    if len(raw) % unpacker.size:
        raw = raw[: unpacker.size]
    if len(raw) < unpacker.size:
        return None
    return "\\".join(form % number for number in unpacker.iter_unpack(raw))


def normalized(text: str) -> str:
    """Return how Orthanc searches identifiers: ASCII, upper case, no wildcards."""
    # All other characters are lost: different patients may share an identifier.
    ascii_text = text.translate(_WILDCARDS).encode("ascii", "ignore").translate(None, _NOT_PRINTABLE)
    return ascii_text.decode().upper().strip(" ")


_WILDCARDS = {ord("%"): " ", ord("_"): " "}
_NOT_PRINTABLE = bytes(b for b in range(256) if not 0x20 <= b <= 0x7E)
