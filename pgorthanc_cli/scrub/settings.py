"""The settings of a check, from options and Orthanc's configuration."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli import dicom
from pgorthanc_cli.config import OrthancConfiguration, storage_folder
from pgorthanc_cli.scrub.model import GRACE_S, HASH, Settings


def from_options(
    orthanc: OrthancConfiguration | None,
    *,
    storage: str | None = None,
    storage_dir: Path | None = None,
    depth: str = HASH,
    jobs: int = 2,
    force: bool = False,
    grace: float = GRACE_S,
    list_studies: bool = False,
) -> Settings:
    """Return what the options of `verify storage` ask for; the area is the one that `import` would use.

    Raises:
        UsageError: Nothing names the area, or another storage plugin keeps the files.
    """
    root = storage_folder(storage, storage_dir, orthanc)
    section = orthanc.advanced_storage if orthanc else None
    return Settings(
        storage_dir=root,
        depth=depth,
        jobs=jobs,
        force=force,
        grace_s=grace,
        profile=dicom.Profile(default_encoding=orthanc.default_encoding) if orthanc else dicom.Profile(),
        store_md5=orthanc.store_md5 if orthanc else None,
        storages=section,
        advanced_storage=None if orthanc is None else section is not None,
        list_studies=list_studies,
    )
