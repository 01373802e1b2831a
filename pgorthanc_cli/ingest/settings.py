"""What an import is asked to do: how to store files, and which of them to read when."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from pgorthanc_cli import dicom, index
from pgorthanc_cli.config import OrthancConfiguration, advanced_storage, storage_folder
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest.adoption import Adoption, absolute, area_of_heads, require_outside
from pgorthanc_cli.ingest.arrivals import MAX_WAITING, POLL_REST, POLL_S
from pgorthanc_cli.ingest.walk import Shard, ShardBy, listed
from pgorthanc_cli.pacing import Hours, Limits


class Link(Enum):
    """How files come into the filesystem area; AUTO: a reflink if possible, or a copy."""

    AUTO = "auto"
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    COPY = "copy"


@dataclass(frozen=True)
class Settings:
    """How to import; the defaults are Orthanc's.

    Attributes:
        storage_dir: The filesystem storage area, or None for large objects in the
            database.
        profile: What decides the rows of a file: Orthanc's version, DefaultEncoding,
            ExtraMainDicomTags.
        compress: StorageCompression.
        store_md5: StoreMD5ForAttachments.
        store_dicom: StoreDicom; False: the rows are written, the DICOM file is not.
        link: How files come into the filesystem area.
        overwrite: OverwriteInstances.
        sync: SyncStorageArea.
        concurrent: Import while Orthancs use the database, instead of keeping them out by
            lock 42.
        dry_run: Read and report, write nothing.
        stable_changes: Log StablePatient, StableStudy and StableSeries at the end.
        storage_given: The user named the storage. False: it was derived from Orthanc's
            configuration, so an index whose files another plugin keeps is refused.
        batch_files: At most so many files in one transaction.
        group_bytes: At most so much of a batch is in a worker's memory, but for a larger file.
        memory_bytes: Larger files are copied to an unnamed file and mapped from there.
        adopt: Files are not stored but adopted: the index gets them where they lie. Then
            `storage_dir` is None unless something is stored or removed all the same.
        transfer_bytes: Larger content is not sent from a worker to the parent, which has
            several batches in memory, but read again by the parent.
    """

    storage_dir: Path | None = None
    profile: dicom.Profile = field(default_factory=dicom.Profile)
    compress: bool = False
    store_md5: bool = True
    store_dicom: bool = True
    link: Link = Link.AUTO
    overwrite: index.Overwrite = index.Overwrite.NEVER
    sync: bool = True
    concurrent: bool = False
    dry_run: bool = False
    stable_changes: bool = False
    storage_given: bool = True
    adopt: Adoption | None = None
    batch_files: int = 1000
    group_bytes: int = 8 << 20
    memory_bytes: int = 64 << 20
    transfer_bytes: int = 4 << 20

    @property
    def own_folders(self) -> tuple[str | os.PathLike[str], ...]:
        """The storage areas, in which there is nothing to import."""
        if self.adopt:
            return self.adopt.roots
        return (self.storage_dir,) if self.storage_dir else ()


@dataclass(frozen=True)
class ImportPlan:
    """Which files to import, when, and by how many workers.

    Attributes:
        paths: Files and folders; consumed while working, unless `follow` is set.
        jobs: Worker processes.
        scheduler: A Dask cluster to work on instead: its address, or a scheduler file.
        shard: The shard of this machine.
        journal: The file that remembers which instance each file holds.
        limits: How fast.
        hours: When.
        follow: Continue with the files that arrive in the folders, until stopped.
        settle_s: With `follow`, how long a file must have stayed the same.
        poll_s, poll_rest, max_waiting: With `follow`, as in `arrivals.arrivals`.
        journal_delay_s: A file modified more recently is not put into the journal,
            because it could change again within the same tick of the file system's clock.
    """

    paths: Iterable[str]
    jobs: int = 2
    scheduler: str | None = None
    shard: Shard | None = None
    journal: Path | None = None
    limits: Limits = field(default_factory=Limits)
    hours: Hours | None = None
    follow: bool = False
    settle_s: float = 5.0
    poll_s: float = POLL_S
    poll_rest: float = POLL_REST
    max_waiting: int = MAX_WAITING
    journal_delay_s: float = 2.0


def from_options(
    paths: tuple[str, ...],
    files_from: BinaryIO | None,
    configuration: OrthancConfiguration | None,
    options: Mapping[str, Any],
) -> tuple[ImportPlan, Settings]:
    """Return what the options of `pgorthanc import` ask for.

    Args:
        paths: Files and folders.
        files_from: A list of more paths.
        configuration: Orthanc's, for what the options leave open.
        options: The other options, by the names that they have in the command.

    Raises:
        UsageError: The options contradict each other or the configuration.
    """
    _check_adopting(configuration, options)
    plan, settings = _plan(paths, files_from, options), _settings(configuration, options)
    if options["adopt"] and configuration:
        settings, adoption = _adopting(settings, configuration, options)
        require_outside(paths, adoption)
    return plan, settings


def _plan(paths: tuple[str, ...], files_from: BinaryIO | None, options: Mapping[str, Any]) -> ImportPlan:
    if not paths and not files_from:
        raise UsageError("nothing to import", "give a PATH, or --files-from FILE")
    if options["follow"] and files_from:
        raise UsageError(
            "--follow looks into folders, not into --files-from",
            "name the folders themselves",
        )
    shard, schedule = options["shard"], options["schedule"]
    return ImportPlan(
        paths=map(absolute, _all_paths(paths, files_from))
        if options["adopt"]
        else _all_paths(paths, files_from),
        jobs=options["jobs"],
        scheduler=options["dask"],
        shard=Shard.parse(shard, ShardBy(options["shard_by"])) if shard else None,
        journal=options["journal"],
        limits=Limits(options["max_files_per_s"], options["max_bytes_per_s"]),
        hours=Hours.parse(schedule) if schedule else None,
        follow=options["follow"],
        settle_s=options["settle"],
    )


def _all_paths(paths: tuple[str, ...], files_from: BinaryIO | None) -> Iterator[str]:
    yield from paths
    if files_from:
        yield from listed(files_from)


def _settings(configuration: OrthancConfiguration | None, options: Mapping[str, Any]) -> Settings:
    orthanc = configuration or OrthancConfiguration()
    # What is stored then is not what was received: no sum in the index could prove it.
    if orthanc.ingest_transcoding:
        raise UsageError(
            f'"IngestTranscoding" is "{orthanc.ingest_transcoding}": Orthanc would convert '
            "the files, import does not",
            "import without it, and let Orthanc transcode afterwards",
        )
    profile = dicom.Profile(
        orthanc_version=_version(options["orthanc_version"]),
        default_encoding=orthanc.default_encoding,
        extra_main_dicom_tags=tuple(orthanc.extra_main_dicom_tags.items()),
    )
    overwrite = options["overwrite"] or orthanc.overwrite_instances
    # Other machines write to the same index: each of them must let the others in.
    several_writers = bool(options["shard"] or options["dask"])
    settings = Settings(
        storage_dir=storage_folder(options["storage"], options["storage_dir"], configuration),
        profile=profile,
        compress=orthanc.storage_compression,
        store_md5=orthanc.store_md5,
        store_dicom=orthanc.store_dicom,
        link=Link(options["link"]),
        overwrite=index.Overwrite(overwrite.replace("-", "_")),
        sync=orthanc.sync_storage_area,
        concurrent=options["concurrent"] or several_writers,
        dry_run=options["dry_run"],
        stable_changes=options["stable_changes"],
        storage_given=bool(options["storage"] or options["storage_dir"]),
        batch_files=options["batch_files"],
    )
    # Link.AUTO copies where it cannot link; the others were asked for.
    if settings.link in (Link.REFLINK, Link.HARDLINK):
        _check_link(settings)
    return settings


def _check_adopting(orthanc: OrthancConfiguration | None, options: Mapping[str, Any]) -> None:
    """Refuse options that contradict --adopt, or need it."""
    if not options["adopt"]:
        if options["take_ownership"]:
            raise UsageError(
                "--take-ownership is about files that are adopted", "add --adopt, or leave it out"
            )
        return
    if orthanc is None:
        raise UsageError(
            "--adopt needs Orthanc's configuration, which says whether Orthanc can read adopted files",
            "add --config PATH",
        )
    for option, given in (
        ("--storage", options["storage"]),
        ("--storage-dir", options["storage_dir"]),
        ("--link", options["link"] != Link.AUTO.value),
    ):
        if given:
            raise UsageError(
                f"{option} says how files are stored, and --adopt leaves them where they lie",
                f"leave out {option}",
            )


def _adopting(
    settings: Settings, orthanc: OrthancConfiguration, options: Mapping[str, Any]
) -> tuple[Settings, Adoption]:
    """Return the settings to adopt files instead of storing them.

    Raises:
        UsageError: Orthanc could not read adopted files, or an option contradicts that.
    """
    if not settings.store_dicom:
        raise UsageError(
            '"StoreDicom" is false: that Orthanc keeps no DICOM files', "set it to true, or leave out --adopt"
        )
    section = advanced_storage.require(orthanc)
    heads, usual = area_of_heads(orthanc, section), orthanc.storage_directory
    replaces = options["follow"] or settings.overwrite is not index.Overwrite.NEVER
    if settings.compress and replaces and heads != usual:
        raise UsageError(
            f"{'--follow' if options['follow'] else '--overwrite'} may replace instances whose files are in {usual}, "
            f'and with "StorageCompression" something is stored in {heads}, too; --adopt works with one folder only',
            "leave it out",
        )
    # Else nothing is written: an archive on read-only media can be adopted.
    stores = settings.compress or replaces
    area = (heads if settings.compress else usual) if stores else None
    adoption = Adoption.of(orthanc, section, owned=options["take_ownership"])
    return replace(settings, adopt=adoption, storage_dir=area), adoption


def _version(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise UsageError(f"--orthanc-version is {text!r}, wanted three numbers such as 1.13.0")
    major, minor, patch = map(int, match.groups())
    return major, minor, patch


def _check_link(settings: Settings) -> None:
    if settings.compress:
        reason = '"StorageCompression" is on'
    elif settings.storage_dir is None:
        reason = "the files go into the database"
    else:
        return
    raise UsageError(
        f"--link {settings.link.value}: {reason}, so they cannot be linked",
        "leave out --link",
    )
