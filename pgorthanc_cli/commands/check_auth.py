"""`pgorthanc check-auth`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.errors import ConnectError, PartialFailure, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.authentication import LoginReport
    from pgorthanc_cli.config import Resolved
    from pgorthanc_cli.db import Target

_WARN_DAYS = 30  # before the server's certificate expires


@commands.command("check-auth")
@click.option(
    "--plugin", metavar="VERSION", help="Judge for this release of Orthanc's plugin only, as in 3.2."
)
@click.option(
    "--admin",
    metavar="DSN",
    envvar="PGORTHANC_ADMIN",
    show_envvar=True,
    help="A superuser's login to the same server, which sees more; its password from ~/.pgpass.",
)
@click.option(
    "--fix",
    type=click.Choice(["md5", "scram"]),
    help="Move this role to md5 or SCRAM with the same password, and put everything back if the login fails then.",
)
@commands.option(
    "--print-sql", "printed", aliases=["--print"], is_flag=True, help="With --fix: show the steps instead."
)
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@commands.nagios_option
def command(
    call: Call,
    *,
    plugin: str | None,
    admin: str | None,
    fix: str | None,
    printed: bool,
    yes: bool,
    nagios: bool,
) -> None:
    """Show whether Orthanc can log in, and if not, why.

    By which method, before and after TLS; what is stored, which line of pg_hba.conf decides; every sslmode and the
    server's certificate; and which releases of Orthanc's plugin can log in that way. Only --fix changes anything.

    The release of the plugin that counts is that of --plugin, else the one that --config loads, else the latest.

    \b
    Examples:
      pgorthanc check-auth --config /etc/orthanc
      pgorthanc check-auth --config /etc/orthanc --plugin 3.2
      pgorthanc check-auth --config /etc/orthanc --fix scram --print-sql

    Exit codes: 0 this login works, for that release, too; 3 refused; 6 not for that release.
    """
    from pgorthanc_cli import authentication
    from pgorthanc_cli.views import authentication as views

    if fix is None and (printed or yes):
        raise UsageError("--print-sql and --yes belong to --fix", "add --fix md5 or --fix scram")
    if fix and nagios:
        raise UsageError("--nagios and --fix contradict each other", "give one of them")
    with call.resolved() as settings:
        target = settings.target
        admin_target = _admin_target(call, target, admin)
        if fix:
            _fix(call, target, fix, admin_target, printed=printed, yes=yes)
            return
        release = plugin or _configured_release(settings)
        report = authentication.check(target, admin=admin_target, plugin=release)
    if nagios:
        _nagios(call, report)
    call.emit_page(report, views.page(report, call.command_line, verbose=call.verbose))
    if report.login != "works":
        raise click.exceptions.Exit(ConnectError.exit_code)
    if not report.works_for_plugin:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _configured_release(settings: Resolved) -> str | None:
    """Return the release of the plugin that Orthanc's configuration loads, if its file name has it."""
    from pgorthanc_cli.config import plugins

    if settings.orthanc is None:
        return None
    entries = settings.orthanc.root.get("Plugins")
    libraries, _ = plugins.find(entries if isinstance(entries, list) else [], settings.orthanc.folder)
    return next((library.release for library in libraries if library.is_index and library.release), None)


def _admin_target(call: Call, target: Target, dsn: str | None) -> Target | None:
    from pgorthanc_cli import db

    if dsn is None:
        return None
    # Every user can list the arguments of a process, only its owner the environment.
    on_command_line = click.get_current_context().get_parameter_source("admin") is ParameterSource.COMMANDLINE
    if on_command_line and "password" in db.parse_dsn(dsn, "--admin"):
        call.warn("the password in --admin can be read in the process list; use ~/.pgpass or PGORTHANC_ADMIN")
    return db.Target(dsn, application=target.application)


def _fix(call: Call, target: Target, method: str, admin: Target | None, *, printed: bool, yes: bool) -> None:
    from pgorthanc_cli import authentication
    from pgorthanc_cli.views import authentication as views

    planned = authentication.plan(target, method, admin=admin)
    if printed:
        output.text("\n".join(authentication.manual_steps(planned)))
        return
    role = planned.client.role
    upgrade_options.confirm(
        f"Move role {role} to {planned.target_method}?", planned.changes, yes=yes, needed=True
    )
    changed = authentication.fix(target, method, admin=admin)
    before = next(
        (option for option, name in authentication.METHODS.items() if name == changed.stored_before), None
    )
    undo = (
        call.command_line("check-auth", "--fix", before, "--print-sql") if before and before != method else ""
    )
    call.emit_page(changed, views.changed_page(changed, undo))


def _nagios(call: Call, report: LoginReport) -> NoReturn:
    days = report.tls.days_left
    figures = {} if days is None else {"certificate_days": f"{days};{_WARN_DAYS}:;0:"}
    said = f"role {report.role} logs in by {report.method}"
    if report.login != "works":
        call.nagios("CRITICAL", f"role {report.role}: {report.refusal or report.login}", figures)
    if days is not None and days < 0:
        call.nagios("CRITICAL", f"{said}; the server's certificate has expired", figures)
    if not report.works_for_plugin:
        call.nagios("WARNING", f"{said}; plugin {report.plugin} cannot", figures)
    if days is not None and days < _WARN_DAYS:
        call.nagios("WARNING", f"{said}; the server's certificate expires in {days} days", figures)
    call.nagios("OK", said, figures)
