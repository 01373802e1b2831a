"""What a move is about, from options and Orthanc's configuration."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli.config import OrthancConfiguration
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.placement.model import CLEAN, COPY, POSTGRESQL, MoveSettings, Place


def from_options(
    orthanc: OrthancConfiguration | None,
    *,
    to: str,
    storage_dir: Path | None = None,
    from_dir: Path | None = None,
    phase: str = COPY,
    jobs: int = 2,
    max_rate: float | None = None,
    studies: tuple[str, ...] = (),
    older_than: float | None = None,
    orphans: bool = False,
) -> MoveSettings:
    """Return what the options of `storage move` ask for.

    The configuration names the source before the switch, and the target after it.

    Raises:
        UsageError: An end is not named, or another storage plugin keeps the files.
    """
    configured = None
    if orthanc is not None:
        orthanc.require_own_storage()
        configured = Place(None if orthanc.enable_storage else orthanc.storage_directory.resolve())
    folder = storage_dir or (orthanc.storage_directory if orthanc else None)
    if to == POSTGRESQL:
        if from_dir and storage_dir:
            raise UsageError("--from-dir and --storage-dir both name the source", "give one of them")
        folder, source, target = from_dir or folder, None, Place(None)
    else:
        source = Place(from_dir.resolve()) if from_dir else Place(None)
        target = Place(folder.resolve()) if folder else Place(None)
        if not from_dir and configured and configured.folder and configured != target:
            source = configured  # from one StorageDirectory to another
    if orphans and (phase != CLEAN or to == POSTGRESQL or (source and source.folder)):
        raise UsageError(
            "--orphans is for --phase clean of large objects",
            "leave it out; to move files that no row names aside, see: pgorthanc verify storage --help",
        )
    if folder is None:
        raise UsageError(
            "no folder given", "give --storage-dir FOLDER, or Orthanc's configuration with --config"
        )
    return MoveSettings(
        source=source or Place(folder.resolve()),
        target=target,
        phase=phase,
        jobs=jobs,
        max_bytes_per_s=max_rate,
        studies=studies,
        older_than_s=older_than,
        configured=configured,
        orphans=orphans,
    )
