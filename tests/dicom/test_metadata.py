"""Metadata that the file decides: sequences, series size, index, SOP class, pixel data, transfer syntax."""

from __future__ import annotations

import json

import pytest

from pgorthanc_cli.dicom import Profile, parse
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
    meta,
    read,
)

NOW = Profile()
CHARSET, NUMBER = 0x00080005, 0x00200013

ITEM = [
    El(0x00080000, "UL", b"\x0c\0\0\0"),
    El(CHARSET, "CS", "ISO_IR 192"),
    El(0x00081030, "LO", b"d" * 258),
    El(0x00090010, "LO", "ACME"),
    El(0x00091001, "UN", b"xx"),
    El(0x00104000, "LT", b'a"\\/\t\x01\x7f\xe9'),
    El(0x00280010, "US", b"\x0c\0"),
    El(0x00400008, "SQ", [[El(0x00080100, "SH", "C")], []]),
    El(0x00540081, "US", b""),
    El(0x00186030, "UL", b"\1\0\0\0"),
    El(0x00180040, "IS", "25"),
    El(0x00201070, "IS", "1"),
    El(0x00080008, "AT", b"\x10\0\x20\0"),
]


def test_sequences_as_json() -> None:
    metadata = read(El(0x00400275, "SQ", [ITEM])).levels[2].metadata
    document = json.loads(metadata[16])
    assert (list(document), document["Version"]) == (["Sequences", "Version"], 1)
    sequence = document["Sequences"]["0040,0275"]
    assert (sequence["Name"], sequence["Type"]) == ("RequestAttributesSequence", "Sequence")
    members = {tag: (e["Name"], e["Type"], e["Value"]) for tag, e in sequence["Value"][0].items()}
    assert members["0008,0000"] == ("GenericGroupLength", "String", "12")
    assert members["0008,1030"] == ("StudyDescription", "TooLong", None)
    assert members["0009,0010"] == ("PrivateCreator", "String", "ACME")
    assert members["0009,1001"] == ("Unknown Tag & Data", "Null", None)
    assert members["0020,1070"] == ("RETIRED_OtherStudyNumbers", "String", "1")
    assert members["0040,0008"][2][0]["0008,0100"] == {"Name": "CodeValue", "Type": "String", "Value": "C"}
    assert members["0054,0081"] == ("NumberOfSlices", "Null", None)
    assert members["0010,4000"][2] == 'a"\\/\t\x01\x7fé'
    assert r'"a\"\\/\t\u0001' + "\x7f" + r'\u00e9"' in metadata[16]
    assert list(sequence["Value"][0]) == sorted(sequence["Value"][0])


def test_text_that_looks_like_an_escape_stays() -> None:
    value = read(El(0x00400275, "SQ", [[El(0x00104000, "LT", b"\\u007f\x7f ")]])).levels[2].metadata[16]
    assert r'"\\u007f' + '\x7f"' in value


def test_empty_sequence_and_other_versions() -> None:
    empty, sequence = El(0x00400275, "SQ", []), El(0x00081110, "SQ", [])
    extra = {"Study": ["ReferencedStudySequence"]}
    assert json.loads(read(empty).levels[2].metadata[16])["Sequences"]["0040,0275"]["Value"] == []
    assert 16 not in read(empty, profile=Profile((1, 12, 4))).levels[2].metadata
    assert 16 in read(sequence, profile=Profile((1, 12, 4), extra_main_dicom_tags=extra)).levels[1].metadata
    assert (
        16 not in read(sequence, profile=Profile((1, 11, 0), extra_main_dicom_tags=extra)).levels[1].metadata
    )
    assert 16 not in read(El(0x00400275, "LO", "text")).levels[2].metadata
    assert 16 in read(El(0x0008103E, "SQ", [])).levels[2].metadata


def test_undefined_lengths_and_unknown_vr_are_sequences_too() -> None:
    item = [El(0x00400007, "LO", "x ")]
    plain = read(El(0x00400275, "SQ", [item])).levels[2].metadata[16]
    for vr in ("SQ", "UN"):
        element = El(0x00400275, vr, [item], length=UNDEFINED, item_length=UNDEFINED)
        assert read(element).levels[2].metadata[16] == plain
    assert read(El(0x00400275, "SQ", [item]), syntax=IMPLICIT).levels[2].metadata[16] == plain


IMAGES, POSITIONS, SLICES, TIME_SLICES, CARDIAC = 0x00201002, 0x00200105, 0x00540081, 0x00540101, 0x00181090


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({IMAGES: "30", POSITIONS: "2 "}, 60),
        ({IMAGES: " 30", POSITIONS: "2 "}, None),
        ({IMAGES: "", POSITIONS: "2", CARDIAC: "5"}, None),
        ({IMAGES: "0", POSITIONS: "2"}, None),
        ({IMAGES: "-3", POSITIONS: "-2"}, 6),
        ({IMAGES: "+3", POSITIONS: "02"}, 6),
        ({IMAGES: "3.0", POSITIONS: "2"}, None),
        ({IMAGES: "47\\48", POSITIONS: "2"}, None),
        ({IMAGES: "9223372036854775808", POSITIONS: "1"}, None),
        ({IMAGES: "9223372036854775807", POSITIONS: "3"}, 9223372036854775805),
        ({IMAGES: "9223372036854775807", POSITIONS: "2"}, None),
        ({IMAGES: "30"}, None),
        ({IMAGES: "30", CARDIAC: "20"}, 20),
        ({SLICES: "47", TIME_SLICES: "2"}, 94),
        ({IMAGES: "30", POSITIONS: "2", SLICES: "47", TIME_SLICES: "2", CARDIAC: "20"}, 60),
        ({}, None),
    ],
)
def test_expected_number_of_instances(texts: dict[int, str], expected: int | None) -> None:
    instance = read(*(El(tag, "IS", text) for tag, text in texts.items()))
    assert instance.expected_instances == expected
    assert instance.levels[2].metadata.get(4) == (None if expected is None else str(expected))


@pytest.mark.parametrize(
    ("number", "image", "expected"),
    [
        (El(NUMBER, "IS", " 12 "), False, "12"),
        (El(NUMBER, "LO", b"\t5\n "), False, "5"),
        (El(NUMBER, "IS", "abc"), False, "abc"),
        (El(NUMBER, "IS", "1\\2"), True, "1\\2"),
        (El(NUMBER, "IS", b""), True, ""),
        (El(NUMBER, "OB", b"\1\2"), True, None),
        (None, True, "33"),
        (None, False, None),
    ],
)
def test_index_in_series(number: El | None, image: bool, expected: str | None) -> None:
    extra = [number] if number else []
    instance = read(*extra, *([El(0x00541330, "US", b"\x21\0")] if image else []))
    assert instance.index_in_series == expected
    assert instance.levels[3].metadata.get(1) == expected


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (El(0x00080016, "UI", " 1.2.3 "), "1.2.3"),
        (El(0x00080016, "UI", b""), ""),
        (El(0x00080016, "OB", b"12"), None),
    ],
)
def test_sop_class(element: El, expected: str | None) -> None:
    assert read(element).levels[3].metadata.get(10) == expected


SIXTEEN = El(0x00280100, "US", b"\x10\0")


@pytest.mark.parametrize(
    ("syntax", "elements", "expected"),
    [
        (EXPLICIT, [El(PIXELS, "OB", b"1234")], None),
        (EXPLICIT, [El(PIXELS, "OB", b"1234"), SIXTEEN], "OB"),
        (EXPLICIT, [El(PIXELS, "OW", b"1234")], "OW"),
        (EXPLICIT, [El(PIXELS, "OW", b"1234"), SIXTEEN], None),
        (EXPLICIT, [El(PIXELS, "UN", b"1234")], "UN"),
        (EXPLICIT, [El(PIXELS, "OW", b"1234"), El(0x00280100, "LO", " 16 ")], None),
        (EXPLICIT, [El(PIXELS, "OW", b"1234"), El(0x00280100, "LO", "16\\16")], "OW"),
        (BIG_ENDIAN, [El(PIXELS, "OW", b"1234"), El(0x00280100, "US", b"\0\x10")], None),
        (IMPLICIT, [El(PIXELS, "OB", b"1234")], None),
        (JPEG, [El(PIXELS, "OW", (b"", b"1234"))], None),
    ],
)
def test_pixel_data_vr(syntax: str, elements: list[El], expected: str | None) -> None:
    instance = read(*elements, syntax=syntax)
    assert instance.pixel_data_offset
    assert instance.levels[3].metadata.get(17) == expected
    assert 17 not in read(*elements, syntax=syntax, profile=Profile((1, 12, 0))).levels[3].metadata


ICON = [El(0x00280010, "US", b"\2\0"), El(PIXELS, "OB", b"1234")]


@pytest.mark.parametrize(
    "icon",
    [
        El(0x00880200, "SQ", [ICON]),
        El(0x00880200, "SQ", [ICON], length=UNDEFINED),
        El(0x00880200, "SQ", [ICON], length=UNDEFINED, item_length=UNDEFINED),
    ],
)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_the_offset_is_that_of_the_image_not_of_its_icon(icon: El, syntax: str) -> None:
    data = dicom_file(icon, syntax=syntax)
    offset = parse(data, NOW).pixel_data_offset
    assert offset == data.rindex(b"\x7f\xe0\0\x10" if syntax == BIG_ENDIAN else b"\xe0\x7f\x10\0")
    assert parse(data, NOW).levels[3].metadata[14] == str(offset)
    assert parse(dicom_file(icon, syntax=syntax, without=(PIXELS,)), NOW).pixel_data_offset is None


@pytest.mark.parametrize(
    "data",
    [
        dicom_file(without=(PIXELS,)),
        dicom_file(El(0x7FE00008, "OF", bytes(8)), without=(PIXELS,)),
        dicom_file(syntax=DEFLATED),
        dicom_file(preamble=b""),
        dicom_file(head=meta(group_length=-1)),
        dicom_file(head=meta(group_length=20)),
        dicom_file(head=meta("1.2.3.4")),
        dicom_file(
            El(0x00091001, "UN", [[El(0x00080100, "SH", "C ")]], length=UNDEFINED, item_length=UNDEFINED)
        ),
    ],
)
def test_no_pixel_data_offset(data: bytes) -> None:
    instance = parse(data, NOW)
    assert instance.pixel_data_offset is None
    assert not {14, 17} & instance.levels[3].metadata.keys()


@pytest.mark.parametrize("tail", [b"", El(0xFFFCFFFC, "OB", bytes(10))])
def test_empty_pixel_data_has_an_offset(tail: bytes | El) -> None:
    extra = [tail] if isinstance(tail, El) else []
    assert read(El(PIXELS, "OB", b""), *extra).pixel_data_offset is not None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dicom_file(), EXPLICIT),
        (dicom_file(syntax=IMPLICIT), IMPLICIT),
        (dicom_file(syntax=DEFLATED), DEFLATED),
        (dicom_file(head=meta(EXPLICIT + " ")), EXPLICIT),
        (dicom_file(head=meta("1.2.3.4")), None),
        (dicom_file(head=meta(None)), None),
        (dicom_file(head=meta(group_length=0)), None),
        (dicom_file(head=meta(group_length=-1)), EXPLICIT),
        (dicom_file(syntax=BIG_ENDIAN, preamble=b"", head=b""), BIG_ENDIAN),
        (dicom_file(syntax=IMPLICIT, preamble=b"", head=b""), IMPLICIT),
        (dicom_file(syntax=IMPLICIT, head=meta("1.2.840.113619.5.2")), None),
    ],
)
def test_transfer_syntax(data: bytes, expected: str | None) -> None:
    assert parse(data, NOW).levels[3].metadata.get(9) == expected
