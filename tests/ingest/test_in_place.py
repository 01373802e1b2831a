"""Large files that are adopted: only their ranges are read, and the rows are those of the whole file."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from pgorthanc_cli import dicom
from pgorthanc_cli.ingest import content
from pgorthanc_cli.ingest.walk import Source
from tests.support import samples

PROFILE = dicom.Profile()
# Explicit (with padding behind it) and implicit little endian, and fragments.
SAMPLES = (
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "JPEG2000.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "examples_jpeg2k.dcm",
)


def read(path: Path, memory_bytes: int = 300) -> content.InPlace:
    status = path.stat()
    source = Source(str(path), size=status.st_size, mtime_ns=status.st_mtime_ns)
    return content.read_in_place(source, content.no_checkpoint, memory_bytes=memory_bytes)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_rows_are_those_of_the_whole_file(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    data = path.read_bytes()
    large = read(path)
    expected = dicom.parse(data, PROFILE)
    assert large.offset == expected.pixel_data_offset is not None
    assert dicom.parse(large.data, PROFILE) == expected
    assert (len(large.data), large.md5) == (len(data), hashlib.md5(data).hexdigest())
    assert large.data[: large.offset] == data[: large.offset]
    assert read(path, memory_bytes=1 << 30) == content.InPlace(data, large.source)


def test_no_more_than_the_beginning_is_in_memory(tmp_path: Path) -> None:
    """All but the MD5 of a sparse file of 4 GB is there at once; nothing is written anywhere."""
    head = samples.instance(PixelData=b"")
    path = tmp_path / "large.dcm"
    size = 4_000_000_000
    path.write_bytes(head[:-4] + size.to_bytes(4, "little"))
    os.truncate(path, len(head) + size)
    source = Source(str(path), size=path.stat().st_size)

    class Enough(Exception):
        """The file is being hashed: everything else is done."""

    def enough() -> None:
        raise Enough

    with pytest.raises(Enough):
        content.read_in_place(source, enough, memory_bytes=1 << 20)
    data = mmap.mmap(-1, source.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    data[: len(head)] = head[:-4] + size.to_bytes(4, "little")
    assert dicom.parse(data, PROFILE).pixel_data_offset == len(head) - 12
    data.close()


def test_what_follows_the_pixel_data_must_be_a_whole_element(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(samples.instance() + b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0")
    assert dicom.parse(read(path).data, PROFILE) == dicom.parse(path.read_bytes(), PROFILE)


def test_what_is_not_mostly_pixel_data_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(samples.instance(PixelData=b"")[:-12])
    large = read(path)
    assert (large.offset, large.md5) == (None, "")
    assert bytes(large.data) == path.read_bytes()


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(samples.instance(PixelData=bytes(5000)))
    source = Source(str(path), size=path.stat().st_size)

    def shrink() -> None:
        os.truncate(path, 400)

    with pytest.raises(content.UnreadableError, match="changed"):
        content.read_in_place(source, shrink, memory_bytes=300)
