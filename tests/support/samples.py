"""Small DICOM files, written by pydicom."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

REAL = Path(str(get_testdata_file("CT_small.dcm", download=False)))


def instance(
    patient: str = "P1", study: str = "1.2.1", series: str = "1.2.1.1", number: int = 1, **tags: object
) -> bytes:
    """One CT instance; its SOP Instance UID is the series' with the number behind it."""
    data = Dataset()
    data.PatientID = patient
    data.PatientName = f"Name^Of[{patient}]"
    data.StudyInstanceUID = study
    data.SeriesInstanceUID = series
    data.SOPInstanceUID = f"{series}.{number}"
    data.SOPClassUID = CTImageStorage
    data.Modality = "CT"
    data.InstanceNumber = number
    data.Rows = data.Columns = 2
    data.BitsAllocated = 16
    data.PixelData = bytes(8)
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    out = BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


def folder(where: Path, count: int, patients: int = 2, per_series: int = 5, first: int = 0) -> list[Path]:
    """A folder of instances, numbered from `first`: `00000.dcm`, … spread over patients and series."""
    where.mkdir(parents=True, exist_ok=True)
    made = []
    for n in range(first, first + count):
        patient = n // per_series % patients + 1
        series = n // per_series
        path = where / f"{n:05}.dcm"
        path.write_bytes(
            instance(f"P{patient}", f"1.2.{patient}", f"1.2.{patient}.{series}", n % per_series + 1)
        )
        made.append(path)
    return made
