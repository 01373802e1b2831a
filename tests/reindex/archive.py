"""An archive whose files disagree, imported with an earlier configuration, and reindexing it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from pgorthanc_cli import db, dicom, reindex
from tests.support import samples

PROFILE = dicom.Profile(
    extra_main_dicom_tags={
        "Patient": ["PatientComments"],
        "Study": ["0032,4000"],
        "Series": ["KVP"],
        "Instance": ["Rows", "ReferencedImageSequence"],
    }
)
PIXELS = 64 << 10


def write_files(folder: Path) -> list[Path]:
    """Two patients, three studies, four series of three instances whose files disagree above the instance."""
    folder.mkdir()
    for n in range(12):
        patient, study, series = n // 6 + 1, f"1.2.{n // 6 if n < 9 else 7}", f"1.2.1.{n // 3}"
        reference = Dataset()
        reference.ReferencedSOPInstanceUID = f"9.{n}"
        content = samples.instance(
            f"P{patient}", study, series, n + 1,
            StudyDescription=f"from {n}", SeriesDescription=f"from {n}", PatientSex="MFO"[n % 3],
            PatientComments="a comment", StudyComments="another", KVP=str(100 + n),
            ReferencedImageSequence=[reference],
            PixelData=os.urandom(PIXELS), Rows=256, Columns=128,
        )  # fmt: skip
        (folder / f"{n:02}.dcm").write_bytes(content)
    return sorted(folder.iterdir())


class Archive:
    """An index and its area, imported with an earlier configuration, and the files."""

    def __init__(self, database: str, files: list[Path], area: Path) -> None:
        self.database, self.files, self.area = database, files, area


def run(target: db.Target, area: Path | None, **settings: Any) -> reindex.Reindexed:
    profile = settings.pop("profile", PROFILE)
    return reindex.reindex(target, reindex.Settings(area, profile, jobs=1, **settings))
