"""One DICOM file -> rows: identifiers, values, tags, metadata. Expected values come from the real Orthanc."""

from __future__ import annotations

import mmap
import pickle
import struct
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import pytest

from pgorthanc_cli.dicom import Instance, Profile, Refused, check_profile, parse
from pgorthanc_cli.errors import UsageError
from tests.support.dicomfile import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, El, dicom_file, encode, read

NOW = Profile()
OLD = Profile((1, 10, 1))
PATIENT_ID, PATIENT_NAME = 0x00100020, 0x00100010
STUDY_UID, SERIES_UID, SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
DESCRIPTION, COMMENTS = 0x00081030, 0x00204000


def row(instance: Instance, tag: int) -> str | None:
    """The value of a main DICOM tag at the lowest level that has it."""
    rows = {(g << 16 | e): v for level in instance.levels for g, e, v in level.main_dicom_tags}
    return rows.get(tag)


def identifier(instance: Instance, tag: int) -> str | None:
    return {(g << 16 | e): v for level in instance.levels for g, e, v in level.identifiers}.get(tag)


def public_id(*identifiers: str) -> str:
    digest = sha1("|".join(identifiers).encode(), usedforsecurity=False).hexdigest()
    return "-".join(digest[n : n + 8] for n in range(0, 40, 8))


def test_the_four_public_ids() -> None:
    ids = ("P1", "1.2.3.1", "1.2.3.1.1", "1.2.3.1.1.1")
    assert [level.public_id for level in read().levels] == [public_id(*ids[:n]) for n in range(1, 5)]


@pytest.mark.parametrize("value", [None, b"", b"    ", b"\0\0"])
def test_no_patient_id_is_the_empty_one(value: bytes | None) -> None:
    instance = read(without=(PATIENT_ID,)) if value is None else read(El(PATIENT_ID, "LO", value))
    assert instance.levels[0].public_id == "da39a3ee-5e6b4b0d-3255bfef-95601890-afd80709"


@pytest.mark.parametrize(
    ("vr", "value", "hashed"),
    [
        ("LO", b"ABC   ", "ABC"),
        ("LO", b"  ABC ", "  ABC"),
        ("LO", b"ABC\0", "ABC"),
        ("LO", b"AB\0CDE", "AB"),
        ("LO", b"AB\\CD ", "AB\\CD"),
        ("LO", b"P\xe9", "Pé"),
        ("US", b"\x4d\0", "77"),
        ("UN", b"UNPID ", "UNPID "),
        ("UN", b"A\0B\0", "A\0B"),
    ],
)
def test_patient_id_as_hashed(vr: str, value: bytes, hashed: str) -> None:
    assert read(El(PATIENT_ID, vr, value)).levels[0].public_id == public_id(hashed)


def test_a_row_ends_at_the_first_nul_but_an_identifier_does_not() -> None:
    instance = read(El(PATIENT_ID, "UN", b"A\0B\0"))
    assert (row(instance, PATIENT_ID), identifier(instance, PATIENT_ID)) == ("A", "AB")


@pytest.mark.parametrize("value", [b" 1.2. 3", b"1.2.3\0\0", b"1.2.3\n", b"1.2.3\0 ", b"1.2.3\0xyz"])
def test_uid_without_white_space(value: bytes) -> None:
    assert row(read(El(STUDY_UID, "UI", value)), STUDY_UID) == "1.2.3"


@pytest.mark.parametrize("tag", [STUDY_UID, SERIES_UID, SOP_UID])
def test_absent_uid_is_a_missing_tag(tag: int) -> None:
    with pytest.raises(Refused, match="missing") as refused:
        read(without=(tag,))
    assert refused.value.missing_tag
    copy = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 - our own
    assert (copy.reason, copy.missing_tag) == (refused.value.reason, True)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (El(STUDY_UID, "UI", b""), "StudyInstanceUID empty"),
        (El(SOP_UID, "UI", b"  "), "SOPInstanceUID empty"),
        (El(PATIENT_ID, "LO", b"w" * 258), "PatientID has no usable text"),
        (El(PATIENT_ID, "LO", b"\xe9" * 200), "PatientID has no usable text"),
        (El(PATIENT_ID, "OB", b"OBPID "), "PatientID has no usable text"),
        (El(PATIENT_ID, "SQ", [[]]), "PatientID has no usable text"),
    ],
)
def test_unusable_identifier(element: El, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        read(element)
    assert not refused.value.missing_tag
    assert "w" * 20 not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Müller^André", "MLLER^ANDR"),
        ("100% _x_", "100   X"),
        ("a\tb\nc", "ABC"),
        ("  ABC", "ABC"),
        ("%", ""),
        ("1.2.3.ABC.x", "1.2.3.ABC.X"),
    ],
)
def test_identifier_is_normalised(text: str, expected: str) -> None:
    assert identifier(read(El(DESCRIPTION, "LO", text)), DESCRIPTION) == expected


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("LO", b"  two  ", "  two"),
        ("LO", b"a\0b\0", "a"),
        ("LO", b"A \0B", "A "),
        ("LO", b"x\x01\x1f\x7fy", "x\x01\x1f\x7fy"),
        ("DS", b" 1.5 \\ -2 ", " 1.5 \\ -2"),
        ("LT", b"txt \0\0", "txt"),
        ("LO", b"", ""),
        ("LO", b"d" * 256, "d" * 256),
        ("LO", b"d" * 257, None),
        ("UT", b"d" * 70000, None),
        ("UT", b"d" + b" " * 70001, "d"),
        ("US", struct.pack("<3H", 1, 2, 3), "1\\2\\3"),
        ("SS", struct.pack("<h", -5), "-5"),
        ("US", b"\1", "1"),
        ("UL", b"\1", None),
        ("UL", b"\1\2\3\4\5\6", "67305985"),
        ("US", b"", None),
        ("US", struct.pack("<200H", *range(1000, 1200)), "\\".join(map(str, range(1000, 1200)))),
        ("UV", struct.pack("<Q", 1 << 63), "9223372036854775808"),
        ("FL", struct.pack("<2f", 0.1, -2.5), "0.10000000149011612\\-2.5"),
        ("FD", struct.pack("<4d", 0.1, 1e30, -0.0, float("inf")), "0.10000000000000001\\1e+30\\-0\\inf"),
        ("AT", struct.pack("<4H", 0x10, 0x20, 0x7FE0, 0x10), "0010,0020\\7fe0,0010"),
        ("AT", b"", ""),
        ("OF", struct.pack("<2f", 0.1, 2.0), "0.100000001\\2"),
        ("OL", b"", ""),
        ("OV", struct.pack("<300Q", *range(300)), None),
        ("OB", b"ab", None),
        ("UN", b"un text\0", "un text"),
        ("UN", b"kept  ", "kept  "),
        ("??", b"odd", None),
    ],
)
def test_value_by_vr(vr: str, value: bytes, expected: str | None) -> None:
    assert row(read(El(DESCRIPTION, vr, value)), DESCRIPTION) == expected


def test_unknown_vr_of_a_number_has_no_row() -> None:
    assert row(read(El(0x00540081, "UN", b"\x10\0")), 0x00540081) is None


def test_more_numbers_than_the_index_holds() -> None:
    with pytest.raises(Refused, match="too many for the index"):
        read(El(0x00540081, "UN", b""), El(DESCRIPTION, "SV", bytes((16 << 20) + 8)))


@pytest.mark.parametrize(("sign", "expected"), [(None, None), (0, "65529"), (1, "-7")])
def test_us_or_ss_of_implicit_files_follows_the_pixel_representation(
    sign: int | None, expected: str | None
) -> None:
    profile = Profile(extra_main_dicom_tags={"Instance": ["SmallestImagePixelValue"]})
    extra = [] if sign is None else [El(0x00280103, "US", struct.pack("<H", sign))]
    instance = read(El(0x00280106, "US", struct.pack("<h", -7)), *extra, profile=profile, syntax=IMPLICIT)
    assert row(instance, 0x00280106) == expected


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_the_first_of_duplicate_elements_wins(syntax: str) -> None:
    tail = encode([El(DESCRIPTION, "LO", "one"), El(DESCRIPTION, "LO", "two")], syntax)
    assert row(parse(dicom_file(syntax=syntax, tail=tail), NOW), DESCRIPTION) == "one"
    item = [El(0x00400007, "LO", "one"), El(0x00400007, "LO", "two")]
    json_text = read(El(0x00400275, "SQ", [item]), syntax=syntax).levels[2].metadata[16]
    assert '"one"' in json_text
    assert "two" not in json_text


@pytest.mark.parametrize("levels", [{0}, {1, 2}, {2, 3}, {3}], ids=str)
def test_levels_that_are_not_needed_have_their_public_ids_only(levels: set[int]) -> None:
    data = dicom_file(El(PATIENT_NAME, "PN", "A^B"), El(DESCRIPTION, "LO", "desc"))
    whole, part = parse(data, NOW).levels, parse(data, NOW, frozenset(levels)).levels
    for number, (expected, level) in enumerate(zip(whole, part, strict=True)):
        assert level == (expected if number in levels else (expected.public_id, (), (), {}))


def test_a_study_has_the_tags_of_its_patient() -> None:
    instance = read(El(PATIENT_NAME, "PN", "A^B"), El(DESCRIPTION, "LO", "desc"))
    patient, study, series, last = ({(g, e): v for g, e, v in lv.main_dicom_tags} for lv in instance.levels)
    assert patient == {(0x10, 0x10): "A^B", (0x10, 0x20): "P1"}
    assert study == patient | {(0x08, 0x1030): "desc", (0x20, 0x0D): "1.2.3.1"}
    assert series == {(0x20, 0x0E): "1.2.3.1.1"}
    assert last == {(0x08, 0x18): "1.2.3.1.1.1"}
    assert [len(level.identifiers) for level in instance.levels] == [2, 4, 1, 1]


@pytest.mark.parametrize(
    ("version", "signature", "length"),
    [
        ((1, 13, 0), "0008,0020;0008,0030;0008,0050;0008,0080;0008,0090;0008,0201;0008,1030;0020,000d", 26),
        ((1, 12, 5), "0008,0020;0008,0030;0008,0050;0008,0080;0008,0090;0008,0201;0008,1030;0020,000d", 26),
        ((1, 12, 4), "0008,0020;0008,0030;0008,0050;0008,0080;0008,0090;0008,1030;0020,000d", 22),
        ((1, 11, 0), "0008,0020;0008,0030;0008,0050;0008,0080;0008,0090;0008,1030;0020,000d", 22),
    ],
)
def test_signature_by_version(version: tuple[int, int, int], signature: str, length: int) -> None:
    levels = read(profile=Profile(version)).levels
    assert levels[0].metadata[15] == "0010,0010;0010,0020;0010,0030;0010,0040;0010,1000"
    assert levels[1].metadata[15] == signature + ";0020,0010;0032,1032;0032,1060"
    assert len(levels[2].metadata[15].split(";")) == length
    assert len(levels[3].metadata[15].split(";")) == 11


def test_before_1_11_there_is_no_signature() -> None:
    assert all(15 not in level.metadata for level in read(profile=OLD).levels)


def test_extra_main_dicom_tags() -> None:
    profile = Profile(
        extra_main_dicom_tags={"Patient": ["0010,2160"], "Series": ["Rows"], "Instance": ["0009,1001"]}
    )
    assert check_profile(profile) == []
    assert pickle.loads(pickle.dumps(profile)) == profile  # noqa: S301 - our own
    assert hash(profile) == hash(replace(profile, extra_main_dicom_tags=profile.extra_tags))
    extra = (El(0x00102160, "SH", "eth"), El(0x00280010, "US", b"\2\0"), El(0x00091001, "LO", "priv"))
    patient, study, series, last = read(*extra, profile=profile).levels
    assert (0x10, 0x2160, "eth") in patient.main_dicom_tags
    assert (0x10, 0x2160, "eth") in study.main_dicom_tags
    assert (0x28, 0x10, "2") in series.main_dicom_tags
    assert (0x09, 0x1001, "priv") in last.main_dicom_tags
    assert patient.metadata[15].endswith(";0010,2160")
    assert "0010,2160" not in study.metadata[15]
    assert last.metadata[15].startswith("0008,0012;0008,0013;0008,0018;0009,1001;")


def test_ignored_extra_tags_are_told() -> None:
    profile = Profile(
        extra_main_dicom_tags={"Study": ["PatientName", "StudyDate", "RetrieveURL", "PatientAge"]}
    )
    warnings = check_profile(profile)
    assert [w.split(" ")[1] for w in warnings] == ["0010,0010", "0008,0020", "0008,1190"]
    assert ["studies have it" in warnings[0], "already" in warnings[1], "computes" in warnings[2]] == [
        True
    ] * 3
    assert check_profile(replace(profile, orthanc_version=(1, 10, 1))) == [
        "ExtraMainDicomTags is ignored: Orthanc has it since 1.11.0"
    ]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile(extra_main_dicom_tags={"Study": ["NoSuchTag"]}), "Unknown DICOM tag 'NoSuchTag'"),
        (Profile(extra_main_dicom_tags={"Series": ["AcquisitionComments"]}), "Unknown DICOM tag"),
        (Profile(extra_main_dicom_tags={"Image": ["Rows"]}), "unknown level 'Image'"),
        (Profile(default_encoding="Klingon"), "unknown DefaultEncoding 'Klingon'"),
        (Profile((1, 9, 7)), r"Orthanc 1\.9\.7 is not supported, only 1\.10\.1 to 1\.13\.0"),
        (Profile((1, 14, 0)), "not supported"),
    ],
)
def test_wrong_profile(profile: Profile, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check_profile(profile)
    assert error.value.hint


def test_what_older_versions_write() -> None:
    assert row(read(El(COMMENTS, "LT", b"txt \0\0"), profile=OLD), COMMENTS) == "txt "
    at = El(DESCRIPTION, "AT", struct.pack("<4H", 0x10, 0x20, 0x7FE0, 0x10))
    assert row(read(at, profile=OLD), DESCRIPTION) == "0010,0020"
    assert row(read(El(DESCRIPTION, "AT", b""), profile=OLD), DESCRIPTION) is None
    for vr in ("OF", "OD", "OL", "OV", "SV", "UV"):
        assert row(read(El(DESCRIPTION, vr, bytes(8)), profile=OLD), DESCRIPTION) is None
        assert row(read(El(DESCRIPTION, vr, bytes(8)), profile=Profile((1, 12, 11))), DESCRIPTION) is not None


def test_a_mapped_file_can_be_closed_afterwards(tmp_path: Path) -> None:
    for name, data in (("good", dicom_file(syntax=DEFLATED)), ("bad", dicom_file()[:-1])):
        path = tmp_path / name
        path.write_bytes(data)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            if name == "good":
                assert parse(mapped, NOW) == parse(memoryview(data), NOW) == parse(data, NOW)
            else:
                with pytest.raises(Refused):
                    parse(mapped, NOW)
