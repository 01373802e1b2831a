"""What the report and the record of known files keep of one imported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pgorthanc_cli.index import INSTANCE, LevelRows, Outcome
from pgorthanc_cli.ingest.walk import Source

_PATIENT, _STUDY, _SERIES = 0, 1, 2
_PATIENT_NAME, _STUDY_DATE, _MODALITY = (0x0010, 0x0010), (0x0008, 0x0020), (0x0008, 0x0060)


@dataclass(frozen=True, slots=True)
class Facts:
    """A few words about one instance.

    Attributes:
        public_id: Orthanc's identifier of the instance.
        patient_id: Orthanc's identifier of its patient.
        patient: PatientName, or "". Shown only where the user asked for names.
        modality: Of its series, or "".
        year: The first four digits of StudyDate, or "".
    """

    public_id: str
    patient_id: str
    patient: str = field(repr=False)
    modality: str
    year: str


@dataclass(frozen=True, slots=True)
class Item:
    """One file that is in the index now.

    Attributes:
        source: The file.
        outcome: What became of it.
        size: Bytes of the instance, uncompressed.
        facts: About the instance.
        md5: Of those bytes.
        stored: The uuid of the stored DICOM file, if this file was stored now.
        differs: The index has another content under the identifiers of this file, and keeps it.
    """

    source: Source
    outcome: Outcome
    size: int
    facts: Facts
    md5: str = ""
    stored: str = ""
    differs: bool = False


def of(levels: Sequence[LevelRows]) -> Facts:
    """The facts of an instance, by the rows of its four levels."""
    year = _tag(levels[_STUDY], _STUDY_DATE)[:4]
    return Facts(
        public_id=levels[INSTANCE].public_id,
        patient_id=levels[_PATIENT].public_id,
        patient=_tag(levels[_PATIENT], _PATIENT_NAME),
        modality=_tag(levels[_SERIES], _MODALITY),
        year=year if len(year) == 4 and year.isascii() and year.isdigit() else "",
    )


def _tag(level: LevelRows, wanted: tuple[int, int]) -> str:
    return next((value for group, element, value in level.main_dicom_tags if (group, element) == wanted), "")
