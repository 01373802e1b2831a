"""The instance of a file that `parse` refuses, for files that an older Orthanc has stored.

Orthanc 1.10.1 stores files with bytes after the last element, which 1.13.0 refuses. Rows
are never made from what is read here.
"""

from __future__ import annotations

import warnings
from io import BytesIO

from pgorthanc_cli.dicom.instance import public_id

_NAMES = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def lenient_instance_id(data: bytes) -> str:
    """Return the public id of the instance in a file with a preamble (PS3.10, 7.1); empty if it has none."""
    if data[128:132] != b"DICM":  # else pydicom would read anything, and take its time
        return ""
    import pydicom  # slow, and hardly ever needed

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(
                BytesIO(data), stop_before_pixels=True, force=True, specific_tags=list(_NAMES)
            )
            values = [str(dataset.get(name, "")).strip(" \0") for name in _NAMES]
    except Exception:  # noqa: BLE001 - pydicom raises errors of many kinds for what is no DICOM
        return ""
    return public_id("|".join(values)) if all(values[1:]) else ""
