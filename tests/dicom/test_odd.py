"""Odd files: those that Orthanc takes are taken, with its rows; the others are refused.

What is expected was measured; `interop/test_odd_files.py` compares with the real Orthanc again.
"""

from __future__ import annotations

import json

import pytest

from pgorthanc_cli.dicom import Profile, Refused, parse
from tests.support.dicomfile import IMPLICIT, header
from tests.support.oddfiles import REQUEST, SIGN, Maker, Odd, all_of_them, mark

NOW, OLD = Profile((1, 13, 0)), Profile((1, 10, 1))
ODD = all_of_them()


def taken(odd: Odd, profile: Profile) -> bool:
    try:
        parse(odd.content, profile)
    except Refused:
        return False
    return True


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_what_is_taken(odd: Odd) -> None:
    assert (taken(odd, NOW), taken(odd, OLD)) == (odd.taken, odd.by_old)


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd.rows], ids=lambda odd: odd.name)
def test_rows(odd: Odd) -> None:
    levels = parse(odd.content, NOW).levels
    rows: dict[int, str] = {}
    for level in levels:
        rows |= {group << 16 | element: text for group, element, text in level.main_dicom_tags}
    rows |= levels[3].metadata
    assert {key: rows.get(key) for key in odd.rows} == odd.rows


@pytest.mark.parametrize(
    ("sign", "tag", "expected"),
    [
        (b"\0\0", 0x00280106, "65534"),
        (b"\1\0", 0x00280106, "-2"),
        (b"\2\0", 0x00280106, "65534"),
        (b"", 0x00280106, None),
        (None, 0x00280106, None),
        (b"\1\0", 0x00281101, None),  # DCMTK never decides this one
    ],
)
def test_us_or_ss_follows_the_pixel_representation_of_its_own_item(
    sign: bytes | None, tag: int, expected: str | None
) -> None:
    """That of the data set outside, which is 1, says nothing."""
    outside = header(SIGN, "", 2, IMPLICIT) + b"\1\0"
    before = b"" if sign is None else header(SIGN, "", len(sign), IMPLICIT) + sign
    item = before + header(tag, "", 2, IMPLICIT) + b"\xfe\xff"
    sequence = header(REQUEST, "", 8 + len(item), IMPLICIT) + mark(0xFFFEE000, len(item)) + item
    series = parse(Maker().file(end=outside + sequence, syntax=IMPLICIT), NOW).levels[2]
    (described,) = json.loads(series.metadata[16])["Sequences"]["0040,0275"]["Value"]
    assert described[f"{tag >> 16:04x},{tag & 0xFFFF:04x}"]["Value"] == expected


def test_1_10_1_knows_fewer_transfer_syntaxes() -> None:
    (odd,) = [odd for odd in ODD if odd.name == "1.2.840.10008.1.2.4.201, fragments"]
    new, old = (parse(odd.content, profile).levels[3].metadata for profile in (NOW, OLD))
    assert new[9] == "1.2.840.10008.1.2.4.201"
    assert 14 in new
    assert not {9, 14} & set(old)
