"""`pgorthanc check-auth`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call, changing
from pgorthanc_cli.errors import ConnectError, PartialFailure, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.authentication import Report
    from pgorthanc_cli.db import Target

_WARN_DAYS = 30  # before the server's certificate expires


@commands.command("check-auth")
@click.option("--plugin", metavar="V", help="Judge for this release of Orthanc's plugin only, as in 3.2.")
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
@click.option("--print", "printed", is_flag=True, help="With --fix: show the steps instead.")
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
    """Tell how a role logs in, and if Orthanc can.

    By which method, before and after TLS; what is stored, which line of pg_hba.conf decides; every sslmode and the
    server's certificate; and which releases of Orthanc's plugin can log in that way. Only --fix changes anything.

    Exit code 0: this login works, and so it does for every release; 6: not for some release; 3: refused.
    """
    from pgorthanc_cli import authentication

    if fix is None and (printed or yes):
        raise UsageError("--print and --yes belong to --fix", "add --fix md5 or --fix scram")
    if fix and nagios:
        raise UsageError("--nagios and --fix contradict each other", "give one of them")
    with call.target() as target:
        chief = _administrator(call, target, admin)
        if fix:
            _fix(call, target, fix, chief, printed=printed, yes=yes)
            return
        report = authentication.check(target, admin=chief, plugin=plugin)
    if nagios:
        _nagios(call, report)
    call.emit(report)
    if report.login != "works":
        raise ConnectError(
            f"role {report.role} at {report.server}: {report.refusal or report.login}",
            "the remedies are in the result",
        )
    if not report.works_everywhere:
        raise PartialFailure(
            "this login works, but not for every release of the plugin", "the remedies are in the result"
        )


def _administrator(call: Call, target: Target, dsn: str | None) -> Target | None:
    from pgorthanc_cli import db

    if dsn is None:
        return None
    on_line = click.get_current_context().get_parameter_source("admin") is ParameterSource.COMMANDLINE
    if on_line and "password" in db.parse(dsn, "--admin"):
        call.warn("the password in --admin can be read in the process list; use ~/.pgpass or PGORTHANC_ADMIN")
    return db.Target(dsn, application=target.application)


def _fix(call: Call, target: Target, wanted: str, admin: Target | None, *, printed: bool, yes: bool) -> None:
    from pgorthanc_cli import authentication

    planned = authentication.plan(target, wanted, admin=admin)
    if printed:
        output.text("\n".join(authentication.steps(planned)))
        return
    role = planned.client.role
    changing.confirm(f"Move role {role} to {planned.wanted}?", planned.changes, yes=yes, needed=True)
    call.emit(authentication.fix(target, wanted, admin=admin))


def _nagios(call: Call, report: Report) -> NoReturn:
    days = report.tls.days_left
    figures = {} if days is None else {"certificate_days": f"{days};{_WARN_DAYS}:;0:"}
    said = f"role {report.role} logs in by {report.method}"
    if report.login != "works":
        call.nagios("CRITICAL", f"role {report.role}: {report.refusal or report.login}", figures)
    if days is not None and days < 0:
        call.nagios("CRITICAL", f"{said}; the server's certificate has expired", figures)
    if not report.works_everywhere:
        failing = ", ".join(plugin.release for plugin in report.plugins if plugin.works is False)
        call.nagios("WARNING", f"{said}; plugin {failing} cannot", figures)
    if days is not None and days < _WARN_DAYS:
        call.nagios("WARNING", f"{said}; the server's certificate expires in {days} days", figures)
    call.nagios("OK", said, figures)
