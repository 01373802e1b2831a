"""From bytes to text: character sets as Orthanc decodes them."""

from __future__ import annotations

import pytest

from pgorthanc_cli.constants import ENCODINGS
from pgorthanc_cli.dicom.charset import charset

HIGH = bytes(range(0xA0, 0x100))


def decoded(
    specific: bytes, raw: bytes, vr: str = "PN", default: str = "Latin1", *, split: bool = True
) -> str:
    return charset(specific, default, split=split).decode(raw, vr)


@pytest.mark.parametrize(
    ("specific", "encoding", "extensions"),
    [
        (b"", "Latin1", False),
        (b"  ", "Latin1", False),
        (b"\\", "Latin1", True),
        (b"ISO_IR 6", "Ascii", False),
        (b"ISO_IR 100", "Latin1", False),
        (b"iso_ir 101", "Latin2", False),
        (b"ISO_IR_109", "Latin3", False),
        (b"ISO_2022_IR_110", "Latin4", False),
        (b" ISO 2022 IR 148 ", "Latin5", False),
        (b"ISO_IR 144\\", "Cyrillic", True),
        (b"ISO_IR 127", "Arabic", False),
        (b"ISO_IR 126", "Greek", False),
        (b"ISO_IR 138", "Hebrew", False),
        (b"ISO_IR 166", "Thai", False),
        (b"ISO_IR 13", "Japanese", False),
        (b"ISO_IR 192", "Utf8", False),
        (b"GB18030", "Chinese", False),
        (b"GBK", "Chinese", False),
        (b"\\ISO 2022 IR 87", "JapaneseKanji", True),
        (b"ISO 2022 IR 149", "Korean", False),
        (b"ISO 2022 IR 58", "SimplifiedChinese", False),
        (b"ISO 2022 IR 6\\ISO 2022 IR 100", "Ascii", True),
        *[
            (term, "Ascii", False)
            for term in (b"FOO", b"UTF-8", b"ISO_IR 87", b"ISO_IR 149", b"ISO 2022 IR 159")
        ],
    ],
)
def test_the_first_term_that_is_not_blank(specific: bytes, encoding: str, extensions: bool) -> None:
    actual = charset(specific, "Latin1", split=True)
    assert (actual.encoding, actual.extensions) == (encoding, extensions)


@pytest.mark.parametrize("name", ENCODINGS)
def test_default_encoding(name: str) -> None:
    assert charset(b"", name, split=True).encoding == name
    assert decoded(b"", b"Plain^Name", default=name) == "Plain^Name"
    assert isinstance(decoded(b"", bytes(range(256)) * 2, default=name), str)


@pytest.mark.parametrize(
    ("specific", "codec"),
    [
        (b"ISO_IR 100", "iso8859_1"),
        (b"ISO_IR 101", "iso8859_2"),
        (b"ISO_IR 109", "iso8859_3"),
        (b"ISO_IR 110", "iso8859_4"),
        (b"ISO_IR 148", "iso8859_9"),
        (b"ISO_IR 144", "iso8859_5"),
        (b"ISO_IR 127", "iso8859_6"),
        (b"ISO_IR 126", "iso8859_7"),
        (b"ISO_IR 138", "iso8859_8"),
    ],
)
def test_eight_bit_sets(specific: bytes, codec: str) -> None:
    assert decoded(specific, HIGH) == HIGH.decode(codec, "ignore")
    assert decoded(specific, b"a\x80\x9fz") == "a\x80\x9fz"


@pytest.mark.parametrize(
    ("specific", "raw", "expected"),
    [
        (b"ISO_IR 6", b"A\t\n\r\x1b~\x7f\xe9B", "A\n~B"),
        (b"ISO_IR 166", b"a\x80\xa0\xa1z", "a\u0e01z"),
        (b"ISO_IR 192", "é甲😀\ufeff".encode(), "é甲😀\ufeff"),
        (b"ISO_IR 192", b"a\xe9b\xc3\xa9c\xffd\xe2\x82", "aécd"),
        (b"ISO_IR 192", b"1\xc2z2", "12"),
        (b"ISO_IR 192", b"1\xc0\xaf2\xe0\x80\x803\xed\xa0\x804\xf4\x90\x80\x805\xf5\x806", "123456"),
        (b"ISO_IR 192", b"1\xe2\xc3\xa92", "12"),
        (b"ISO_IR 192", b"\xc3", ""),
        (b"GB18030", "王^小东".encode("gb18030"), "王^小东"),
        (b"GB18030", bytes.fromhex("a6d9a6daa6dba8bcfe598135f43782359037843182368431823784318238"), None),
        (b"GB18030", b"a\x81\x30b\xffc\x81", "a0bc"),
        (b"ISO 2022 IR 149", b"a\x80b\xffc", "a\x80b\uf8f7c"),
        (b"ISO 2022 IR 149", b"\xc9\xa1\xc9\xfe\xfe\xa1\xfe\xfe", "\ue000\ue05d\ue05e\ue0bb"),
        (b"ISO 2022 IR 149", b"\xc9\x41x\xc9\x31y\xc9", "x1y"),
        (b"ISO 2022 IR 149", b"Hong=\x1b$)C\xfb\xf3", "Hong=\x1b$)C洪"),
        (b"\\ISO 2022 IR 149", b"Hong=\x1b$)C\xfb\xf3", "Hong=洪"),
        (b"ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5", "Zhang=\x1b$)A张"),
        (b"\\ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5", "Zhang=张"),
        (b"ISO 2022 IR 87", b"A=\x1b$B;3ED\x1b(B^x", "A=山田^x"),
        (b"ISO 2022 IR 87", b"\x1b(J\\~\n\\\x1b(B\\~", "¥‾\n¥\\~"),
        (b"ISO 2022 IR 87", b"\x1b(I1_ \x1b(B1", "ｱﾟ1"),
        (b"ISO 2022 IR 87", b"\x1b$(D0!\x1b(B", "丂"),
        (b"ISO 2022 IR 87", b"\x1b$B!A!B!]-!|q\x1b(B", "\uff5e\u2225\uff0d\u2460\u2170"),
        (b"ISO 2022 IR 87", b"\x1b$B;3\nED", "山\nED"),
        (b"ISO 2022 IR 87", b"\x1b$B;3 ED!", "山田"),
        (b"ISO 2022 IR 87", b"a\x1b$)Ab\x1b$)Cc\x1b.Ad\x0e\x0f\x80\xffe", "abcde"),
        (b"ISO 2022 IR 100\\ISO 2022 IR 144", b"a\x0e\x0f\x1bn\x1b~\x1b-L\x1b$)Cb\x1bx", "ab\x1bx"),
        (b"ISO_IR 100", b"a\x0e\x1b-Lb", "a\x0e\x1b-Lb"),
        (b"ISO 2022 IR 6\\ISO 2022 IR 87", b"a\x1b$B;3\x1b(Bb", "a$B;3(Bb"),
    ],
)
def test_decoders(specific: bytes, raw: bytes, expected: str | None) -> None:
    if expected is None:
        expected = "\ufe10\ufe12\ufe11\u1e3f\u9fb4\ue7c7\ue81e\ue78d\ue78f\ue78e"
    assert decoded(specific, raw) == expected


def test_katakana_and_backslashes() -> None:
    katakana = b"\xd4\xcf\\\xc0\xde~x"
    assert decoded(b"ISO_IR 13", katakana) == "ﾔﾏ\\ﾀﾞ‾x"
    assert decoded(b"ISO_IR 13", katakana, "LT") == "ﾔﾏ¥ﾀﾞ‾x"
    assert decoded(b"ISO_IR 13", katakana, split=False) == "ﾔﾏ¥ﾀﾞ‾x"
    assert decoded(b"ISO_IR 13", b"\x95\x5c", "LT") == "表"
