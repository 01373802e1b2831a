"""The head of a file gives the rows of the whole, or is not cut at all."""

from __future__ import annotations

from pathlib import Path

import pydicom.data
import pytest

from pgorthanc_cli import dicom
from tests.support.dicomfile import BIG_ENDIAN, JPEG, PIXELS, El, dicom_file

FOLDER = Path(str(pydicom.data.get_testdata_file("CT_small.dcm", download=False))).parent
OF_PIXEL_DATA = (14, 17)


def ends(data: bytes, offset: int) -> bool:
    return dicom.ends_with_pixel_data(lambda at, length: data[at : at + length], offset, len(data))


def rows(data: bytes) -> list[object]:
    """What a file decides, but for metadata about the pixel data itself."""
    return [
        level._replace(metadata={k: v for k, v in level.metadata.items() if k not in OF_PIXEL_DATA})
        for level in dicom.parse(data, dicom.Profile()).levels
    ]


def test_the_heads_of_real_files_give_the_same_rows() -> None:
    cut = whole = 0
    for path in sorted(FOLDER.glob("*.dcm")):
        data = path.read_bytes()
        try:
            offset = dicom.parse(data, dicom.Profile()).pixel_data_offset
        except dicom.Refused:
            continue
        if offset is None:
            continue
        if ends(data, offset):
            cut += 1
            assert rows(data[:offset]) == rows(data), path.name
        else:
            whole += 1
    # Native and compressed, little and big endian, implicit and explicit; some have a
    # trailing element.
    assert cut > 30
    assert whole > 0


@pytest.mark.parametrize(
    ("pixels", "syntax"),
    [
        (El(PIXELS, "OW", bytes(100)), "1.2.840.10008.1.2.1"),
        (El(PIXELS, "OW", bytes(100)), "1.2.840.10008.1.2"),
        (El(PIXELS, "OW", bytes(100)), BIG_ENDIAN),
        (El(PIXELS, "OB", (b"", bytes(20), bytes(30))), JPEG),
    ],
)
def test_what_follows_the_pixel_data_or_is_missing_of_it_is_noticed(pixels: El, syntax: str) -> None:
    data = dicom_file(pixels, syntax=syntax)
    offset = dicom.parse(data, dicom.Profile()).pixel_data_offset
    assert offset
    assert ends(data, offset)
    padded = dicom_file(pixels, El(0xFFFCFFFC, "OB", bytes(4)), syntax=syntax)
    assert not ends(padded, offset)
    for missing in (1, 9, 40):
        assert not ends(data[:-missing], offset)
    for wrong in (offset - 2, offset + 2, 0, len(data), len(data) + 10):
        assert not ends(data, wrong)


def test_the_pixel_data_of_an_icon_is_not_that_of_the_image() -> None:
    icon = El(0x00880200, "SQ", [[El(PIXELS, "OB", bytes(10))]])
    data = dicom_file(icon, El(PIXELS, "OW", bytes(100)))
    inner = data.index(b"\xe0\x7f\x10\0OB")
    assert not ends(data, inner)


def test_probable_ids_of_real_files_are_their_ids() -> None:
    known = 0
    for path in sorted(FOLDER.glob("*.dcm")):
        data = path.read_bytes()
        ids = dicom.probable_ids(data)
        try:
            levels = dicom.parse(data, dicom.Profile()).levels
        except dicom.Refused:
            continue
        assert ids in (None, (levels[0].public_id, levels[3].public_id)), path
        known += ids is not None
    assert known > 40


@pytest.mark.parametrize(
    "patient", [None, b"", b"P1 ", b"P1\0", b" P1", b"P\\1", b"M\xfcller", b"P" * 70, b"A  B"]
)
def test_probable_ids_of_odd_identifiers(patient: bytes | None) -> None:
    given = [] if patient is None else [El(0x00100020, "LO", patient)]
    data = dicom_file(*given, without=() if given else (0x00100020,))
    levels = dicom.parse(data, dicom.Profile()).levels
    ids = dicom.probable_ids(data)
    assert ids in (None, (levels[0].public_id, levels[3].public_id))
    assert ids or patient not in (None, b"", b"P1 ")
