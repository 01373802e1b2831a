"""`pgorthanc doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from pgorthanc_cli import commands, files
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import ConnectError, PartialFailure

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _help_values() -> dict[str, str]:
    from pgorthanc_cli import doctor

    return {"checks": ", ".join(doctor.check_names())}


@commands.command("doctor", help_values=_help_values)
@click.argument("checks", nargs=-1, metavar="[CHECK]...")
@click.option(
    "--deep",
    is_flag=True,
    help="Also recount statistics and child counts, and read the rows of all stored files and indexes of text.",
)
@click.option(
    "--storage-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Orthanc's StorageDirectory, if it is on this machine.  [default: by --config]",
)
@click.option("--prometheus", type=_FILE, metavar="FILE", help="Also write FILE for a textfile collector.")
@click.option("--html", type=_FILE, metavar="FILE", help="Also write FILE as a page to look at.")
@commands.nagios_option
def command(
    call: Call,
    *,
    checks: tuple[str, ...],
    deep: bool,
    storage_dir: Path | None,
    prometheus: Path | None,
    html: Path | None,
    nagios: bool,
) -> None:
    """Run health checks on the server and the index, and suggest fixes.

    All checks, or those that are named: {checks}. Reads only. What this role may not see is UNKNOWN, with the
    missing right; a check that fails is UNKNOWN with the reason, and the others go on.

    Exit code 0: no warnings and no problems; 6: there are some; 3: the server cannot be reached.
    """
    from pgorthanc_cli import doctor
    from pgorthanc_cli.views import doctor as views

    with call.resolved() as settings:
        if storage_dir is None and settings.orthanc:
            storage_dir = settings.orthanc.storage_directory
        health = doctor.examine(settings.target, checks, deep=deep, storage_dir=storage_dir)
    if prometheus:
        files.replace(prometheus, views.prometheus(health), mode=0o644)  # the exporter has a user of its own
    if html:
        files.replace(html, views.page(health))
    if nagios:
        call.nagios(health.status, health.summary, health.figures)
    call.emit(health)
    for check in health.checks:
        if check.name == "connection" and check.status == "CRITICAL":
            raise ConnectError(check.message, check.hint)
    bad = [check.name for check in health.checks if check.status in ("WARNING", "CRITICAL")]
    if bad:
        raise PartialFailure(f"something is wrong with: {', '.join(bad)}", "the hint of each says what to do")
