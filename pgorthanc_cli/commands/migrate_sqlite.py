"""`pgorthanc migrate-sqlite`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands, files, signals
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.errors import Interrupted, UsageError
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from pgorthanc_cli.config import OrthancConfiguration
    from pgorthanc_cli.migrate import ConversionSettings, Converted
    from pgorthanc_cli.progress import Progress


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
    report: Path | None,
    **options: Any,
) -> None:
    """Convert Orthanc's default SQLite index to PostgreSQL.

    INDEX is the file `index` of Orthanc's IndexDirectory; --config finds it, too. It is only read, and the files of the
    storage stay where they are. The target must be an empty index, or none: it is made then. Interrupted at any point,
    run it again: it goes on. See docs/migrate-sqlite.md.
    """
    from pgorthanc_cli import migrate
    from pgorthanc_cli.schema import catalog
    from pgorthanc_cli.views import migrate as views
    from pgorthanc_cli.workers import Stopped

    if plugin is not None:
        if options["revision"] is not None:
            raise UsageError(
                "--to-revision and --plugin both say which revision is wanted", "give one of them"
            )
        options["revision"] = catalog.revision_of_plugin(plugin)
    _check_report(report)
    settings = migrate.ConversionSettings(large_objects=storage == "postgresql", **options)
    printer = upgrade_options.ProgressPrinter(quiet=call.quiet)
    with (
        call.resolved(create=not check_only, needed=not check_only) as resolved,
        signals.stop_on_signal() as stop,
    ):
        settings = _completed(settings, resolved.orthanc)
        path = _index(index, resolved.orthanc)

        def show(progress: Progress) -> None:
            if stop.is_set():
                raise Stopped
            printer.update(progress)

        def save(converted: Converted, findings: Iterator[dict[str, str | None]]) -> None:
            if report:
                write_report(report, converted, findings)

        try:
            if check_only:
                converted = migrate.check(path, settings, report=show, stop=stop, save=save)
            else:
                converted = migrate.convert(
                    resolved.target, path, settings, report=show, stop=stop, save=save
                )
        except Stopped:
            raise Interrupted("interrupted; what was copied is committed", "run it again to go on") from None
    again = _again(index, storage, options)
    page = views.page(
        converted,
        call.command_line("migrate-sqlite", *again),
        call.command_line("verify", "schema", "--deep"),
    )
    call.emit_page(converted, page)
    files_differ = converted.files and (converted.files.missing or converted.files.differing)
    if converted.skipped_rows or files_differ:
        raise click.exceptions.Exit(6)


def _again(index: Path | None, storage: str, options: Mapping[str, object]) -> list[str]:
    """Return the words that convert what was checked."""
    words = [str(index)] if index else []
    names = ("server_identifier", "storage_dir")
    flags = {"revision": "--to-revision", **{name: f"--{name.replace('_', '-')}" for name in names}}
    for name, flag in flags.items():
        words += [flag, str(options[name])] if options[name] else []
    return words + (["--storage", storage] if storage != "filesystem" else [])


def _completed(settings: ConversionSettings, orthanc: OrthancConfiguration | None) -> ConversionSettings:
    """Return the settings with the values of Orthanc's configuration that no option overrides."""
    if orthanc is None:
        return settings
    needs_files = settings.verify_files or settings.verify_hashes or settings.large_objects
    if settings.storage_dir is None and needs_files:
        orthanc.require_own_storage()
    return replace(
        settings,
        server_identifier=settings.server_identifier or orthanc.database_server_identifier,
        storage_dir=settings.storage_dir or orthanc.storage_directory,
    )


def _index(argument: Path | None, orthanc: OrthancConfiguration | None) -> Path:
    if argument is None and orthanc is None:
        raise UsageError("which index?", "name the file, or Orthanc's configuration with --config")
    path = argument or orthanc.index_directory  # type: ignore[union-attr]
    return path / "index" if path.is_dir() else path


def _check_report(path: Path | None) -> None:
    """Raise UsageError before the work if the report cannot be written after it."""
    if path is None:
        return
    if path.suffix not in (".json", ".html"):
        raise UsageError(f"--report {path}: wanted a name that ends in .json or .html")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{path.parent} does not exist or is not writable"
        raise UsageError(
            f"--report {printable(str(path))} cannot be written: {printable(reason)}",
            "choose a file in a folder that you may write to",
        )


def write_report(path: Path, converted: Converted, findings: Iterator[dict[str, str | None]]) -> None:
    """Write the result and all findings to a file, as JSON or HTML by its suffix."""
    from pgorthanc_cli.views import migrate

    view = migrate.json_report if path.suffix == ".json" else migrate.html_report
    with files.replacing(path) as stream:
        for piece in view(converted, findings):
            stream.write(piece.encode("utf-8", "backslashreplace"))
