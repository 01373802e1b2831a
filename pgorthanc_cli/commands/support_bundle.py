"""`pgorthanc support-bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call


@commands.command("support-bundle")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def command(call: Call, *, file: Path) -> None:
    """Collect diagnostics in a file, without patient data.

    FILE (.tar.gz) holds what doctor, status, storage show, verify schema and check-lock report, sizes and activity of
    tables and indexes, settings and sessions; with --config also Orthanc's options, masked. No row of the index, no
    statement of a session, no password, nothing about patients. What the server needs more than 30 seconds for is
    left out, and named.

    \b
    Examples:
      pgorthanc support-bundle --config /etc/orthanc bundle.tar.gz
      pgorthanc support-bundle --host db1 --username orthanc bundle.tar.gz
    """
    from pgorthanc_cli import doctor, render
    from pgorthanc_cli.config import documents
    from pgorthanc_cli.views import bundle
    from pgorthanc_cli.views import doctor as views

    with call.target() as target:
        config = call.options["config"]
        health = doctor.examine(target)
        page = render.html(views.page(health, call.command_line, verbose=True))
        configuration = documents.Paths.of(config) if config else None
        with output.steps(quiet=call.quiet) as report:
            written = doctor.bundle(target, health, file, configuration, page=page, report=report)
    call.emit_page(written, bundle.page(written, call.command_line))
