"""One DICOM file -> everything that it determines in Orthanc's index; no database.

The only user of pydicom. The rules were measured on Orthanc 1.13.0 and 1.10.1: same file,
same rows.
"""

from pgorthanc_cli.dicom.head import (
    PIXEL_HEADER_BYTES,
    ends_with_pixel_data,
    patient_key,
    pixel_data_end,
    probable_ids,
    reject_reason,
)
from pgorthanc_cli.dicom.instance import parse
from pgorthanc_cli.dicom.lenient import lenient_instance_id
from pgorthanc_cli.dicom.model import Buffer, Instance, Level, Profile, Refused
from pgorthanc_cli.dicom.structure import PIXEL_DATA
from pgorthanc_cli.dicom.tags import check_profile, format_tag, indexed_tags, name_of, parse_tag
from pgorthanc_cli.dicom.values import normalized

__all__ = [
    "PIXEL_DATA",
    "PIXEL_HEADER_BYTES",
    "Buffer",
    "Instance",
    "Level",
    "Profile",
    "Refused",
    "check_profile",
    "ends_with_pixel_data",
    "format_tag",
    "indexed_tags",
    "lenient_instance_id",
    "name_of",
    "normalized",
    "parse",
    "parse_tag",
    "patient_key",
    "pixel_data_end",
    "probable_ids",
    "reject_reason",
]
