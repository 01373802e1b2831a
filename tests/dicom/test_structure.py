"""Which files are accepted: the structure, byte by byte, as DCMTK accepts it."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from pgorthanc_cli.dicom import Profile, Refused, file, parse
from tests.support.dicomfile import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    PIXELS,
    UNDEFINED,
    El,
    dicom_file,
    elements,
    encode,
    header,
    meta,
)

NOW = Profile()
SEQUENCE = 0x00081110
ITEM = [El(0x00081150, "UI", "1.2.3"), El(0x00081155, "UI", "1.2.4")]
WITH_SEQUENCE = El(SEQUENCE, "SQ", [ITEM], length=UNDEFINED, item_length=UNDEFINED)


def nested(depth: int, vr: str = "SQ") -> El:
    """Sequences within sequences, of undefined length."""
    element = El(SEQUENCE, vr, [[]], length=UNDEFINED, item_length=UNDEFINED)
    for _ in range(depth - 1):
        element = El(SEQUENCE, vr, [[element]], length=UNDEFINED, item_length=UNDEFINED)
    return element


ACCEPTED = {
    "explicit": dicom_file(),
    "implicit": dicom_file(syntax=IMPLICIT),
    "big endian": dicom_file(syntax=BIG_ENDIAN),
    "deflated": dicom_file(syntax=DEFLATED),
    "something behind the deflated stream": dicom_file(syntax=DEFLATED) + b"checksum",
    "fragments": dicom_file(El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG),
    "fragments in a native syntax": dicom_file(El(PIXELS, "OB", (b"", b"1234"))),
    "native icon in an encapsulated syntax": dicom_file(
        El(PIXELS, "OB", (b"", b"1234")), El(0x00880200, "SQ", [[El(PIXELS, "OB", b"1234")]]), syntax=JPEG
    ),
    "any preamble": dicom_file(preamble=b"II*\0" + bytes(124) + b"DICM"),
    "no preamble": dicom_file(preamble=b""),
    "no preamble, no meta": dicom_file(preamble=b"", head=b""),
    "no meta, implicit": dicom_file(preamble=b"", head=b"", syntax=IMPLICIT),
    "no meta, big endian": dicom_file(preamble=b"", head=b"", syntax=BIG_ENDIAN),
    "preamble, no meta": dicom_file(head=b""),
    "no transfer syntax": dicom_file(head=meta(None)),
    "unknown transfer syntax, explicit": dicom_file(head=meta("1.2.3.4")),
    "unknown transfer syntax, implicit": dicom_file(head=meta("1.2.3.4"), syntax=IMPLICIT),
    "GE transfer syntax": dicom_file(head=meta("1.2.840.113619.5.2"), syntax=IMPLICIT),
    "space behind the transfer syntax": dicom_file(head=meta(EXPLICIT + " ")),
    "meta length too short": dicom_file(head=meta(group_length=20)),
    "meta length 0": dicom_file(head=meta(group_length=0)),
    "no meta length": dicom_file(head=meta(group_length=-1)),
    "unsorted": meta() + encode(list(reversed(elements()))),
    "odd length": dicom_file(El(0x00081030, "LO", b"odd")),
    "group lengths": dicom_file(El(0x00080000, "UL", b"\1\0\0\0")),
    "group 0002 in the data set": dicom_file(
        El(0x00020010, "UI", IMPLICIT), tail=encode([El(0x00020002, "UI", "1")])
    ),
    "group 0000": dicom_file(El(0x00000100, "US", b"\1\0")),
    "padding element": dicom_file(El(0xFFFCFFFC, "OB", bytes(10))),
    "zeros behind an implicit data set": dicom_file(syntax=IMPLICIT, tail=bytes(64)),
    "undefined lengths": dicom_file(WITH_SEQUENCE),
    "defined lengths": dicom_file(El(SEQUENCE, "SQ", [ITEM, ITEM])),
    "sequence length too short": dicom_file(El(SEQUENCE, "SQ", [ITEM], length=10)),
    "empty sequence": dicom_file(El(SEQUENCE, "SQ", [], length=UNDEFINED)),
    "item cut off by the end of the file": dicom_file(
        tail=header(0x7FE10001, "SQ", 8) + header(0xFFFEE000, "", 100, IMPLICIT)
    ),
    "UN of undefined length": dicom_file(
        El(0x00091001, "UN", [ITEM], length=UNDEFINED, item_length=UNDEFINED)
    ),
    "UN of defined length": dicom_file(El(0x00091001, "UN", b"anything")),
    "63 nested sequences": dicom_file(nested(63)),
    "unknown VR, short": dicom_file(El(0x00081030, "??", b"text")),
    "unknown VR, two spaces": dicom_file(El(0x00081030, "  ", b"text")),
    "unknown VR, lower case": dicom_file(El(0x00081030, "lo", b"text")),
    "unknown VR, long": dicom_file(tail=b"\1\x80\1\0ZZ\0\0\4\0\0\0text"),
    "unknown VR ox": dicom_file(tail=b"\1\x80\1\0ox\0\0\4\0\0\0text"),
}

BAD = {
    "empty": (b"", "empty"),
    "two bytes": (b"\0\1", "not a DICOM file"),
    "text": (b"This is not a DICOM file.\n" * 20, "not a DICOM file"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(300) + b"\xff\xd9", "not a DICOM file"),
    "PDF": (b"%PDF-1.4\n" + b"x" * 500, "not a DICOM file"),
    "JSON": (b'{"a": 1}', "not a DICOM file"),
    "FF": (b"\xff" * 500, "not a DICOM file"),
    "DICM at the start": (dicom_file(preamble=b"DICM"), "not a DICOM file"),
    "magic in lower case": (dicom_file(preamble=bytes(128) + b"dicm"), "not a DICOM file"),
    "preamble only": (bytes(128) + b"DICM", "the file ends after its DICOM header"),
    "wrong transfer syntax": (dicom_file(head=meta(IMPLICIT)), "of which"),
    "unknown VR in the meta group": (dicom_file(head=b"\2\0\1\0??\2\0\0\1" + meta()), "file meta"),
    "one byte too many": (dicom_file(tail=b"\0"), "from byte 360 there is no complete element"),
    "zeros behind an explicit data set": (dicom_file(tail=bytes(64)), "no value representation"),
    "garbage": (dicom_file(tail=b"garbage!" * 8), "of which"),
    "second file": (dicom_file(tail=dicom_file()), "no value representation"),
    "native pixel data": (dicom_file(syntax=JPEG), "native pixel data"),
    "value too short": (dicom_file(El(0x00200013, "IS", b"1 ", length=500)), "of which"),
    "no sequence delimiter": (
        dicom_file(WITH_SEQUENCE, without=(PIXELS,))[:-8],
        "there is no complete element",
    ),
    "sequence length too long": (dicom_file(El(SEQUENCE, "SQ", [ITEM], length=60)), "inside a sequence"),
    "item length too short": (dicom_file(El(SEQUENCE, "SQ", [ITEM], item_length=4)), "no item but"),
    "item length too long": (dicom_file(El(SEQUENCE, "SQ", [ITEM, ITEM], item_length=40)), "out of place"),
    "item at the top": (dicom_file(tail=b"\xfe\xff\x00\xe0\0\0\0\0"), "out of place"),
    "text of undefined length": (
        dicom_file(El(0x00081030, "UT", b"text", length=UNDEFINED)),
        "undefined length",
    ),
    "fragment of undefined length": (
        dicom_file(tail=header(0x7FE10010, "OB", UNDEFINED) + header(0xFFFEE000, "", 4, IMPLICIT)),
        "undefined length",
    ),
    "fragment cut off": (dicom_file(El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG)[:-10], "fragment"),
    "no fragments delimiter": (
        dicom_file(El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG)[:-8],
        "it is cut off",
    ),
    "64 nested sequences": (dicom_file(nested(64)), "too many nested sequences"),
    "64 nested UN": (dicom_file(nested(64, "UN")), "too many nested sequences"),
    "10000 nested sequences": (
        dicom_file(
            tail=(header(SEQUENCE, "SQ", UNDEFINED) + header(0xFFFEE000, "", UNDEFINED, IMPLICIT)) * 10000
        ),
        "too many nested sequences",
    ),
    "undefined UN in big endian": (
        dicom_file(
            tail=header(0x7FE10001, "UN", UNDEFINED, BIG_ENDIAN) + struct.pack(">HHI", 0xFFFE, 0xE0DD, 0),
            syntax=BIG_ENDIAN,
        ),
        "inside a sequence",
    ),
    "deflated, damaged": (bytes(128) + b"DICM" + meta(DEFLATED) + b"\xff" * 30, "damaged"),
    "deflated, cut off": (dicom_file(syntax=DEFLATED)[:-4], "cut off"),
    **{
        f"VR {letters!r}": (dicom_file(tail=b"\1\x80\1\0" + letters + b"\0\0"), "no value representation")
        for letters in (b"na", b"pi", b"A\0", b"\x80A", b"A\x1f")
    },
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(data: bytes) -> None:
    assert parse(data, NOW).levels[0].main_dicom_tags == ((0x10, 0x20, "P1"),)


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD.keys())
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        parse(data, NOW)
    assert not refused.value.missing_tag


@pytest.mark.parametrize(
    "data", [bytes(2000), dicom_file(head=meta(group_length=400))], ids=["zeros", "meta too long"]
)
def test_no_identifiers_found(data: bytes) -> None:
    with pytest.raises(Refused, match="missing") as refused:
        parse(data, NOW)
    assert refused.value.missing_tag


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_cut_off_anywhere(syntax: str) -> None:
    """A file is refused wherever it ends but between two elements of the top level.

    And where the sequence starts: DCMTK takes one of which nothing is there.
    """
    data, listed = dicom_file(WITH_SEQUENCE, syntax=syntax), elements(WITH_SEQUENCE)
    between = {len(data) - len(encode(listed[-count:], syntax)) for count in range(1, len(listed) + 1)}
    sequence = next(n for n, element in enumerate(listed) if element.tag == SEQUENCE)
    between.add(len(data) - len(encode(listed[sequence:], syntax)) + (8 if syntax == IMPLICIT else 12))
    whole = set()
    for end in range(len(data) - len(encode(listed, syntax)), len(data)):
        try:
            file.read_file(data[:end], range(0))
            whole.add(end)
        except Refused:
            pass
    assert whole == between


@pytest.mark.parametrize(("depth", "count"), [(40, 0), (41, 1)])
def test_deep_nesting_is_warned_of(depth: int, count: int) -> None:
    warnings = parse(dicom_file(nested(depth)), NOW).warnings
    assert len(warnings) == count
    assert all("41 nested sequences" in warning for warning in warnings)


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    padding = El(0xFFFCFFFC, "OB", bytes(1 << 20))
    bomb = dicom_file(padding, syntax=DEFLATED)
    assert len(bomb) < 1 << 12
    assert parse(bomb, NOW)
    monkeypatch.setattr(file, "MAX_INFLATED", 1 << 20)
    with pytest.raises(Refused, match="more than 1 MiB"):
        parse(bomb, NOW)


def test_pixel_data_is_not_read() -> None:
    """A view whose pixel data would be copied needs as much memory again; the walk looks at headers only."""
    data = dicom_file(El(PIXELS, "OB", bytes(32 << 20)), El(0x00420011, "OB", bytes(8 << 20)))
    parse(data, NOW)
    tracemalloc.start()
    parse(data, NOW)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_too_many_elements_in_a_stored_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgorthanc_cli.dicom.structure.MAX_REMEMBERED", 3)
    assert parse(dicom_file(El(SEQUENCE, "SQ", [ITEM, ITEM])), NOW)
    with pytest.raises(Refused, match="more than 3 elements"):
        parse(dicom_file(El(0x00400275, "SQ", [ITEM, ITEM])), NOW)
