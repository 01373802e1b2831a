"""`pgorthanc doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import ConnectError, PartialFailure

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _help_values() -> dict[str, str]:
    from pgorthanc_cli import doctor

    return {"checks": ", ".join(doctor.check_names())}


@commands.command("doctor", help_values=_help_values)
@click.argument("checks", nargs=-1, metavar="[CHECK]...")
@commands.depth_option(
    "sample",
    "rows",
    default="sample",
    explanation="rows: also recount statistics and child counts, and read the rows of all stored files and "
    "indexes of text.",
)
@click.option(
    "--storage-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Orthanc's StorageDirectory, if it is on this machine.  [default: by --config]",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The journal of verify storage, for the check storage.",
)
@click.option("--prometheus", type=_FILE, metavar="FILE", help="Also write FILE for a textfile collector.")
@click.option("--html", type=_FILE, metavar="FILE", help="Also write FILE as a web page.")
@commands.nagios_option
def command(
    call: Call,
    *,
    checks: tuple[str, ...],
    depth: str,
    storage_dir: Path | None,
    journal: Path | None,
    prometheus: Path | None,
    html: Path | None,
    nagios: bool,
) -> None:
    """Check the server and the index, and suggest fixes.

    All checks, or those that are named: {checks}. Changes nothing. A check that cannot be run is
    marked ?, with the reason or the missing privilege.

    \b
    Examples:
      pgorthanc doctor --config /etc/orthanc
      pgorthanc doctor --config /etc/orthanc disk locks
      pgorthanc doctor --config /etc/orthanc --deep --html doctor.html

    Exit codes: 0 no warnings and no problems, though some checks may not have been run; 3 the server cannot be
    reached; 6 warnings or problems.
    """
    from pgorthanc_cli import doctor, files, render
    from pgorthanc_cli.views import doctor as views

    with call.resolved() as settings:
        words = ("--storage-dir", str(storage_dir)) if storage_dir else () if settings.orthanc else None
        if storage_dir is None and settings.orthanc:
            storage_dir = settings.orthanc.storage_directory
        with output.steps(quiet=call.quiet or nagios) as report:
            health = doctor.examine(
                settings.target,
                checks,
                deep=depth == "rows",
                storage_dir=storage_dir,
                scrub_journal=journal,
                storage_words=words,
                report=report,
            )
    if prometheus:
        # The exporter runs as another user, and has to read the file.
        files.replace(prometheus, views.prometheus(health), mode=0o644)
    if html:
        complete = views.page(health, call.command_line, verbose=True)
        files.replace(html, render.html(complete))
    if nagios:
        call.nagios(health.status, health.summary, health.figures)
    unreachable = next(
        (check for check in health.checks if check.name == "connection" and check.status != "OK"), None
    )
    if not unreachable or health.endpoint or call.as_json:
        call.emit_page(health, views.page(health, call.command_line, verbose=call.verbose))
    if unreachable and not health.endpoint:
        raise ConnectError(unreachable.message, unreachable.hint)
    if unreachable:
        raise click.exceptions.Exit(ConnectError.exit_code)
    if health.status in ("WARNING", "CRITICAL"):
        raise click.exceptions.Exit(PartialFailure.exit_code)
