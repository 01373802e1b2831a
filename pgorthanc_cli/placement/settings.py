"""What a move is about, from options and Orthanc's configuration."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli.config import AdvancedStorage, OrthancConfiguration, advanced_storage
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.placement.model import (
    ADVANCED,
    CLEAN,
    COMPRESSIONS,
    COPY,
    POSTGRESQL,
    MoveSettings,
    Place,
)
from pgorthanc_cli.text import printable


def from_options(
    orthanc: OrthancConfiguration | None,
    *,
    to: str,
    storage_dir: Path | None = None,
    from_dir: Path | None = None,
    source_kind: str | None = None,
    storage_id: str | None = None,
    compression: str | None = None,
    phase: str = COPY,
    jobs: int = 2,
    max_rate: float | None = None,
    studies: tuple[str, ...] = (),
    older_than: float | None = None,
    orphans: bool = False,
) -> MoveSettings:
    """Return what the options of `storage move` ask for.

    The configuration names the source before the switch, and the target after it: then
    `source_kind` says that the source is the large objects, or the advanced-storage plugin.

    Raises:
        UsageError: An end is not named, or another storage plugin keeps the files.
    """
    configured = section = None
    if orthanc is not None:
        orthanc.require_own_storage()
        configured = Place(None if orthanc.enable_storage else orthanc.storage_directory.resolve())
        section = advanced_storage.section(orthanc)
    if (storage_id is not None) != (to == ADVANCED):
        raise UsageError(
            "--to advanced-storage and --storage-id ID belong together",
            "give both: ID is a name in MultipleStorages.Storages of the configuration",
        )
    if source_kind == POSTGRESQL and from_dir:
        raise UsageError("--from postgresql and --from-dir both name the source", "give one of them")
    if to == ADVANCED:
        if from_dir or storage_dir:
            raise UsageError(
                "the configuration names all folders of --to advanced-storage", "give --config only"
            )
        source, target = _advanced_ends(orthanc, section, storage_id or "")
    else:
        source, target = _ordinary_ends(orthanc, configured, to, storage_dir, from_dir)
        # Without --from-dir all that the plugin keeps is meant: its storages are part of the archive.
        if orthanc is not None and orthanc.advanced_storage is not None and not from_dir:
            source_kind = source_kind or ADVANCED
    if source_kind == POSTGRESQL:
        source = Place(None)
    elif source_kind == ADVANCED:
        source = _advanced_source(orthanc, section, from_dir)
    if orphans and (phase != CLEAN or to == POSTGRESQL or source.folder):
        raise UsageError(
            "--orphans is for --phase clean of large objects",
            "leave it out; to move files that no row names aside, see: pgorthanc verify storage --help",
        )
    return MoveSettings(
        source=source,
        target=target,
        phase=phase,
        jobs=jobs,
        max_bytes_per_s=max_rate,
        studies=studies,
        older_than_s=older_than,
        configured=configured,
        orphans=orphans,
        storages=tuple((name, str(folder)) for name, folder in section.storages.items()) if section else (),
        names_files=bool(section and section.names_files),
        compression=COMPRESSIONS[compression] if compression else None,
    )


def _advanced_source(
    orthanc: OrthancConfiguration | None, section: AdvancedStorage | None, from_dir: Path | None
) -> Place:
    """Return what the advanced-storage plugin keeps, with StorageDirectory or what that was before."""
    if orthanc is None or section is None:
        raise _no_storages()
    return Place((from_dir or orthanc.storage_directory).resolve(), "")


def _no_storages() -> UsageError:
    return UsageError(
        "Orthanc's configuration names no storages of the advanced-storage plugin",
        'give --config with a section "AdvancedStorage"; it may have "Enable": false until the switch',
    )


def _advanced_ends(
    orthanc: OrthancConfiguration | None, section: AdvancedStorage | None, storage_id: str
) -> tuple[Place, Place]:
    """Return source and target of a move into a storage of the advanced-storage plugin."""
    if orthanc is None or section is None:
        raise _no_storages()
    if storage_id not in section.storages:
        raise UsageError(
            f"there is no storage {printable(storage_id)} among MultipleStorages of {orthanc.path}",
            "add it there first, and restart Orthanc: it aborts when a row names a storage that it does not know",
        )
    # Without it the plugin does not use storages at all.
    if not section.write_storage:
        raise UsageError(
            f"CurrentWriteStorage is empty in {orthanc.path}, so that the plugin ignores its storages",
            "name the storage of new files there",
        )
    source = Place(None) if orthanc.enable_storage else _advanced_source(orthanc, section, None)
    return source, Place(section.storages[storage_id].resolve(), storage_id)


def _ordinary_ends(
    orthanc: OrthancConfiguration | None,
    configured: Place | None,
    to: str,
    storage_dir: Path | None,
    from_dir: Path | None,
) -> tuple[Place, Place]:
    """Return source and target of a move to files or large objects."""
    folder = storage_dir or (orthanc.storage_directory if orthanc else None)
    if to == POSTGRESQL:
        if from_dir and storage_dir:
            raise UsageError("--from-dir and --storage-dir both name the source", "give one of them")
        folder = from_dir or folder
    if folder is None:
        raise UsageError(
            "no folder given", "give --storage-dir FOLDER, or Orthanc's configuration with --config"
        )
    if to == POSTGRESQL:
        return Place(folder.resolve()), Place(None)
    source, target = Place(from_dir.resolve() if from_dir else None), Place(folder.resolve())
    if not from_dir and configured and configured.folder and configured != target:
        source = configured  # from one StorageDirectory to another
    return source, target
