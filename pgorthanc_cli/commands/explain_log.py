"""`pgorthanc explain-log`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call


@commands.command("explain-log", connection=False)
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--config",
    metavar="PATH",
    default="/etc/orthanc",
    envvar="PGORTHANC_CONFIG",
    show_default=True,
    help="Orthanc's configuration, for the suggested commands; it is not read.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write FILE as a web page.",
)
def command(call: Call, *, file: str, config: str, html: Path | None) -> None:
    """Explain the PostgreSQL messages in an Orthanc log.

    Shows each message once: how often it occurs, its first and last time, what it means,
    and which command helps. FILE is the log, of any size; - reads standard input. Names and
    values in the log, which may be those of patients, are never shown.

    \b
    Examples:
      pgorthanc explain-log /var/log/orthanc/Orthanc.log
      journalctl -u orthanc --since yesterday | pgorthanc explain-log -
      docker logs orthanc 2>&1 | pgorthanc explain-log -

    Exit codes: 0 no problems; 6 problems, warnings, or unknown errors and warnings.
    """
    from pgorthanc_cli import files, orthanc_log, render
    from pgorthanc_cli.views import orthanc_log as views

    if file == "-":
        explained = orthanc_log.explain(sys.stdin.buffer, "standard input")
    else:
        with os.fdopen(files.open_to_read(file), "rb") as stream:
            explained = orthanc_log.explain(stream, file)
    page = views.page(explained, config, verbose=call.verbose)
    if html:
        files.replace(html, render.html(page))
    call.emit_page(explained, page)
    if explained.status != "ok":
        raise click.exceptions.Exit(6)
