"""One DICOM file -> everything that it determines in Orthanc's index; no database.

The only user of pydicom. The rules were measured on Orthanc 1.13.0 and 1.10.1: same file,
same rows.
"""

from pgorthanc_cli.dicom.head import patient_key, reject_reason
from pgorthanc_cli.dicom.instance import parse
from pgorthanc_cli.dicom.model import Buffer, Instance, Level, Profile, Refused
from pgorthanc_cli.dicom.tags import check_profile

__all__ = [
    "Buffer",
    "Instance",
    "Level",
    "Profile",
    "Refused",
    "check_profile",
    "parse",
    "patient_key",
    "reject_reason",
]
