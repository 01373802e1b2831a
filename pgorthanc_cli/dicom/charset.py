"""From the bytes of a text to Unicode, as Orthanc does with boost.locale on ICU.

Orthanc uses only the first specific character set (PS3.3, C.12.1.1.2) and does not follow escape sequences, but
for ISO 2022 IR 87. Malformed input is skipped, never replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pgorthanc_cli.dicom import multibyte

Decoder = Callable[[bytes], str]

_C1 = bytes(range(0x80, 0xA0))
_NOT_ASCII = bytes(b for b in range(256) if b != 0x0A and not 0x20 <= b <= 0x7E)


def _ascii(raw: bytes) -> str:
    return raw.translate(None, _NOT_ASCII).decode("ascii")


def _codec(name: str) -> Decoder:
    return lambda raw: raw.decode(name, "ignore")


def _thai(raw: bytes) -> str:
    return raw.translate(None, _C1).decode("tis_620", "ignore")


# Orthanc's names of encodings, as in the option DefaultEncoding.
ENCODINGS: dict[str, Decoder] = {
    "Ascii": _ascii,
    "Utf8": multibyte.utf8,
    "Latin1": _codec("iso8859_1"),
    "Latin2": _codec("iso8859_2"),
    "Latin3": _codec("iso8859_3"),
    "Latin4": _codec("iso8859_4"),
    "Latin5": _codec("iso8859_9"),
    "Cyrillic": _codec("iso8859_5"),
    "Windows1251": _codec("cp1251"),
    "Arabic": _codec("iso8859_6"),
    "Greek": _codec("iso8859_7"),
    "Hebrew": _codec("iso8859_8"),
    "Thai": _thai,
    "Japanese": multibyte.shift_jis,
    "Chinese": multibyte.gb18030,
    "JapaneseKanji": multibyte.iso_2022_jp,
    "Korean": multibyte.cp949,
    "SimplifiedChinese": _codec("gb2312"),
}

_BY_NUMBER = {
    "6": "Ascii",
    "100": "Latin1",
    "101": "Latin2",
    "109": "Latin3",
    "110": "Latin4",
    "148": "Latin5",
    "144": "Cyrillic",
    "127": "Arabic",
    "126": "Greek",
    "138": "Hebrew",
    "166": "Thai",
    "13": "Japanese",
}
_DEFINED_TERMS = {
    **{f"ISO_IR {number}": name for number, name in _BY_NUMBER.items()},
    **{f"ISO 2022 IR {number}": name for number, name in _BY_NUMBER.items()},
    "ISO_IR 192": "Utf8",
    "GB18030": "Chinese",
    "GBK": "Chinese",
    "ISO 2022 IR 149": "Korean",
    "ISO 2022 IR 87": "JapaneseKanji",
    "ISO 2022 IR 58": "SimplifiedChinese",
}

# Locking shifts, single shifts and designations (ISO 2022) that are left over after the conversion.
_ESCAPES = re.compile("[\x0e\x0f]|\x1b(?:[noNO|}~]|[\x20-\x2f]+[\x30-\x7f])")


@dataclass(frozen=True, slots=True)
class Charset:
    """The character set of one file.

    Attributes:
        encoding: Orthanc's name of it.
        extensions: the file uses code extensions, so leftovers of ISO 2022 are removed from each text.
        split: texts with separators are decoded part by part in the encoding Japanese (Orthanc 1.12.9).
    """

    encoding: str
    extensions: bool
    split: bool

    @property
    def plain(self) -> bool:
        """Printable ASCII is what it is."""
        return self.encoding not in ("Japanese", "JapaneseKanji")

    def decode(self, raw: bytes, vr: str) -> str:
        """The text of a value of that VR, without what cannot be decoded."""
        decoder = ENCODINGS[self.encoding]
        if self.split and self.encoding == "Japanese" and vr not in ("ST", "LT", "UT"):
            text = "\\".join(map(decoder, raw.split(b"\\")))
        else:
            text = decoder(raw)
        if self.extensions and self.encoding != "Ascii":
            return _ESCAPES.sub("", text)
        return text


def charset(specific: bytes, default: str, *, split: bool) -> Charset:
    """The character set that a value of SpecificCharacterSet (0008,0005) stands for.

    Args:
        specific: the value, empty if the file has none.
        default: name of the encoding to take then (`DefaultEncoding`).
        split: see `Charset`.
    """
    terms = specific.partition(b"\0")[0].split(b"\\")
    term = next((stripped for part in terms if (stripped := part.strip(b"\t\n\x0b\x0c\r "))), b"")
    name = default
    if term:
        known = (
            term.decode("latin-1")
            .upper()
            .replace("ISO_IR_", "ISO_IR ")
            .replace("ISO_2022_IR_", "ISO 2022 IR ")
        )
        name = _DEFINED_TERMS.get(known, "Ascii")
    return Charset(name, len(terms) > 1, split)
