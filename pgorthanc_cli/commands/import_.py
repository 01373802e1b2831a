"""`pgorthanc import`."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.errors import Interrupted, PartialFailure, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.config import OrthancConfiguration, Resolved
    from pgorthanc_cli.ingest import Settings


@commands.command("import")
@click.argument("paths", nargs=-1, type=click.Path(exists=True), metavar="PATH...")
@click.option(
    "--files-from",
    type=click.File("rb"),
    metavar="FILE",
    help="Also import the paths listed in FILE (- for stdin).",
)
@click.option(
    "--storage",
    type=click.Choice(["filesystem", "postgresql"]),
    help="Where the DICOM files go.  [default: by --config]",
)
@click.option(
    "--storage-dir", type=click.Path(file_okay=False, path_type=Path), help="Orthanc's StorageDirectory."
)
@click.option(
    "--overwrite", type=click.Choice(["never", "always", "if-changed"]), help="What is stored already."
)
@click.option(
    "--orthanc-version",
    metavar="X.Y.Z",
    default="1.13.0",
    show_default=True,
    help="Write what this Orthanc would.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes."
)
@click.option("--concurrent", is_flag=True, help="Work beside Orthancs that use the database.")
@click.option("--stable-changes", is_flag=True, help="Log the Stable* changes at the end, as Orthanc would.")
@click.option(
    "--refused", type=click.File("w"), metavar="FILE", help="Write what was refused, and why, to FILE."
)
@click.option("--dry-run", is_flag=True, help="Read and report, write nothing.")
def command(
    call: commands.Call,
    paths: tuple[str, ...],
    files_from: BinaryIO | None,
    refused: TextIO | None,
    jobs: int,
    **options: object,
) -> None:
    """Import DICOM files, folders, ZIP and gzip archives.

    Writes what Orthanc writes when it receives the same files one after the other; see docs/import.md.
    Interrupted at any point, run it again: it goes on where it stopped.
    """
    from pgorthanc_cli import ingest

    if not paths and not files_from:
        raise click.UsageError("nothing to import: give a PATH, or --files-from FILE")
    with call.resolved() as found, commands.stopping() as stop, output.progress(quiet=call.quiet) as bar:
        tally = ingest.Tally()
        settings = _settings(found, **options)  # type: ignore[arg-type]
        if bar.shown and not files_from:
            threading.Thread(target=_count, args=(paths, bar, stop), daemon=True).start()
        for batch in ingest.run(found.target, _all(paths, files_from), settings, jobs=jobs, stop=stop):
            tally.add(batch)
            bar.add(batch.files, batch.bytes)
            for warning in batch.warnings:
                call.warn(warning)
    report = tally.report()
    if refused:
        refused.writelines(f"{r.path}\t{r.reason}\n" for r in report.refusals)
    call.emit(report)
    if stop.is_set():
        raise Interrupted("interrupted; what was counted is committed", "run it again to go on")
    if report.refused:
        raise PartialFailure(
            f"{report.refused} files were refused", "see refusals in --json, or --refused FILE"
        )


def _settings(
    found: Resolved,
    *,
    storage: str | None,
    storage_dir: Path | None,
    overwrite: str | None,
    orthanc_version: str,
    **flags: bool,
) -> Settings:
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
        orthanc_version=_version(orthanc_version),
        default_encoding=orthanc.default_encoding,
        extra_main_dicom_tags=tuple(orthanc.extra_main_dicom_tags.items()),
    )
    return ingest.Settings(
        storage_dir=_storage_dir(storage, storage_dir, found.orthanc),
        profile=profile,
        compress=orthanc.storage_compression,
        store_md5=orthanc.store_md5,
        store_dicom=orthanc.store_dicom,
        overwrite=index.Overwrite(overwrite.replace("-", "_") if overwrite else orthanc.overwrite_instances),
        sync=orthanc.sync_storage_area,
        **flags,
    )


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
    return None if orthanc.enable_storage and storage is None else orthanc.storage_directory


def _count(paths: tuple[str, ...], bar: output.Progress, stop: threading.Event) -> None:
    """Count ahead, beside the work, so that the time left is known."""
    from pgorthanc_cli import ingest

    total = 0
    for total, _ in enumerate(ingest.walk(paths), 1):
        if stop.is_set():
            return
        if total % 1000 == 0:
            bar.expect(total)
    bar.expect(total)


def _all(paths: tuple[str, ...], files_from: BinaryIO | None) -> Iterator[str]:
    from pgorthanc_cli import ingest

    yield from paths
    if files_from:
        yield from ingest.listed(files_from)
