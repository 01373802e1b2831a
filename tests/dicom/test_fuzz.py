"""Whatever the bytes: an Instance or a Refused, soon. And on good files, what pydicom sees."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError

from pgorthanc_cli.dicom import Profile, Refused, parse
from pgorthanc_cli.dicom.file import read_file
from pgorthanc_cli.dicom.structure import EVERYTHING, Element
from tests.support.dicomfile import BIG_ENDIAN, DEFLATED, IMPLICIT, JPEG, PIXELS, UNDEFINED, El, dicom_file

REAL = sorted(p for p in Path(pydicom.data.__file__).parent.rglob("*") if p.is_file() and p.suffix != ".py")
SMALL = [p for p in REAL if p.stat().st_size < 20_000]
ITEM = [El(0x00080100, "SH", "C"), El(0x00080104, "LO", "Meaning")]
SEQUENCE = El(0x00400275, "SQ", [ITEM, ITEM], length=UNDEFINED, item_length=UNDEFINED)
SYNTHETIC = [
    dicom_file(SEQUENCE, syntax=syntax) for syntax in ("1.2.840.10008.1.2.1", IMPLICIT, BIG_ENDIAN, DEFLATED)
] + [
    dicom_file(SEQUENCE, El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG),
    dicom_file(SEQUENCE, preamble=b"", head=b""),
]
# Numbers, sequences, private and binary elements among the tags whose values are read.
PROFILE = Profile(
    extra_main_dicom_tags={
        "Study": ["ReferencedStudySequence", "0009,1001"],
        "Series": ["SmallestImagePixelValue", "FrameIncrementPointer", "DiffusionBValue", "PixelData"],
    }
)
PIECES = st.sampled_from(
    (
        *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"SQ", b"UN", b"OB", b"UT", b"AT", b"OF", b"FD"),
        *(b"DICM", b"ISO_IR 192", b"\x1b$B", b"\x08\0\x05\0", b"\xe0\x7f\x10\0", b"\2\0\0\0"),
        *(b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"),
    )
) | st.binary(max_size=12)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), PIECES, st.booleans()), min_size=1, max_size=8
)  # where, how much goes, what comes, near the start


def survives(data: bytes) -> None:
    try:
        instance = parse(data, PROFILE)
    except Refused:
        return
    for level in instance.levels:
        rows = (*level.main_dicom_tags, *level.identifiers)
        for text in (*(value for _, _, value in rows), *level.metadata.values()):
            assert "\0" not in text
            assert text.encode().decode() == text


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SYNTHETIC) | st.sampled_from(SMALL).map(Path.read_bytes), EDITS)
def test_damaged_files(data: bytes, edits: list[tuple[float, int, bytes, bool]]) -> None:
    for where, gone, piece, near in edits:
        pos = int(where * min(len(data), 600 if near else len(data)))
        data = data[:pos] + piece + data[pos + gone :]
    survives(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes(data: bytes, preamble: bool) -> None:
    survives(bytes(128) + b"DICM" + data if preamble else data)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"ISO_IR 192", b"ISO_IR 13", b"GB18030", b"ISO 2022 IR 149", b"\\ISO 2022 IR 87"]),
    st.binary(max_size=80) | st.lists(PIECES, max_size=12).map(b"".join),
)
def test_any_text(charset: bytes, raw: bytes) -> None:
    survives(dicom_file(El(0x00080005, "CS", charset), El(0x00100010, "PN", raw), El(0x00081030, "UN", raw)))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_the_elements_that_pydicom_sees(path: Path) -> None:
    """Tags, VRs and raw values of the top level, of every file of pydicom's own that is accepted."""
    data = path.read_bytes()
    try:
        actual = read_file(data, EVERYTHING)
    except Refused:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = pydicom.dcmread(path, force=True)
        except InvalidDicomError:
            return
    assert sorted(actual.elements) == sorted(expected.keys())
    for tag, element in actual.elements.items():
        same(element, bytes(actual.data), expected.get_item(tag))


def same(element: Element, data: bytes, expected: object) -> None:
    if element.items is not None or not isinstance(expected, RawDataElement):  # pydicom has read the charset
        return
    assert expected.VR in (None, element.vr)
    if element.length != UNDEFINED:
        assert data[element.start : element.start + element.length] == (expected.value or b"")
