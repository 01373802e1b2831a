"""Real DICOM files, and what Orthanc must say about an archive that holds them."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

import pydicom
import pydicom.data
import samples

_DATA = Path(pydicom.data.__path__[0])
_REAL = (
    "test_files/CT_small.dcm",
    "test_files/MR_small_RLE.dcm",
    "test_files/ExplVR_BigEnd.dcm",
    "test_files/image_dfl.dcm",
    "test_files/JPEG2000.dcm",
    "charset_files/chrRuss.dcm",
    "charset_files/chrH31.dcm",
)


def _identifier(*values: str) -> str:
    digest = hashlib.sha1("|".join(values).encode()).hexdigest()
    return "-".join(digest[n : n + 8] for n in range(0, 40, 8))


@dataclass(frozen=True)
class Dicom:
    """One file: its bytes, and Orthanc's identifiers of patient, study, series and instance."""

    content: bytes = field(repr=False)

    @cached_property
    def tags(self) -> pydicom.Dataset:
        return pydicom.dcmread(BytesIO(self.content), stop_before_pixels=True)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        uids = (self.tags.StudyInstanceUID, self.tags.SeriesInstanceUID, self.tags.SOPInstanceUID)
        return tuple(itertools.accumulate_ids((str(self.tags.get("PatientID", "")), *map(str, uids))))
