"""Decoders of multi-byte encodings as ICU has them; what cannot be decoded is skipped.

They start from Python's codecs, and differ where ICU's tables or its way to skip malformed bytes do.
"""

from __future__ import annotations

import codecs


def utf8(raw: bytes) -> str:
    """UTF-8 as boost.locale skips: a bad continuation goes with all of its sequence, offending byte included."""
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
        if end <= pos + follow:
            pos = end + 1
            continue
        texts.append(
            raw[pos:end].decode("utf-8", "ignore")
        )  # overlong forms and surrogates are dropped whole
        pos = end
    return texts


def _utf8_follow(lead: int) -> int:
    """How many continuation bytes a lead byte has, -1 for a byte that leads nothing."""
    if lead < 0x80:
        return 0
    if 0xC2 <= lead <= 0xF4:
        return 1 + (lead >= 0xE0) + (lead >= 0xF0)
    return -1


def shift_jis(raw: bytes) -> str:
    """JIS X 0201 with its yen sign and overline, and the two-byte characters of Shift-JIS."""
    return raw.decode("shift_jis", "ignore").translate({0x5C: 0xA5, 0x7E: 0x203E})


def _skip_one(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "", error.start + 1


_SKIP_ONE = "pgorthanc.skip-one"
codecs.register_error(_SKIP_ONE, _skip_one)

# Code positions that the edition of 2022 moved out of the private use area: each character here is what Python,
# which has the edition of 2000, decodes for the bytes that now mean the other one, and the other way round.
_PRIVATE_2000 = (
    "\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7"
    "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864"
)
_ASSIGNED_2022 = (
    "\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f"
    "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb"
)
_EDITION_2022 = str.maketrans(_PRIVATE_2000 + _ASSIGNED_2022, _ASSIGNED_2022 + _PRIVATE_2000)


def gb18030(raw: bytes) -> str:
    """GB18030 in its edition of 2022, which has GBK in it; a lead byte that starts nothing is dropped alone."""
    return raw.decode("gb18030", _SKIP_ONE).translate(_EDITION_2022)


def _korean(error: UnicodeError) -> tuple[str, int]:
    """What ICU has beyond Python's cp949: 80, FF, and two rows of user-defined characters."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    lead = error.object[error.start]
    trail = error.object[error.start + 1] if error.start + 1 < len(error.object) else 0
    if lead in (0x80, 0xFF):
        return "\x80" if lead == 0x80 else "\uf8f7", error.start + 1
    if lead in (0xC9, 0xFE) and 0xA1 <= trail <= 0xFE:
        return chr((0xE000 if lead == 0xC9 else 0xE05E) + trail - 0xA1), error.start + 2
    return "", error.start + (2 if 0x40 <= trail <= 0xFE and trail != 0x7F else 1)


_KOREAN = "pgorthanc.korean"
codecs.register_error(_KOREAN, _korean)


def cp949(raw: bytes) -> str:
    """KS X 1001 with the extensions of Windows code page 949."""
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


def iso_2022_jp(raw: bytes) -> str:
    """ISO-2022-JP with JIS X 0201, 0208 and 0212; unknown escape sequences lose their ESC only."""
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
            mode = "roman" if mode == "roman" else "ascii"
            pos += 1
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
    """What goes with an ESC: a sequence that ICU knows, or the start of one where the text ends."""
    if len(rest) < 3 and rest in _STARTS:
        return rest
    return next((rest[:length] for length in (1, 2, 3) if rest[:length] in _SEQUENCES), b"")


def _single(byte: int, mode: str) -> str:
    if mode == "katakana":
        return chr(0xFF40 + byte) if 0x21 <= byte <= 0x5F else ""
    return _ROMAN.get(byte, chr(byte)) if mode == "roman" else chr(byte)


def _pair(raw: bytes, pos: int, mode: str) -> tuple[str, int]:
    """The character of two bytes 21-7E, and the position after it.

    A byte that starts no pair is dropped, and the end of a line goes with it.
    """
    pair = raw[pos : pos + 2]
    if pair[1:] in (b"\n", b"\r"):
        return "", pos + 2
    if len(pair) < 2 or not (0x21 <= pair[0] <= 0x7E and 0x21 <= pair[1] <= 0x7E):
        return "", pos + 1
    if mode == "x0212":
        return _mapped(bytes((0x8F, pair[0] | 0x80, pair[1] | 0x80)), "euc_jp"), pos + 2
    return _mapped(_shifted(*pair), "cp932"), pos + 2


def _mapped(raw: bytes, codec: str) -> str:
    """One character, nothing for a pair that the codec does not map: it is dropped whole."""
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return ""


def _shifted(row: int, cell: int) -> bytes:
    """The Shift-JIS form of a JIS X 0208 pair."""
    lead = (row - 0x21) // 2 + 0x81
    trail = cell + (0x1F if cell < 0x60 else 0x20) if row % 2 else cell + 0x7E
    return bytes((lead if lead < 0xA0 else lead + 0x40, trail))
