"""What the options of `pgorthanc import` mean; see `import_`."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from pgorthanc_cli import files
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.files import PRIVATE
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from pgorthanc_cli.config import OrthancConfiguration, Resolved
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.ingest import Batch, Feed, Settings
    from pgorthanc_cli.ingest.feed import Run

RENEW_S = 60.0  # between two states of the report


def settings(found: Resolved, options: Mapping[str, Any], *, concurrent: bool) -> Settings:
    """The options, and Orthanc's configuration for what they leave open."""
    from pgorthanc_cli import dicom, index, ingest
    from pgorthanc_cli.config import OrthancConfiguration

    orthanc = found.orthanc or OrthancConfiguration()
    if orthanc.ingest_transcoding:
        raise UsageError(
            f'"IngestTranscoding" is "{orthanc.ingest_transcoding}": Orthanc would convert the files, import does not',
            "import without it, and let Orthanc transcode afterwards",
        )
    profile = dicom.Profile(
        orthanc_version=_version(options["orthanc_version"]),
        default_encoding=orthanc.default_encoding,
        extra_main_dicom_tags=tuple(orthanc.extra_main_dicom_tags.items()),
    )
    made = ingest.Settings(
        storage_dir=_storage_dir(options["storage"], options["storage_dir"], found.orthanc),
        profile=profile,
        compress=orthanc.storage_compression,
        store_md5=orthanc.store_md5,
        store_dicom=orthanc.store_dicom,
        link=ingest.Link(options["link"]),
        overwrite=index.Overwrite((options["overwrite"] or orthanc.overwrite_instances).replace("-", "_")),
        sync=orthanc.sync_storage_area,
        concurrent=options["concurrent"] or concurrent,
        dry_run=options["dry_run"],
        stable_changes=options["stable_changes"],
        storage_given=bool(options["storage"] or options["storage_dir"]),
    )
    _check_link(made)
    return made


def _check_link(made: Settings) -> None:
    from pgorthanc_cli.ingest import Link

    if made.link in (Link.REFLINK, Link.HARDLINK) and (made.compress or made.storage_dir is None):
        why = '"StorageCompression" is on' if made.compress else "the files go into the database"
        raise UsageError(f"--link {made.link.value}: {why}, so they cannot be linked", "leave out --link")


def _version(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise UsageError(f"--orthanc-version is {text!r}, wanted three numbers such as 1.13.0")
    major, minor, patch = map(int, match.groups())
    return major, minor, patch


def _storage_dir(
    storage: str | None, storage_dir: Path | None, orthanc: OrthancConfiguration | None
) -> Path | None:
    """The folder of the filesystem area; None: the files become large objects."""
    if storage == "postgresql":
        if storage_dir:
            raise UsageError(
                "--storage postgresql and --storage-dir contradict each other", "give one of them"
            )
        return None
    if storage_dir:
        return storage_dir
    if orthanc is None:
        raise UsageError(
            "where do the DICOM files go?",
            "give --storage-dir FOLDER, --storage postgresql, or Orthanc's configuration with --config",
        )
    if storage is None:
        orthanc.require_own_storage()
    return None if orthanc.enable_storage and storage is None else orthanc.storage_directory


def feed(paths: tuple[str, ...], files_from: BinaryIO | None, options: Mapping[str, Any]) -> Feed:
    """Which files, and when."""
    from pgorthanc_cli import ingest

    if options["follow"] and files_from:
        raise UsageError("--follow looks into folders, not into --files-from", "name the folders themselves")
    shard, schedule = options["shard"], options["schedule"]
    return ingest.Feed(
        paths=_all(paths, files_from),
        shard=ingest.Shard.parse(shard, ingest.By(options["shard_by"])) if shard else None,
        journal=options["journal"],
        limits=ingest.Limits(options["max_files_per_s"], options["max_mb_per_s"]),
        hours=ingest.Hours.parse(schedule) if schedule else None,
        follow=options["follow"],
        settle_s=options["settle"],
    )


def _all(paths: tuple[str, ...], files_from: BinaryIO | None) -> Iterator[str]:
    from pgorthanc_cli import ingest

    yield from paths
    if files_from:
        yield from ingest.listed(files_from)


def run(target: Target, made: Settings, jobs: int, dask: str | None, stop: threading.Event) -> Run:
    """The way to import what the feed brings: here, or on a cluster."""
    from pgorthanc_cli import ingest
    from pgorthanc_cli.ingest import cluster

    if dask:
        away = partial(cluster.run, target, settings=made, scheduler=dask, stop=stop)
        return lambda sources, *, few: away(sources)
    here = partial(ingest.run_sources, target, settings=made, stop=stop)
    return lambda sources, *, few: here(sources, jobs=1 if few else jobs)


@contextmanager
def listing(path: Path | None) -> Iterator[Callable[[Batch], None]]:
    """Yields what lists the refused files of batches, for the owner's eyes: one line each, path, tab, reason.

    Each batch is written as soon as it is done. Paths and reasons are escaped as `text.printable` does it.
    """
    if path is None:
        yield lambda batch: None
        return
    with _private(path) as stream:

        def add(batch: Batch) -> None:
            try:
                stream.writelines(f"{r.path}\t{printable(r.reason)}\n" for r in batch.refusals)
                stream.flush()
            except OSError as error:
                raise _unwritable("list of refused files", path, "--refused", error) from None

        yield add


@contextmanager
def _private(path: Path) -> Iterator[TextIO]:
    """A new or emptied file that only its owner can read; or a device, a pipe, standard output."""
    if str(path) == "-":
        yield sys.stdout
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, PRIVATE)
            os.ftruncate(descriptor, 0)
    except OSError as error:
        raise _unwritable("list of refused files", path, "--refused", error) from None
    with open(descriptor, "w", encoding="utf-8") as stream:
        yield stream


def _unwritable(what: str, path: Path, option: str, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write the {what} to {printable(str(path))}: {error.strerror or error}",
        f"name another file with {option}",
    )


@contextmanager
def reporting(
    path: Path | None, roots: tuple[str, ...], stop: threading.Event, facts: dict[str, str], *, names: bool
) -> Iterator[Callable[[Batch], None]]:
    """Yields what takes the batches of a run; the page about it is written when the block ends, however it ends.

    It is renewed each minute until then, for those who look at it meanwhile.
    """
    if path is None:
        yield lambda batch: None
        return
    from pgorthanc_cli import report

    mode = _writable(path, names=names)
    gathered = report.Gathered(roots, names=names)
    written = time.monotonic()

    def write(ending: str) -> None:
        page = report.page(gathered, title="Import into Orthanc", ending=ending, facts=facts)
        files.replace(path, page, mode=mode)

    def add(batch: Batch) -> None:
        nonlocal written
        gathered.add(batch)
        if time.monotonic() - written > RENEW_S:
            write("At work.")
            written = time.monotonic()

    ending = "Ended by an unexpected error."
    try:
        yield add
        ending = "Interrupted, and to be run again." if stop.is_set() else "Complete."
    except PgOrthancError as error:
        ending = f"Ended by an error: {error.message}."
        raise
    finally:
        write(ending)


def _writable(path: Path, *, names: bool) -> int:
    """Find out before the work if a page can be written; return its permissions: private if it names people."""
    mask = os.umask(0o077)
    os.umask(mask)
    mode = PRIVATE if names else 0o666 & ~mask
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, mode))
    except OSError as error:
        raise _unwritable("report", path, "--report", error) from None
    return mode


def facts(target: Target, made: Settings, options: Mapping[str, object]) -> dict[str, str]:
    """What the report says about how it was done."""
    told = {
        "database": str(target),
        "files in": str(made.storage_dir.absolute()) if made.storage_dir else "large objects of the database",
        "rows as written by": f"Orthanc {'.'.join(map(str, made.profile.orthanc_version))}",
        "what is stored already": {
            "never": "stays",
            "always": "is replaced",
            "if_changed": "is replaced if changed",
        }[made.overwrite.value],
        "mode": "a rehearsal: nothing was written" if made.dry_run else "",
        "beside others": "yes" if made.concurrent else "",
        **{name: str(options[name] or "") for name in ("shard", "dask", "schedule")},
        "at most": " and ".join(
            f"{options[name]:g} {unit}"
            for name, unit in (("max_files_per_s", "files/s"), ("max_mb_per_s", "MB/s"))
            if options[name]
        ),
    }
    return {name: value for name, value in told.items() if value}
