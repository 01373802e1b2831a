"""The settings of a check, from options and Orthanc's configuration."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli import dicom
from pgorthanc_cli.config import OrthancConfiguration, storage_folder
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest import Hours
from pgorthanc_cli.scrub.model import GRACE_S, HASH, IDENTITY, Settings


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
    journal: Path | None = None,
    max_age: float | None = None,
    budget: float | None = None,
    max_rate: float | None = None,
    schedule: str | None = None,
    studies: tuple[str, ...] = (),
    since: int | None = None,
) -> Settings:
    """Return what the options of `verify storage` ask for; the area is the one that `import` would use.

    Raises:
        UsageError: Nothing names the area, or another storage plugin keeps the files.
    """
    if (journal or budget or max_rate) and depth not in (HASH, IDENTITY):
        raise UsageError(
            f"--journal, --budget and --max-rate are about content, which --depth {depth} does not read",
            "leave them out, or choose --depth hash",
        )
    if max_age is not None and journal is None:
        raise UsageError("--max-age needs a journal of what was checked when", "add --journal FILE")
    if schedule is not None and journal is None:
        raise UsageError(
            "--schedule ends a run and goes on at the next hours, which needs a journal", "add --journal FILE"
        )
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
        journal=journal,
        max_age_s=max_age or 0.0,
        budget_s=budget,
        max_bytes_per_s=max_rate,
        hours=Hours.parse(schedule) if schedule is not None else None,
        studies=studies,
        since=since,
    )
