"""`pgorthanc storage`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pgorthanc_cli import commands, output, signals
from pgorthanc_cli.commands import Call, pace_options
from pgorthanc_cli.commands.type_options import SIZE_RATE, TIME
from pgorthanc_cli.errors import Interrupted, PartialFailure
from pgorthanc_cli.progress import Progress

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.placement import Moved, MoveSettings, Place
    from pgorthanc_cli.views.placement_move import Commands

_FOLDER = click.Path(file_okay=False, path_type=Path)


@commands.group("storage")
def command() -> None:
    """Show where the stored files are, and move them.

    \b
    Examples:
      pgorthanc storage show --config /etc/orthanc
      pgorthanc storage move --to filesystem --config /etc/orthanc
    """


@commands.command("show")
@click.option(
    "--by",
    type=click.Choice(["modality", "year"]),
    multiple=True,
    help="Also sum by this; reads more rows. Repeatable.",
)
def show(call: Call, *, by: tuple[Literal["modality", "year"], ...]) -> None:
    """Show where the attachments are, and how large they are.

    By area (files, large objects, storages of the advanced-storage plugin), kind and compression; also large objects
    that no attachment names, or that Orthanc's role cannot delete. Reads tables only, never a file.

    \b
    Examples:
      pgorthanc storage show --config /etc/orthanc
      pgorthanc storage show --config /etc/orthanc --by modality --by year
      pgorthanc storage show --host db1 --dbname orthanc --json
    """
    from pgorthanc_cli import placement
    from pgorthanc_cli.views import placement as views

    with call.target() as target:
        with output.steps(quiet=call.quiet) as report:
            survey = placement.show(target, by, report=report)
        check = ""
        if call.options["config"]:
            check = call.command_line("verify", "storage")
        elif {area.kind for area in survey.areas} == {"postgresql"}:
            check = call.command_line("verify", "storage", "--storage", "postgresql")
        call.emit_page(survey, views.page(survey, target.schema, check))


command.add_command(show)


@commands.command("move")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["filesystem", "postgresql", "advanced-storage"]),
    help="Where the attachments shall be: files, large objects, or a storage of the advanced-storage plugin.",
)
@click.option(
    "--storage-id",
    metavar="ID",
    help="With --to advanced-storage: the storage, a name in MultipleStorages.Storages.",
)
@click.option(
    "--compression",
    type=click.Choice(["none", "zlib"]),
    help="Store what is moved with or without compression.  [default: as it is]",
)
@click.option(
    "--storage-dir",
    type=_FOLDER,
    metavar="DIR",
    help="The folder of the files: the target, or with --to postgresql the source.  [default: by --config]",
)
@click.option(
    "--from",
    "source_kind",
    type=click.Choice(["postgresql", "advanced-storage"]),
    help="Where the attachments are, once --config no longer says so: after the switch.  [default: by --config]",
)
@click.option(
    "--from-dir",
    type=_FOLDER,
    metavar="DIR",
    help="Move from this folder to another one; with --from advanced-storage, the StorageDirectory before the "
    "switch.  [default: StorageDirectory, or large objects]",
)
@click.option(
    "--phase",
    type=click.Choice(["copy", "switch", "clean"]),
    default="copy",
    show_default=True,
    help="copy: while Orthanc is running; switch: while it is stopped; clean: remove the source.",
)
@pace_options.jobs
@click.option(
    "--max-rate", type=SIZE_RATE, metavar="SIZE/s", help="Move no more bytes each second, such as 50MB/s."
)
@click.option(
    "--study",
    "studies",
    multiple=True,
    metavar="ID",
    help="Copy only this study, by Orthanc's identifier; repeatable.",
)
@click.option(
    "--older-than",
    type=TIME,
    metavar="TIME",
    help="Copy only studies that nothing was added to for this long, such as 365d.",
)
@click.option(
    "--orphans",
    is_flag=True,
    help="With --phase clean: also remove large objects that no row of the index names.",
)
def move(call: Call, **options: Any) -> None:
    """Move attachments from one storage area to another.

    In three phases: copy (Orthanc may run), switch (Orthanc is stopped, for seconds; then it gets another
    configuration), clean (removes the source). Everything is read back and compared with the MD5 sums of the index;
    nothing is removed before the target is proved to have it. Run a phase again after an interruption: it goes on.

    \b
    Examples:
      pgorthanc storage move --to filesystem --config /etc/orthanc
      pgorthanc storage move --to filesystem --config /etc/orthanc --phase switch
      pgorthanc storage move --to postgresql --config /etc/orthanc -j 4
      pgorthanc storage move --to filesystem --compression zlib --storage-dir /data

    Exit codes: 0 the phase is done; 5 an Orthanc is connected; 6 some attachments failed; 130 interrupted.
    """
    from pgorthanc_cli import placement
    from pgorthanc_cli.views import placement_move as views

    with call.resolved() as resolved:
        settings = placement.from_options(resolved.orthanc, **options)
        moved = _move(call, resolved.target, settings)
        is_enabled = resolved.orthanc is not None and resolved.orthanc.advanced_storage is not None
    for warning in moved.warnings:
        call.warn(warning)
    page = views.page(moved, _next_commands(call, settings, is_enabled=is_enabled))
    call.emit_page(moved.document() if call.as_json else moved, page)
    if not moved.complete and not moved.failed:
        raise click.exceptions.Exit(Interrupted.exit_code)
    if moved.failed:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _move(call: Call, target: Target, settings: MoveSettings) -> Moved:
    """Run a phase with its progress; Ctrl-C ends it at the next safe point."""
    from pgorthanc_cli import placement
    from pgorthanc_cli.text import progress_line

    verb = {"copy": "copying", "switch": "switching", "clean": "cleaning"}[settings.phase]
    state = Progress(settings.phase, "", 0)

    def line(elapsed_s: float) -> str:
        return progress_line(verb, state.done or 0, state.total, elapsed_s)

    with (
        signals.stop_on_signal("" if call.quiet else signals.STOPPING.format("the move")) as stop,
        output.progress(line, lambda elapsed_s: line(elapsed_s).strip(), quiet=call.quiet) as show,
    ):

        def report(progress: Progress) -> None:
            nonlocal state
            state = progress
            show()

        return placement.move(target, settings, stop=stop, report=report)


def _next_commands(call: Call, settings: MoveSettings, *, is_enabled: bool) -> Commands:
    """Return what to run next, with the connection options of this call."""
    from pgorthanc_cli.placement.model import COMPRESSION_NAMES
    from pgorthanc_cli.views.placement_move import Commands

    source, target = settings.source.folder, settings.target.folder
    # With the plugin as an end, the configuration names the folders of both.
    ends = ["--to", settings.target.kind]
    if settings.target.storage is not None:
        ends += ["--storage-id", settings.target.storage]
    elif target or settings.source.storage is None:
        ends += ["--storage-dir", str(target or source)]
    if source and target and settings.source.storage is settings.target.storage is None:
        ends += ["--from-dir", str(source)]
    if settings.compression:
        ends += ["--compression", COMPRESSION_NAMES[settings.compression]]
    everything = call.command_line("storage", "move", *ends)
    # A part is selected again; the whole would be another move.
    for study in settings.studies:
        ends += ["--study", study]
    if settings.older_than_s is not None:
        ends += ["--older-than", f"{settings.older_than_s:g}s"]
    # The switch changes the configuration, which then no longer names this source.
    before = []
    if settings.source.storage is not None and settings.target.storage is None:
        before = ["--from", "advanced-storage", *(["--from-dir", str(source)] if target else [])]
    elif settings.source.folder is None and settings.target.storage is not None:
        before = ["--from", "postgresql"]
    files = [word for path in call.options["config"] for word in ("--config", str(path))]
    changes = _changes(settings, is_enabled=is_enabled)

    def verify(place: Place) -> str:
        area = ["--storage-dir", str(place.folder)] if place.folder else ["--storage", "postgresql"]
        # Only the configuration names all folders of the plugin.
        area = [] if place.storage is not None else area
        return call.command_line("verify", "storage", *area, "--list", "studies")

    can_be_switched = settings.is_told_by_rows or not settings.is_partial
    return Commands(
        switch=call.command_line("storage", "move", *ends, "--phase", "switch") if can_be_switched else "",
        everything=everything,
        clean=call.command_line("storage", "move", *ends, *before, "--phase", "clean"),
        again=call.again(),
        verify=verify(settings.target),
        verify_source=verify(settings.source),
        configure=tuple(f"pgorthanc config set {each} {shlex.join(files)}" for each in changes if files),
        settings=tuple(changes),
    )


def _changes(settings: MoveSettings, *, is_enabled: bool) -> list[str]:
    """Return the changes of Orthanc's configuration that the switch requires."""
    source, target = settings.source.folder, settings.target.folder
    changes = []
    if not (source and target):
        changes.append(f"PostgreSQL.EnableStorage {str(target is None).lower()}")
    if settings.target.storage is not None and not is_enabled:
        changes.append("AdvancedStorage.Enable true")
    if settings.source.storage is not None and settings.target.storage is None:
        changes.append("AdvancedStorage.Enable false")
    if target and settings.target.storage is None:
        changes.append(f"StorageDirectory {shlex.quote(str(target))}")
    return changes


command.add_command(move)
