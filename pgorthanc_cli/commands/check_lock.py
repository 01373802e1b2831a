"""`pgorthanc check-lock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call, upgrade_options
from pgorthanc_cli.commands.type_options import TIME
from pgorthanc_cli.errors import InUseError, UsageError
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.text import duration

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from pgorthanc_cli.config import OrthancConfiguration
    from pgorthanc_cli.locks import Watcher


def _pid_or_all(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> int | Literal["all"] | None:
    if value is None or value == "all":
        return "all" if value else None
    if not value.isdecimal():
        raise click.BadParameter(f"{value} is neither a pid nor all")
    return int(value)


def _watcher(conn: Connection, schema: str, orthanc: OrthancConfiguration | None) -> Watcher:
    """Return what inspects the database, and knows Orthanc's configuration if it is given."""
    from pgorthanc_cli import locks

    if orthanc is None:
        return locks.Watcher(conn, schema)
    return locks.Watcher(
        conn,
        schema,
        lock=bool(orthanc.postgresql("Lock")),
        # The default has changed with the releases of the plugin.
        connections=lambda release: int(orthanc.postgresql("IndexConnectionsCount", release)),
        storage=bool(orthanc.postgresql("EnableStorage")),
    )


@commands.command("check-lock")
@click.option(
    "--wait",
    "wait_s",
    type=TIME,
    default=0,
    metavar="TIME",
    help="Wait until the database is free.",
)
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option(
    "--terminate",
    callback=_pid_or_all,
    metavar="PID|all",
    help="End this session, or those of every Orthanc; asks before.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@commands.nagios_option
def command(
    call: Call, *, wait_s: float, watch: bool, terminate: int | Literal["all"] | None, yes: bool, nagios: bool
) -> None:
    """Show which sessions hold Orthanc's locks.

    Also shows the Orthancs that work without a lock. Explains "The PostgreSQL database is locked by another instance
    of Orthanc" (locks 42 and 43, option Lock) and "Cannot acquire a transient advisory lock" (lock 44, while tables are
    created or upgraded). Reads only: no lock is tried, because that could keep an Orthanc from starting.

    \b
    Examples:
      pgorthanc check-lock --config /etc/orthanc
      pgorthanc check-lock --config /etc/orthanc --wait 10m
      pgorthanc check-lock --config /etc/orthanc --nagios

    Exit codes: 0 the database is free; 5 it is in use, which is normal while Orthanc is running. With --nagios, an
    Orthanc at work is OK; a lost lock, or a second Orthanc beside one with a lock, is CRITICAL.
    """
    from pgorthanc_cli import db, locks
    from pgorthanc_cli.views import locks as views

    if watch + nagios + (terminate is not None) > 1:
        raise UsageError("--watch, --nagios and --terminate exclude each other", "give one of them")

    suggested = views.Commands(
        wait=call.command_line("check-lock", "--wait", "60"),
        watch=call.command_line("check-lock", "--watch"),
        terminate=call.command_line("check-lock", "--terminate", "all"),
    )

    def report(progress: Progress) -> None:
        if wait_s and not call.quiet:
            output.note(f"waiting: {progress.what}")

    with (
        call.resolved() as settings,
        # Advisory locks belong to the database, not to a schema. And within a
        # transaction, pg_stat_activity would keep showing its first snapshot.
        db.session(settings.target, readonly=True, autocommit=True, need_schema=False) as conn,
    ):
        watcher = _watcher(conn, settings.target.schema, settings.orthanc)
        if watch:
            call.watch(watcher.inspect, lambda now: views.page(now, suggested, watched=True))
            return
        if terminate is not None:
            sessions = locks.choose(conn, terminate)
            if sessions:
                upgrade_options.confirm("End these sessions?", sessions, yes=yes, needed=True)
            usage: locks.Usage = locks.terminate(conn, watcher, sessions)
        else:
            usage = locks.wait_until_free(watcher, wait_s, report)
    if nagios:
        figures = {"locks": len(usage.held), "orthancs": len(usage.orthancs)}
        call.nagios(usage.status, "; ".join(usage.problems) or usage.summary, figures)
    if isinstance(usage, locks.Terminated):
        page = views.terminated_page(usage, suggested, verbose=call.verbose)
    else:
        waited = duration(wait_s) if wait_s else ""
        page = views.page(usage, suggested, waited=waited, verbose=call.verbose)
    call.emit_page(usage, page)
    if not usage.free:
        raise click.exceptions.Exit(InUseError.exit_code)
