"""The bytes of a text -> Unicode, as Orthanc decodes them with boost.locale on ICU.

Orthanc uses only the first specific character set (PS3.3, C.12.1.1.2), and follows escape
sequences only for ISO 2022 IR 87. Malformed input is skipped, never replaced. The
decoders start from Python's codecs, and differ where the tables of ICU or its way to skip
malformed bytes do.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import NamedTuple

# --- decoders of one encoding -----------------------------------------------------------

Decoder = Callable[[bytes], str]

_C1 = bytes(range(0x80, 0xA0))
# Orthanc drops TAB, CR and ESC as well (INGEST.md 3.2).
_NOT_ASCII = bytes(b for b in range(256) if b != 0x0A and not 0x20 <= b <= 0x7E)


def _ascii(raw: bytes) -> str:
    return raw.translate(None, _NOT_ASCII).decode("ascii")


def _codec(name: str) -> Decoder:
    return lambda raw: raw.decode(name, "ignore")


def _thai(raw: bytes) -> str:
    # Python's tis_620 decodes 80 to 9F to control characters; Orthanc drops them.
    return raw.translate(None, _C1).decode("tis_620", "ignore")


def _utf8(raw: bytes) -> str:
    """Decode UTF-8; a bad continuation byte is skipped with all of its sequence."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(_utf8_sequences(raw))


def _utf8_sequences(raw: bytes) -> list[str]:
    texts, pos = [], 0
    while pos < len(raw):
        follow = _utf8_follow(raw[pos])
        if follow < 0:
            pos += 1
            continue
        end = pos + 1
        while end <= pos + follow and end < len(raw) and raw[end] & 0xC0 == 0x80:
            end += 1
        # The offending byte is lost, too: C2 7A gives nothing, although 7A is a letter.
        if end <= pos + follow:
            pos = end + 1
            continue
        # Overlong forms and surrogates are dropped whole.
        texts.append(raw[pos:end].decode("utf-8", "ignore"))
        pos = end
    return texts


def _utf8_follow(lead: int) -> int:
    """Return the number of continuation bytes, -1 if this is not a lead byte."""
    if lead < 0x80:
        return 0
    if 0xC2 <= lead <= 0xF4:
        return 1 + (lead >= 0xE0) + (lead >= 0xF0)
    return -1


def _shift_jis(raw: bytes) -> str:
    """Decode Shift-JIS; 5C and 7E are yen sign and overline (JIS X 0201)."""
    return raw.decode("shift_jis", "ignore").translate({0x5C: 0xA5, 0x7E: 0x203E})


def _skip_one(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "", error.start + 1


_SKIP_ONE = "pgorthanc.skip-one"
codecs.register_error(_SKIP_ONE, _skip_one)

# Code positions that the edition of 2022 moved out of the private use area: each
# character here is what Python, which has the edition of 2000, decodes for the bytes that
# now mean the other one, and the other way round.
_PRIVATE_2000 = (
    "\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7"
    "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864"
)
_ASSIGNED_2022 = (
    "\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f"
    "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb"
)
_EDITION_2022 = str.maketrans(_PRIVATE_2000 + _ASSIGNED_2022, _ASSIGNED_2022 + _PRIVATE_2000)


def _gb18030(raw: bytes) -> str:
    """Decode GB18030 of 2022, which includes GBK; only a bad lead byte is skipped."""
    return raw.decode("gb18030", _SKIP_ONE).translate(_EDITION_2022)


def _korean(error: UnicodeError) -> tuple[str, int]:
    """Decode what ICU has beyond Python's cp949: 80, FF, two user-defined rows."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    lead = error.object[error.start]
    trail = error.object[error.start + 1] if error.start + 1 < len(error.object) else 0
    if lead in (0x80, 0xFF):
        return "\x80" if lead == 0x80 else "\uf8f7", error.start + 1
    if lead in (0xC9, 0xFE) and 0xA1 <= trail <= 0xFE:
        return chr((0xE000 if lead == 0xC9 else 0xE05E) + trail - 0xA1), error.start + 2
    # A byte that cannot be the second one of a pair begins the next character.
    return "", error.start + (2 if 0x40 <= trail <= 0xFE and trail != 0x7F else 1)


_KOREAN = "pgorthanc.korean"
codecs.register_error(_KOREAN, _korean)


def _cp949(raw: bytes) -> str:
    """Decode KS X 1001 with the extensions of Windows code page 949."""
    return raw.decode("cp949", _KOREAN)


_MODES = {
    b"(B": "ascii",
    b"(J": "roman",
    b"(H": "roman",
    b"(I": "katakana",
    b"$B": "x0208",
    b"$@": "x0208",
    b"&@": "x0208",
    b"$(D": "x0212",
}
# Escape sequences that ICU knows and that designate nothing here: they are dropped whole.
_OTHER_SEQUENCES = (
    *(b"(@", b"(A", b"(C", b"(D", b"(E", b"(F", b"(G", b"(K", b"(R", b"$A", b"%B", b".A", b".F", b"O"),
    *(b"$(" + bytes((final,)) for final in b"@ABCEGHIJKLM"),
    *(b"$)A", b"$)C", b"$)E", b"$)G", b"$*H", *(b"$+" + bytes((final,)) for final in b"IJKLM")),
)
_SEQUENCES = dict.fromkeys(_OTHER_SEQUENCES, "") | _MODES
_STARTS = frozenset(known[:length] for known in (*_SEQUENCES, b"%/G") for length in range(1, len(known)))
_ROMAN = {0x5C: "\xa5", 0x7E: "\u203e"}


def _iso_2022_jp(raw: bytes) -> str:
    """Decode ISO-2022-JP; of unknown escape sequences only the ESC is skipped."""
    texts: list[str] = []
    pos, mode = 0, "ascii"
    while pos < len(raw):
        byte = raw[pos]
        if byte == 0x1B:
            sequence = _sequence(raw[pos + 1 : pos + 4])
            mode = _SEQUENCES.get(sequence) or mode
            pos += 1 + len(sequence)
        elif byte in (0x0A, 0x0D):
            texts.append(chr(byte))
            # A line begins in a set of single bytes (RFC 1468), even if ESC ( B is
            # missing.
            mode = "roman" if mode == "roman" else "ascii"
            pos += 1
        # Shift out and shift in mean nothing in ISO-2022-JP, and ICU drops them.
        elif byte in (0x0E, 0x0F):
            pos += 1
        elif mode in ("x0208", "x0212"):
            text, pos = _pair(raw, pos, mode)
            texts.append(text)
        elif byte >= 0x80:
            pos += 1
        else:
            texts.append(_single(byte, mode))
            pos += 1
    return "".join(texts)


def _sequence(rest: bytes) -> bytes:
    """Return the known sequence after an ESC, or the start of one at the end."""
    if len(rest) < 3 and rest in _STARTS:
        return rest
    return next((rest[:length] for length in (1, 2, 3) if rest[:length] in _SEQUENCES), b"")


def _single(byte: int, mode: str) -> str:
    if mode == "katakana":
        # JIS X 0201 has 63 half-width katakana from 21 on, Unicode the same from U+FF61
        # on.
        return chr(0xFF40 + byte) if 0x21 <= byte <= 0x5F else ""
    return _ROMAN.get(byte, chr(byte)) if mode == "roman" else chr(byte)


def _pair(raw: bytes, pos: int, mode: str) -> tuple[str, int]:
    """Return the character of two bytes 21-7E, and the position after it.

    A byte that starts no pair is skipped, together with an end of line after it.
    """
    pair = raw[pos : pos + 2]
    if pair[1:] in (b"\n", b"\r"):
        return "", pos + 2
    if len(pair) < 2 or not (0x21 <= pair[0] <= 0x7E and 0x21 <= pair[1] <= 0x7E):
        return "", pos + 1
    if mode == "x0212":
        # The only codec of Python for JIS X 0212 is the one of EUC-JP, where 8F precedes
        # it.
        return _mapped(bytes((0x8F, pair[0] | 0x80, pair[1] | 0x80)), "euc_jp"), pos + 2
    # cp932 has NEC's row 13 and the extensions of IBM, as ICU has; iso2022_jp lacks them.
    return _mapped(_shifted(*pair), "cp932"), pos + 2


def _mapped(raw: bytes, codec: str) -> str:
    """Return one character, nothing for a pair that the codec does not map."""
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return ""


def _shifted(row: int, cell: int) -> bytes:
    """Return the Shift-JIS form of a JIS X 0208 pair."""
    lead = (row - 0x21) // 2 + 0x81
    trail = cell + (0x1F if cell < 0x60 else 0x20) if row % 2 else cell + 0x7E
    return bytes((lead if lead < 0xA0 else lead + 0x40, trail))


# --- Orthanc's encodings, and the character sets of DICOM -------------------------------

# Orthanc's names of encodings, as in the option DefaultEncoding.
_DECODERS: dict[str, Decoder] = {
    "Ascii": _ascii,
    "Utf8": _utf8,
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
    "Japanese": _shift_jis,
    "Chinese": _gb18030,
    "JapaneseKanji": _iso_2022_jp,
    "Korean": _cp949,
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

# Locking shifts, single shifts and designations (ISO 2022) that are left over after the
# conversion.
_ESCAPES = re.compile("[\x0e\x0f]|\x1b(?:[noNO|}~]|[\x20-\x2f]+[\x30-\x7f])")


class Charset(NamedTuple):
    """The character set of one file.

    Attributes:
        encoding: Orthanc's name of it.
        extensions: the file uses code extensions, so leftovers of ISO 2022 are removed
            from each text.
        split: texts with separators are decoded part by part in the encoding Japanese
            (Orthanc 1.12.9).
    """

    encoding: str
    extensions: bool
    split: bool

    @property
    def plain(self) -> bool:
        """Whether printable ASCII decodes to itself."""
        return self.encoding not in ("Japanese", "JapaneseKanji")

    def decode(self, raw: bytes, vr: str) -> str:
        """Return the text of a value, without what cannot be decoded."""
        decoder = _DECODERS[self.encoding]
        # 5C is the yen sign here, and also DICOM's separator of values. ST, LT and UT
        # have one value only, in which it is a character (PS3.5, 6.2).
        if self.split and self.encoding == "Japanese" and vr not in ("ST", "LT", "UT"):
            text = "\\".join(map(decoder, raw.split(b"\\")))
        else:
            text = decoder(raw)
        if self.extensions and self.encoding != "Ascii":
            return _ESCAPES.sub("", text)
        return text


def charset(specific: bytes, default: str, *, split: bool) -> Charset:
    """Return the character set for a value of SpecificCharacterSet (0008,0005).

    Args:
        specific: the value, empty if the file has none.
        default: name of the encoding to take then (`DefaultEncoding`).
        split: see `Charset`.
    """
    terms = specific.partition(b"\0")[0].split(b"\\")
    # An empty first value means ISO IR 6 (PS3.3, C.12.1.1.2), but Orthanc takes the next
    # one.
    term = next((stripped for part in terms if (stripped := part.strip(b"\t\n\x0b\x0c\r "))), b"")
    name = default
    if term:
        known = (
            term.decode("latin-1")
            .upper()
            .replace("ISO_IR_", "ISO_IR ")
            .replace("ISO_2022_IR_", "ISO 2022 IR ")
        )
        # Not DefaultEncoding: Orthanc reads even ISO_IR 149 and UTF-8 as ASCII.
        name = _DEFINED_TERMS.get(known, "Ascii")
    # A second value, even an empty one, announces code extensions.
    return Charset(name, len(terms) > 1, split)
