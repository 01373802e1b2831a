"""Real DICOM files, and Orthanc's identifiers of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

import pydicom
import pydicom.data

from tests.support import samples

DATA = Path(pydicom.data.__path__[0])
_REAL = (
    "test_files/CT_small.dcm",
    "test_files/MR_small_RLE.dcm",
    "test_files/SC_rgb_small_odd_big_endian.dcm",
    "test_files/693_J2KI.dcm",
    "test_files/rtplan.dcm",
    "charset_files/chrRuss.dcm",
    "charset_files/chrH31.dcm",
)


@dataclass(frozen=True)
class Dicom:
    """One file: its bytes, and Orthanc's identifiers of its patient, study, series and instance."""

    content: bytes = field(repr=False)

    @cached_property
    def tags(self) -> pydicom.Dataset:
        return pydicom.dcmread(BytesIO(self.content), stop_before_pixels=True)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        names = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        values = [str(self.tags[name].value) for name in names]
        return tuple(_public_id(values[:length]) for length in range(1, 5))


def _public_id(values: Iterable[str]) -> str:
    digest = hashlib.sha1("|".join(values).encode()).hexdigest()
    return "-".join(digest[start : start + 8] for start in range(0, 40, 8))


def real() -> list[Dicom]:
    """Images of several modalities, transfer syntaxes and character sets; a patient each."""
    return [Dicom((DATA / name).read_bytes()) for name in _REAL]


def patient(name: str, studies: int = 2, series: int = 2, instances: int = 2) -> list[Dicom]:
    """A tree of small images, whose UIDs are made of the name, which is a number."""
    root = f"1.2.{name}"
    return [
        Dicom(samples.instance(name, f"{root}.{study}", f"{root}.{study}.{one}", number))
        for study in range(1, studies + 1)
        for one in range(1, series + 1)
        for number in range(1, instances + 1)
    ]


def write(folder: Path, files: Iterable[Dicom]) -> Path:
    """The files in a folder, in their order."""
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:04}.dcm").write_bytes(file.content)
    return folder
