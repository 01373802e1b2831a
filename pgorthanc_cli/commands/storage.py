"""`pgorthanc storage`."""

from __future__ import annotations

from typing import Literal

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call


@commands.group("storage")
def command() -> None:
    """Show where the stored files are, and move them.

    \b
    Examples:
      pgorthanc storage show --config /etc/orthanc
      pgorthanc storage show --config /etc/orthanc --by modality
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
        shown = placement.show(target, by)
        check = ""
        if call.options["config"]:
            check = call.command_line("verify", "storage")
        elif {area.kind for area in shown.areas} == {"postgresql"}:
            check = call.command_line("verify", "storage", "--storage", "postgresql")
        call.emit_page(shown, views.page(shown, target.schema, check))


command.add_command(show)
