"""The compressed form of attachments, read piece by piece."""

import hashlib
import struct
import zlib

import pytest

from pgorthanc_cli import dicom, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.scrub import content as scrub_content
from tests.support import samples
from tests.support.compressors import with_isal, without_isal

CONTENT = bytes(range(256)) * 10_000
STORED = b"".join(storage.encode(CONTENT, compress=True))


def in_pieces(stored: bytes, length: int) -> list[bytes]:
    """Cut stored bytes as a reader gets them."""
    return [stored[start : start + length] for start in range(0, len(stored), length)]


@pytest.mark.parametrize("length", [1, 7, 9, 4096, len(STORED)])
def test_content_does_not_depend_on_how_it_is_read(length: int) -> None:
    assert b"".join(storage.decompressed(in_pieces(STORED, length))) == CONTENT


@pytest.mark.parametrize("number", range(len(storage.compressors())))
def test_every_compressor_writes_a_stream_of_zlib(number: int) -> None:
    """Which Orthanc reads; the same content gives the same bytes each time."""
    compressor = storage.compressors()[number]
    stored = b"".join(storage.encode(CONTENT, compress=True, compressor=compressor))
    assert stored[:8] == struct.pack("<Q", len(CONTENT))
    assert zlib.decompress(stored[8:]) == CONTENT
    assert stored == b"".join(storage.encode(CONTENT, compress=True, compressor=compressor))
    if number == 0:
        assert stored == STORED  # the fastest is the default


def test_without_isal_the_bytes_are_those_of_orthanc() -> None:
    with with_isal():
        assert len(storage.compressors()) == 2
        by_isal = b"".join(storage.encode(CONTENT, compress=True))
    with without_isal():
        assert len(storage.compressors()) == 1
        stored = b"".join(storage.encode(CONTENT, compress=True))
    assert stored[8:] == zlib.compress(CONTENT, 6)
    assert stored != by_isal
    assert storage.decode(by_isal) == CONTENT


@pytest.mark.parametrize("content", [b"", b"x"])
def test_small_contents(content: bytes) -> None:
    stored = b"".join(storage.encode(content, compress=True))
    assert storage.decode(stored) == content
    # Of an empty content, Orthanc stores its size alone.
    assert content or stored == struct.pack("<Q", 0)


def test_no_piece_is_larger_than_asked_for() -> None:
    inflater = storage.Inflater(piece_bytes=1000)
    pieces = list(inflater.inflate(STORED))
    inflater.finish()
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) == 1000
    assert (inflater.announced, inflater.size, inflater.problem) == (len(CONTENT), len(CONTENT), "")


def test_bytes_after_the_content_are_counted_and_ignored() -> None:
    inflater = storage.Inflater()
    pieces = [piece for chunk in in_pieces(STORED + bytes(100), 64) for piece in inflater.inflate(chunk)]
    inflater.finish()
    assert (b"".join(pieces), inflater.trailing, inflater.problem) == (CONTENT, 100, "")
    assert storage.decode(STORED + bytes(100)) == CONTENT


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (b"", "it is shorter than the size that it begins with"),
        (STORED[:7], "it is shorter than the size that it begins with"),
        (STORED[:8], "it ends within its compressed content"),
        (STORED[:-1], "it ends within its compressed content"),
        (struct.pack("<Q", 5) + STORED[8:], "it holds more than the 5 bytes that it announces"),
        (
            struct.pack("<Q", len(CONTENT) + 1) + STORED[8:],
            "it holds 2,560,000 bytes and announces 2,560,001",
        ),
        (STORED[:8] + bytes(20), "Error -3 while decompressing data: unknown compression method"),
    ],
)
def test_damage(stored: bytes, problem: str) -> None:
    with pytest.raises(PgOrthancError) as caught:
        storage.decode(stored)
    assert caught.value.fact == f"a compressed attachment is damaged: {problem}"
    checked = scrub_content.digest(iter(in_pieces(stored, 100)), compressed=True)
    assert (checked.size, checked.md5, checked.problem) == (None, None, problem)
    assert checked.stored_md5 == hashlib.md5(stored, usedforsecurity=False).hexdigest()


def test_a_damaged_compressed_file_is_still_identified() -> None:
    """What an orphan holds is known from its beginning."""
    file = samples.instance() + bytes(1 << 20)
    stored = bytearray(struct.pack("<Q", len(file)) + zlib.compress(file))
    expected = scrub_content.instance_of(iter([bytes(stored)]), dicom.Profile(), compressed=True)
    assert expected
    cut_off = bytes(stored[:-10])
    assert scrub_content.instance_of(iter([cut_off]), dicom.Profile(), compressed=True) == expected
