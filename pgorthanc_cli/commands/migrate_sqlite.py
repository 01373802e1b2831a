"""`pgorthanc migrate-sqlite`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.errors import Interrupted, PartialFailure, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.config import OrthancConfiguration
    from pgorthanc_cli.migrate import Converted, Event, Settings


@commands.command("migrate-sqlite")
@click.argument("index", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--to-revision",
    "revision",
    type=int,
    metavar="N",
    help="Revision of the new index.  [default: the newest, or that of an empty one that is there]",
)
@click.option("--plugin", metavar="V", help="Or the release of Orthanc's plugin that it is wanted for.")
@click.option(
    "--server-identifier", metavar="ID", help="Orthanc's DatabaseServerIdentifier.  [default: by --config]"
)
@click.option("--check", "check_only", is_flag=True, help="Read everything and report, without a database.")
@click.option("--strict", is_flag=True, help="Refuse what would have to be repaired or skipped.")
@click.option("--restart", is_flag=True, help="Begin anew where an unfinished conversion is found.")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Read everything back and compare."
)
@click.option("--verify-files", is_flag=True, help="Also compare the size of each attachment's file.")
@click.option("--verify-hashes", is_flag=True, help="And its MD5.")
@click.option(
    "--storage",
    type=click.Choice(["filesystem", "postgresql"]),
    default="filesystem",
    show_default=True,
    help="postgresql: also copy the files into large objects.",
)
@click.option(
    "--storage-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Orthanc's StorageDirectory.  [default: by --config]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all that was repaired or skipped to FILE.json or FILE.html.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes."
)
def command(
    call: Call,
    *,
    index: Path | None,
    check_only: bool,
    plugin: str | None,
    storage: str,
    **given: Any,
) -> None:
    """Convert Orthanc's default SQLite index to PostgreSQL.

    INDEX is the file `index` of Orthanc's IndexDirectory; --config finds it, too. It is only read, and the files of the
    storage stay where they are. The target must be an empty index, or none: it is made then. Interrupted at any point,
    run it again: it goes on. See docs/migrate-sqlite.md.
    """
    from pgorthanc_cli import migrate
    from pgorthanc_cli.schema import catalog

    if plugin is not None:
        if given["revision"] is not None:
            raise UsageError(
                "--to-revision and --plugin both say which revision is wanted", "give one of them"
            )
        given["revision"] = catalog.revision_of_plugin(plugin)
    settings = migrate.Settings(large_objects=storage == "postgresql", **given)
    with call.resolved(create=not check_only, needed=not check_only) as found:
        settings = _completed(settings, found.orthanc)
        path = _index(index, found.orthanc)
        with commands.stopping() as stop:
            events = (
                migrate.check(path, settings, stop)
                if check_only
                else migrate.convert(found.target, path, settings, stop)
            )
            converted = _run(call, events, stop)
    call.emit(converted)
    _require_whole(converted)


def _completed(settings: Settings, orthanc: OrthancConfiguration | None) -> Settings:
    """Orthanc's configuration for what the options leave open."""
    if orthanc is None:
        return settings
    if settings.storage_dir is None and (
        settings.verify_files or settings.verify_hashes or settings.large_objects
    ):
        orthanc.require_own_storage()
    return replace(
        settings,
        server_identifier=settings.server_identifier or orthanc.database_server_identifier,
        storage_dir=settings.storage_dir or orthanc.storage_directory,
    )


def _index(given: Path | None, orthanc: OrthancConfiguration | None) -> Path:
    if given is None and orthanc is None:
        raise UsageError("which index?", "name the file, or Orthanc's configuration with --config")
    path = given or orthanc.index_directory  # type: ignore[union-attr]
    return path / "index" if path.is_dir() else path


def _run(call: Call, events: Iterator[Event], stop: threading.Event) -> Converted:
    """Tell what goes on; Ctrl-C ends it at the next safe point."""
    from pgorthanc_cli import migrate
    from pgorthanc_cli.workers import Stopped

    teller = upgrade_options.Teller(quiet=call.quiet)
    with suppress(Stopped), closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, migrate.Converted):
                return event
            if stop.is_set():
                break
            teller.tell(event)
    raise Interrupted("interrupted; what was copied is committed", "run it again to go on")


def _require_whole(converted: Converted) -> None:
    files = converted.files
    wrong = [
        *([f"{converted.skipped_rows} rows were skipped"] if converted.skipped_rows else []),
        *([f"{files.missing} files are missing"] if files and files.missing else []),
        *([f"{files.differing} files are not what the index says"] if files and files.differing else []),
    ]
    if wrong:
        raise PartialFailure("; ".join(wrong), "see skipped and files in --json, or --report FILE.html")
