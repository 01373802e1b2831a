"""CT-like files in any number: 40 elements, 100 instances per patient, 50 per series."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from random import Random

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PER_SERIES, PER_PATIENT = 50, 100
_ROOT = "1.2.826.0.1.3680043.8.498"
_COMMON = {
    "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "InstanceCreationDate": "20240501", "InstanceCreationTime": "101112.123456", "SOPClassUID": CTImageStorage,
    "StudyDate": "20240501", "SeriesDate": "20240501", "AcquisitionDate": "20240501", "ContentDate": "20240501",
    "StudyTime": "101010", "SeriesTime": "101010", "AccessionNumber": "ACC12345", "Modality": "CT",
    "Manufacturer": "Maker", "InstitutionName": "General Hospital", "ReferringPhysicianName": "Doctor^Who",
    "StationName": "CT01", "StudyDescription": "CT CHEST W CONTRAST", "SeriesDescription": "AXIAL 1.0",
    "ManufacturerModelName": "Model", "PatientBirthDate": "19600101", "PatientSex": "F", "PatientAge": "064Y",
    "BodyPartExamined": "CHEST", "SliceThickness": "1.0", "KVP": "120", "ProtocolName": "ChestRoutine",
    "StudyID": "1", "AcquisitionNumber": 1, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelSpacing": [0.7, 0.7],
    "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
    "WindowCenter": "40", "WindowWidth": "400", "RescaleIntercept": "-1024", "RescaleSlope": "1",
}  # fmt: skip


def write(folder: Path, count: int, size: int, *, seed: int = 1) -> list[Path]:
    """That many files of about `size` bytes, in a folder for each series; another seed, other studies."""
    data, random = Dataset(), Random(seed)
    for keyword, value in _COMMON.items():
        setattr(data, keyword, value)
    data.Rows = data.Columns = max(1, round(((size - 1500) / 2) ** 0.5))
    files = []
    for n in range(count):
        patient, series, number = n // PER_PATIENT, n // PER_SERIES, n % PER_SERIES + 1
        if number == 1:
            data.PatientID, data.PatientName = f"PAT{patient:06}", f"Family{patient}^Given"
            data.StudyInstanceUID = f"{_ROOT}.{random.getrandbits(32)}.{patient}"
            data.SeriesInstanceUID, data.SeriesNumber = f"{_ROOT}.{random.getrandbits(100)}", series % 2 + 1
            where = folder / f"{patient:05}" / f"{series:05}"
            where.mkdir(parents=True)
        if n % PER_PATIENT == 0:
            study = data.StudyInstanceUID
        data.StudyInstanceUID = study
        data.SOPInstanceUID, data.InstanceNumber = f"{_ROOT}.{random.getrandbits(100)}", number
        data.ImagePositionPatient = [-180, -180, float(number)]
        data.PixelData = random.randbytes(2 * data.Rows * data.Columns)
        files.append(where / f"{number:04}.dcm")
        files[-1].write_bytes(_encoded(data))
    return files


def _encoded(data: Dataset) -> bytes:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    out = BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()
