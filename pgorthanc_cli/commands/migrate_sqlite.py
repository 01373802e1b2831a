"""`pgorthanc migrate-sqlite`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands, signals
from pgorthanc_cli.commands import Call, pace_options, upgrade_options
from pgorthanc_cli.errors import Interrupted, UsageError
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from pgorthanc_cli.config import OrthancConfiguration
    from pgorthanc_cli.migrate import ConversionSettings, Converted
    from pgorthanc_cli.progress import Progress


_FILE = click.Path(dir_okay=False, path_type=Path)
_STOPPING = signals.STOPPING.format("at the next safe point")


@commands.command("migrate-sqlite")
@click.argument("index", required=False, type=click.Path(exists=True, path_type=Path))
@commands.option(
    "--revision",
    aliases=["--to-revision"],
    type=int,
    metavar="N",
    help="Revision of the new index.  [default: the newest, or that of the empty index in the target]",
)
@click.option("--plugin", metavar="VERSION", help="Or the PostgreSQL plugin that will use it.")
@click.option(
    "--server-identifier", metavar="ID", help="Orthanc's DatabaseServerIdentifier.  [default: by --config]"
)
@commands.option(
    "-n",
    "--dry-run",
    "check_only",
    aliases=["--check"],
    is_flag=True,
    help="Read everything and report, without a database.",
)
@click.option("--strict", is_flag=True, help="Refuse what would have to be repaired or skipped.")
@commands.option(
    "--start-over",
    "restart",
    aliases=["--restart"],
    is_flag=True,
    help="Discard an unfinished conversion, and start from the beginning.",
)
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
    metavar="DIR",
    help="Orthanc's StorageDirectory.  [default: by --config]",
)
@click.option(
    "--html",
    type=_FILE,
    metavar="FILE",
    help="Write a report with all repairs and skipped rows as a web page.",
)
@click.option("--report-json", type=_FILE, metavar="FILE", help="Write the same report as JSON.")
@click.option("--report", type=_FILE, hidden=True)  # the option before, HTML or JSON by the suffix
@pace_options.jobs
def command(
    call: Call,
    *,
    index: Path | None,
    check_only: bool,
    plugin: str | None,
    storage: str,
    html: Path | None,
    report_json: Path | None,
    report: Path | None,
    **options: Any,
) -> None:
    """Convert Orthanc's default SQLite index to PostgreSQL.

    INDEX is the file `index` of Orthanc's IndexDirectory; --config finds it, too. It is only read, and the files of the
    storage stay where they are. The target must be an empty index, or none: it is created then. Interrupted at any
    point, run it again: it continues. See docs/migrate-sqlite.md.

    \b
    Examples:
      pgorthanc migrate-sqlite --config /etc/orthanc --dry-run
      pgorthanc migrate-sqlite --config /etc/orthanc
      pgorthanc migrate-sqlite /var/lib/orthanc/index --host db1 --username orthanc

    Exit codes: 0 everything was converted and verified; 5 another program uses one of the two; 6 rows were skipped, or
    files are missing; 130 interrupted, run it again to continue.
    """
    from pgorthanc_cli import migrate
    from pgorthanc_cli.schema import catalog
    from pgorthanc_cli.views import migrate as views
    from pgorthanc_cli.workers import Stopped

    if plugin is not None:
        if options["revision"] is not None:
            raise UsageError("--revision and --plugin both name the target revision", "give one of them")
        options["revision"] = catalog.revision_of_plugin(plugin)
    report = _report(html, report_json, report)
    settings = migrate.ConversionSettings(large_objects=storage == "postgresql", **options)
    printer = upgrade_options.ProgressPrinter(quiet=call.quiet)
    next_commands = (
        call.command_line("migrate-sqlite", *_again(index, storage, options)),
        call.command_line("verify", "schema", "--deep"),
    )
    with (
        call.resolved(create=not check_only, needed=not check_only) as resolved,
        signals.stop_on_signal("" if call.quiet else _STOPPING) as stop,
    ):
        settings = _completed(settings, resolved.orthanc)
        path = _index(index, resolved.orthanc)

        def show(progress: Progress) -> None:
            if stop.is_set():
                raise Stopped
            printer.update(progress)

        def save(converted: Converted, findings: Iterator[dict[str, str | None]]) -> None:
            if report:
                write_report(report, converted, findings, *next_commands)

        try:
            if check_only:
                converted = migrate.check(path, settings, report=show, stop=stop, save=save)
            else:
                converted = migrate.convert(
                    resolved.target, path, settings, report=show, stop=stop, save=save
                )
        except Stopped:
            raise Interrupted("interrupted; what was copied is committed", "run it again to go on") from None
    call.emit_page(converted, views.page(converted, *next_commands))
    files_differ = converted.files and (converted.files.missing or converted.files.differing)
    if converted.skipped_rows or files_differ:
        raise click.exceptions.Exit(6)


def _again(index: Path | None, storage: str, options: Mapping[str, object]) -> list[str]:
    """Return the words that convert what was checked."""
    words = [str(index)] if index else []
    for name in ("revision", "server_identifier", "storage_dir"):
        value = options[name]
        words += [f"--{name.replace('_', '-')}", str(value)] if value else []
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
        storages=orthanc.advanced_storage,
    )


def _index(argument: Path | None, orthanc: OrthancConfiguration | None) -> Path:
    if argument is None and orthanc is None:
        raise UsageError("which index?", "name the file, or Orthanc's configuration with --config")
    path = argument or orthanc.index_directory  # type: ignore[union-attr]
    return path / "index" if path.is_dir() else path


def _report(html: Path | None, as_json: Path | None, either: Path | None) -> Path | None:
    """Return the file of the report.

    Raises:
        UsageError: Before the work: it could not be written after it.
    """
    given = {"--html": html, "--report-json": as_json, "--report": either}
    files_given = [(name, path) for name, path in given.items() if path is not None]
    if not files_given:
        return None
    if len(files_given) > 1:
        names = " and ".join(name for name, _ in files_given)
        raise UsageError(f"{names} contradict each other", "write one report")
    ((option, path),) = files_given
    suffixes = {"--html": (".html",), "--report-json": (".json",)}.get(option, (".json", ".html"))
    if path.suffix not in suffixes:
        raise UsageError(f"{option} {printable(str(path))}: the name must end in {' or '.join(suffixes)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{path.parent} does not exist or is not writable"
        raise UsageError(
            f"{option} {printable(str(path))} cannot be written: {printable(reason)}",
            "choose a file in a folder that you may write to",
        )
    return path


def write_report(
    path: Path,
    converted: Converted,
    findings: Iterator[dict[str, str | None]],
    again: str = "",
    verify: str = "",
) -> None:
    """Write the result and all findings to a file, as JSON or HTML by its suffix.

    `again` and `verify` are the commands to run next.
    """
    from pgorthanc_cli import files, render
    from pgorthanc_cli.views import migrate

    if path.suffix == ".json":
        pieces = migrate.json_report(converted, findings)
    else:
        page = migrate.page(converted, again, verify)
        pieces = render.html_pieces(page, migrate.all_findings(findings))
    with files.replacing(path) as stream:
        for piece in pieces:
            # A path that is not UTF-8 holds surrogates (PEP 383): UTF-8 cannot encode them.
            stream.write(piece.encode("utf-8", "backslashreplace"))
