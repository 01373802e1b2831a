"""`pgorthanc support-bundle`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call


@dataclass(frozen=True)
class _Written:
    file: Path
    holds: tuple[str, ...]


@commands.command("support-bundle")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def command(call: Call, *, file: Path) -> None:
    """Write all that somebody who helps wants to see into one archive, FILE (.tar.gz).

    It holds what doctor, status, verify schema and check-lock say, sizes and activity of tables and indexes,
    settings and sessions; with --config also Orthanc's options, masked. No row of the index, no statement of a session,
    no password, nothing about patients.
    """
    from pgorthanc_cli import doctor, render
    from pgorthanc_cli.views import bundle
    from pgorthanc_cli.views import doctor as views

    with call.target() as target:
        config = call.options["config"]
        health = doctor.examine(target)
        page = render.html(views.page(health, call.command_line, verbose=True))
        configuration = Path(config) if config else None
        names = doctor.bundle(target, health, file, configuration, page=page)
    call.emit_page(_Written(file, names), bundle.page(file, names))
