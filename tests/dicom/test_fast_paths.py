"""The fast paths (skimmed headers, remembered ancestors, plain texts) give what the slow ones do."""

from __future__ import annotations

import resource
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pydicom.data
import pytest

from pgorthanc_cli.dicom import Instance, Profile, Refused, file, instance, parse, values
from pgorthanc_cli.dicom.structure import Walker
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
)

REAL = sorted(p for p in Path(pydicom.data.__file__).parent.rglob("*") if p.is_file() and p.suffix != ".py")
PROFILES = (
    Profile(),
    Profile((1, 10, 1)),
    Profile(
        extra_main_dicom_tags={
            "Study": ["ReferencedStudySequence", "0009,1001"],
            "Series": ["SmallestImagePixelValue", "FrameIncrementPointer", "PixelData"],
            "Instance": ["0008,0005"],
        }
    ),
)
ITEM = [El(0x00080100, "SH", "C"), El(0x00080104, "LO", "Meaning")]
SYNTHETIC = [
    dicom_file(El(0x00400275, "SQ", [ITEM, ITEM], **lengths), syntax=syntax)
    for lengths in ({}, {"length": UNDEFINED, "item_length": UNDEFINED})
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)
] + [
    dicom_file(El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG),
    dicom_file(preamble=b"", head=b""),
    dicom_file(head=meta() + meta(group_length=-1)),
    dicom_file(El(0x00080005, "CS", "ISO_IR 13"), El(0x00100010, "PN", "~a\\b")),
]
PIECES = (
    *(
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\xf0\xff\xff\xff",
        b"SQ",
        b"UN",
        b"OB",
        b"UT",
        b"AT",
        b"OF",
        b"US",
        b"UI",
    ),
    *(b"\x08\0\x05\0", b"\xe0\x7f\x10\0", b"\2\0\0\0", b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0"),
    *(b"\xfe\xff\xdd\xe0", b"\xfc\xff\xfc\xff", b"\x20\x00\x13\x00", b"DICM", b"1.2.840.10008.1.2.1.99"),
)


@contextmanager
def slow_paths() -> Iterator[None]:
    """Every element step by step, every text by its character set, every file for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Walker, "skim", lambda self, pos, stop, tags, elements: pos)
        patch.setattr(Walker, "_update_linear", lambda self, pos, header, end: setattr(self, "linear", False))
        patch.setattr(values, "_plain_ascii", lambda raw, vr: None)
        patch.setattr(instance, "_bytes_of", lambda file, tags: None)
        file_meta = file.file_meta
        patch.setattr(file, "file_meta", lambda data: (m := file_meta(data)) and m._replace(plain=False))
        yield


def result(data: bytes, profile: Profile) -> Instance | str:
    try:
        return parse(data, profile)
    except Refused as reason:
        return str(reason)


def mutated(data: bytes, random: Random) -> bytes:
    """Bits, lengths and tags changed, mostly near the start; pieces put in, cut out, cut off."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        where = random.randrange(min(len(data), random.choice((400, 1000, 3000, 1 << 30))) or 1)
        piece = random.choice(PIECES)
        kind = random.random()
        if kind < 0.35:
            data = data[:where] + bytes([random.randrange(256)]) + data[where + 1 :]
        elif kind < 0.65:
            data = data[:where] + piece + data[where + len(piece) :]
        elif kind < 0.75:
            data = data[:where] + piece + data[where:]
        elif kind < 0.85:
            data = data[:where] + data[where + random.randrange(1, 20) :]
        elif kind < 0.93:
            data = data[: random.randrange(len(data) + 1)]
        else:
            data += piece
    return data


@pytest.mark.parametrize("profile", PROFILES, ids=["now", "old", "more tags"])
def test_real_files(profile: Profile) -> None:
    files = [path.read_bytes() for path in REAL] + SYNTHETIC
    short = [result(data, profile) for data in files]
    assert short == [result(data, profile) for data in files]  # this time with the ancestors remembered
    with slow_paths():
        assert short == [result(data, profile) for data in files]
    assert sum(isinstance(each, Instance) for each in short) > len(files) // 2


def compare(count: int, seed: int) -> None:
    random = Random(seed)
    files = [path.read_bytes() for path in REAL if path.stat().st_size < 60_000] + SYNTHETIC
    for number in range(count):
        data, profile = mutated(random.choice(files), random), PROFILES[number % 3]
        started = time.process_time()
        short = result(data, profile)
        assert time.process_time() - started < 2
        with slow_paths():
            assert short == result(data, profile), (number, seed)


def test_damaged_files() -> None:
    compare(1500, seed=1)


@pytest.mark.once
def test_many_damaged_files() -> None:
    """20,000 of them, in bounded memory."""
    compare(1000, seed=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compare(19_000, seed=3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_the_same_bytes_mean_something_else_in_another_profile() -> None:
    """What is remembered is remembered for one profile."""
    data = dicom_file(El(0x00100010, "PN", b"caf\xe9"))
    names = [
        parse(data, profile).levels[0].main_dicom_tags[0][2]
        for profile in (Profile(), Profile(default_encoding="Cyrillic"), Profile())
    ]
    assert names == ["café", "cafщ", "café"]


# --- malicious files ---------------------------------------------------------------------


def test_a_thousand_nested_sequences() -> None:
    nested = El(0x00400275, "SQ", [[]])
    for _ in range(150):
        nested = El(0x00400275, "SQ", [[nested]])
    deep = dicom_file(nested)
    opened = b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 1000
    for data in (deep, dicom_file(tail=opened)):
        with pytest.raises(Refused, match="too many nested sequences"):
            parse(data, Profile())


@pytest.mark.parametrize("vr", ["OB", "UN", "SQ", "UT"])
def test_a_length_of_4_gb_that_is_not_there(vr: str) -> None:
    with pytest.raises(Refused):
        parse(dicom_file(El(0x00204000, vr, b"x", length=0xFFFFFFF0)), Profile())


def test_a_deflated_bomb_is_refused_in_bounded_memory() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(700)) + deflater.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(Refused, match="more than 512 MiB"):
        parse(bytes(128) + b"DICM" + meta(DEFLATED) + packed, Profile())
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB


def test_a_large_deflated_data_set_is_read() -> None:
    data = dicom_file(El(PIXELS, "OB", bytes(40 << 20)), syntax=DEFLATED)
    assert isinstance(result(data, Profile()), Instance)
