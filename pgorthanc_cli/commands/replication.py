"""`pgorthanc replication`: a primary and its standbys.

Longer than others: six subcommands, of which most lines declare options.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import replication_options as options_of
from pgorthanc_cli.commands.replication_options import FOLDER, NO_START, PGDATA, following, requirements
from pgorthanc_cli.commands.type_options import PORT, POSITIVE_TIME, SIZE, TIME
from pgorthanc_cli.errors import PartialFailure, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.replication import NotProved


@commands.group("replication")
def command() -> None:
    """Keep a standby copy of the database, and fail over to it.

    First `plan` and `primary` on the primary, then `standby` on the other machine. See
    docs/replication.md.

    \b
    Examples:
      pgorthanc replication plan --host db1 --username postgres --allow 10.0.0.6
      pgorthanc replication status --uri "host=db1,db2 user=orthanc dbname=orthanc"
    """


@contextmanager
def _administrator(call: commands.Call) -> Iterator[Target]:
    """Yield the server of the options; that of --embedded as its superuser."""
    directory = call.options["embedded"]
    if not directory:
        with call.target() as target:
            yield target
        return
    from pgorthanc_cli.server import embedded

    with embedded.attach(Path(directory), superuser=True, create=False) as target:
        yield target


@commands.command("replication plan")
@requirements
@click.option(
    "--print",
    "form",
    type=click.Choice(["steps", "compose", "systemd"]),
    help="Print what an administrator would run by hand, or files for the standby.",
)
def plan(call: commands.Call, *, form: str | None, **options: object) -> None:
    """Show what a primary needs before a standby can follow it.

    Reads only. Log in as a superuser: others do not see pg_hba.conf.

    \b
    Examples:
      pgorthanc replication plan --host db1 --username postgres --allow 10.0.0.6
      pgorthanc replication plan --host db1 --username postgres --allow 10.0.0.6 \\
          --print steps
    """
    from pgorthanc_cli import db, replication
    from pgorthanc_cli.views import replication_plan as views

    wanted = replication.Requirements(**options)  # type: ignore[arg-type]
    with (
        _administrator(call) as target,
        db.session(target, autocommit=True, readonly=True, need_schema=False) as conn,
    ):
        found = replication.plan(conn, wanted)
    if form:
        output.text(replication.instructions(found, wanted, form))
        return
    words = wanted.options()
    suggested = views.Commands(
        plan=call.command_line("replication", "plan", *words, "--allow", "ADDRESS"),
        primary=call.command_line("replication", "primary", *words),
        steps=call.command_line("replication", "plan", *words, "--print", "steps"),
    )
    call.emit_page(found, views.plan_page(found, wanted.allow, suggested))


@commands.command("replication primary")
@requirements
@click.option(
    "--passfile",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("replication.pgpass"),
    show_default=True,
    help="File for the role's password, made if it is missing (mode 0600).",
)
@click.option(
    "--new-password",
    is_flag=True,
    help="Give the role another password, and write it to the password files of the standbys on this machine.",
)
@click.option(
    "--yes",
    is_flag=True,
    help="With --new-password: also if standbys elsewhere stream; bring them the new password file yourself.",
)
@commands.option(
    "--restart-server",
    "restart",
    aliases=["--restart"],
    is_flag=True,
    help="Restart the server if a setting needs it; only with --embedded.",
)
def primary(
    call: commands.Call, *, passfile: Path, new_password: bool, yes: bool, restart: bool, **options: object
) -> None:
    """Prepare a server for a standby.

    Role, settings, pg_hba.conf, slot, and a login that proves it. Needs a superuser. Run
    again, it does what is still missing. The line of pg_hba.conf is written where the
    file is on this machine (a copy is kept), else it is printed.

    \b
    Examples:
      pgorthanc replication primary --host db1 --username postgres --allow 10.0.0.6
      pgorthanc replication primary --embedded /srv/orthanc-pg --allow 10.0.0.6 \\
          --restart-server

    Exit codes: 0 a standby can follow; 6 something must still be done by hand.
    """
    from pgorthanc_cli import replication
    from pgorthanc_cli.views import replication_plan as views

    if yes and not new_password:
        raise UsageError("--yes belongs to --new-password", "leave it out")
    if restart and not call.options["embedded"]:
        raise UsageError(
            "--restart-server is for a server of --embedded", "restart others with their service manager"
        )
    with _administrator(call) as target:
        prepared = replication.prepare(
            target,
            replication.Requirements(**options),  # type: ignore[arg-type]
            passfile=passfile,
            new_password=new_password,
            confirmed=yes,
            folder=Path(call.options["embedded"]) if restart else None,
        )
    # Again with --new-password would be another one.
    added = ["--restart-server"] if prepared.restart and call.options["embedded"] else []
    again = call.again(*added, without=("--new-password", "--yes"))
    call.emit_page(prepared, views.prepared_page(prepared, again))
    if not prepared.ready or any(standby.needs_command for standby in prepared.standbys):
        raise click.exceptions.Exit(PartialFailure.exit_code)


@commands.command("replication standby")
@commands.option(
    *PGDATA,
    aliases=["--dir"],
    type=FOLDER,
    metavar="DIR",
    required=True,
    help="Its data folder: empty, or to be created.",
)
@following
@click.option("--listen", default="127.0.0.1", show_default=True, metavar="ADDR", help="Its TCP address.")
@click.option(
    "--listen-port", type=PORT, default=5432, show_default=True, metavar="PORT", help="Its TCP port."
)
@click.option(
    "--allow",
    multiple=True,
    metavar="ADDR",
    help="Who else may log in to it with a password: Orthanc, the primary.",
)
@click.option(
    "--feedback", is_flag=True, help="The primary keeps rows that long finds on the standby still see."
)
@NO_START
def standby(
    call: commands.Call, *, directory: Path, source: str, listen_port: int, no_start: bool, **options: object
) -> None:
    """Copy a running primary, and let the copy follow it.

    The copy goes to an empty folder, is verified and started; the command waits until it
    streams. With connection options for Orthanc's database on the primary (--config,
    --uri) it also compares what both hold.

    \b
    Examples:
      pgorthanc replication standby --pgdata /srv/standby \\
          --from "host=db1 user=pgorthanc_replication passfile=replication.pgpass"
      pgorthanc replication standby --pgdata /srv/standby --config /etc/orthanc \\
          --from "host=db1 user=pgorthanc_replication passfile=replication.pgpass"

    Exit codes: 0 it streams; 6 the contents differ.
    """
    from pgorthanc_cli import replication
    from pgorthanc_cli.views import failover as views

    login = _login(call, source)
    standby_options = replication.StandbyOptions(
        **options,  # type: ignore[arg-type]
        port=listen_port,
        start=not no_start,
    )
    with _compared_database(call) as database, output.transfer(quiet=call.quiet) as report:
        created = replication.create(directory, login, standby_options, database=database, report=report)
    page = views.standby_page(
        created,
        status=options_of.status_of_both(created.primary, created.address, database),
        service=options_of.service_for(created.primary, created.slot, database),
    )
    call.emit_page(created, page)
    # A comparison that was asked for and not possible is a failure, too.
    _exit_unless(created.difference == ("none" if database and not no_start else "not compared"))


def _login(call: commands.Call, source: str) -> Target:
    """Return the replication login; refuse a password on the command line."""
    from pgorthanc_cli import db

    # In the list of processes and in the shell's history it would stay.
    if "password" in db.parse_dsn(source, "--from"):
        raise UsageError(
            "--from holds a password, which every user of this machine can read in the list of processes",
            "write passfile=FILE instead (a line *:*:*:ROLE:PASSWORD, mode 0600), or set PGPASSWORD",
        )
    return db.Target(source, application=f"pgorthanc {call.name}")


@contextmanager
def _compared_database(call: commands.Call) -> Iterator[Target | None]:
    """Yield Orthanc's database on the primary if it is named, else None."""
    with call.resolved() as resolved:
        named = [setting for setting in resolved.provenance if setting.name in ("host", "dbname", "service")]
        # Without options libpq would name some local database, which is not meant.
        if any(setting.origin != "libpq's default" for setting in named):
            yield resolved.target
            return
        _refuse_ignored(call)
        yield None


def _refuse_ignored(call: commands.Call) -> None:
    """Raise UsageError for connection options that would have no effect."""
    names = ("port", "username", "sslmode", "schema", "password_file")
    ignored = [f"--{name.replace('_', '-')}" for name in names if call.options[name]]
    if ignored:
        raise UsageError(
            f"{', '.join(ignored)} would be ignored: connection options name Orthanc's database on the primary, and "
            "neither --host, --dbname, --uri nor --config is given",
            "the port of the standby itself is --listen-port (replication standby); the primary's is in --from",
        )


def _exit_unless(same: bool) -> None:
    if not same:
        raise click.exceptions.Exit(PartialFailure.exit_code)


@commands.command("replication status")
@commands.nagios_option
@click.option(
    "--warning", type=SIZE, default="64MB", show_default=True, metavar="SIZE", help="Lag that is a warning."
)
@click.option(
    "--critical", type=SIZE, default="1GB", show_default=True, metavar="SIZE", help="Lag that is critical."
)
@click.option(
    "--warning-age",
    type=TIME,
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Age of the data of a standby that is a warning.",
)
@click.option(
    "--critical-age",
    type=TIME,
    default="5m",
    show_default=True,
    metavar="TIME",
    help="Age of the data that is critical.",
)
@click.option("--watch", is_flag=True, help="Show it again and again.")
def status(
    call: commands.Call,
    *,
    nagios: bool,
    warning: float,
    critical: float,
    warning_age: float,
    critical_age: float,
    watch: bool,
) -> None:
    """Show a primary and its standbys, and their problems.

    Lag, slots and the disk that they may fill, cancelled finds, and whether a read-only
    Orthanc can use a standby now. Inspects every host of the URI (host=a,b). Log in with
    a role that has pg_monitor to see everything. Reads only.

    \b
    Examples:
      pgorthanc replication status --uri "host=db1,db2 user=orthanc dbname=orthanc"
      pgorthanc replication status --config /etc/orthanc --nagios --warning-age 1m

    Exit codes: 0 the verdict is OK; 6 it is WARNING or CRITICAL.
    """
    from pgorthanc_cli import replication
    from pgorthanc_cli.views import replication as views

    limits = replication.Limits(int(warning), int(critical), warning_age, critical_age)
    with _administrator(call) as target:
        targets = replication.hosts(target)
        if watch:
            call.watch(
                lambda: replication.status(targets, limits),
                lambda now: views.status_page(now, watched=True, verbose=call.verbose),
            )
            return
        state = replication.status(targets, limits)
    if nagios:
        # The line begins with the verdict; only a lesser problem keeps its own.
        problems = [problem.removeprefix(f"{state.verdict}: ") for problem in state.problems]
        call.nagios(state.verdict, "; ".join(problems) or "all standbys stream", state.figures())
    call.emit_page(state, views.status_page(state, verbose=call.verbose))
    if state.verdict != "OK":
        raise click.exceptions.Exit(PartialFailure.exit_code)


@commands.command("replication promote")
@commands.option(
    *PGDATA,
    aliases=["--dir"],
    type=FOLDER,
    metavar="DIR",
    help="The standby by its data folder on this machine, without a login.",
)
@click.option(
    "--fence",
    type=FOLDER,
    metavar="DIR",
    help="Stop the old primary, whose folder on this machine this is, and mark it to start as a standby only.",
)
@click.option(
    "--old-primary-is-down",
    is_flag=True,
    help="You have made sure that the old primary is off and stays off, and promote no other standby of it.",
)
@click.option("--old-is-gone", is_flag=True, hidden=True)  # its name before
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Promote though the folder of --fence has commits that are missing here.",
)
@click.option(
    "--slot", "slots", multiple=True, help="Slot to make for another standby.  [default: its own one]"
)
@click.option(
    "--wait",
    "wait_s",
    type=POSITIVE_TIME,
    default="5m",
    show_default=True,
    metavar="TIME",
    help="Give up after that time, whatever does not answer.",
)
def promote(
    call: commands.Call,
    *,
    directory: Path | None,
    fence: Path | None,
    old_primary_is_down: bool,
    old_is_gone: bool,
    accept_loss: bool,
    slots: tuple[str, ...],
    wait_s: float,
) -> None:
    """Promote a standby, once the old primary is proved dead.

    The standby is the server of the connection options, or the folder of --pgdata. A closed
    port proves nothing. With --fence nothing that was committed is lost: the old primary
    is stopped first, and the standby gets the rest; its folder is then fenced for this
    standby, and no other one can be promoted with it. Without --fence and
    --old-primary-is-down, on a terminal, it asks.

    \b
    Examples:
      pgorthanc replication promote --pgdata /srv/standby --fence /srv/primary
      pgorthanc replication promote --host db2 --username postgres \\
          --old-primary-is-down
    """
    from pgorthanc_cli import db, replication
    from pgorthanc_cli.views import failover as views

    fencing = replication.Fence(fence, old_primary_is_down or old_is_gone, accept_loss)

    def run(candidate: replication.Candidate) -> None:
        attempt = partial(replication.promote, candidate, slots=slots, parameters=parameters, wait_s=wait_s)
        try:
            promoted = attempt(fencing)
        except replication.NotProved as error:
            # In a script there is no person who could know that the machine is off.
            if not (error.servers and commands.may_ask()):
                raise
            _ask_whether_it_is_off(error)
            promoted = attempt(replace(fencing, gone=True))
        call.emit_page(
            promoted, views.promoted_page(promoted, options_of.preparation(call, promoted, directory))
        )

    with call.resolved() as resolved:
        parameters = db.parse_dsn(resolved.target.dsn)
        if directory:
            run(replication.by_folder(directory))
            return
    with _administrator(call) as target, replication.by_sql(target, wait_s=wait_s) as candidate:
        run(candidate)


def _ask_whether_it_is_off(error: NotProved) -> None:
    """Ask for the name of the old primary, which only its operator can know to be off.

    Raises:
        Exit: The answer is another one.
    """
    name = error.servers[0]
    output.warn(error.fact)
    question = f"Is {name} switched off, and will it stay off? Type its name to promote"
    answer = click.prompt(question, default="", show_default=False, err=True)
    # The name, not yes: it has to be looked up, which is when mistakes are noticed.
    if answer.strip() not in (name, name.rpartition(":")[0]):
        output.note("Cancelled. Nothing was changed.")
        raise click.exceptions.Exit(1)


@commands.command("replication rejoin")
@commands.option(
    *PGDATA,
    aliases=["--dir"],
    type=FOLDER,
    metavar="DIR",
    required=True,
    help="Data folder of the old primary, stopped.",
)
@following
@click.option("--discard", is_flag=True, help="Give up commits that only the old primary has.")
@NO_START
def rejoin(call: commands.Call, *, directory: Path, source: str, no_start: bool, **options: object) -> None:
    """Make the old primary a standby of the new one.

    With connection options for a superuser on the new primary it is rewound (pg_rewind),
    else copied again; the old data are then kept next to it. It is also copied if the new
    primary has removed WAL that it needs. Its own configuration stays. Commits that only
    it has are counted first.

    \b
    Examples:
      pgorthanc replication rejoin --pgdata /srv/primary \\
          --from "host=db2 user=pgorthanc_replication passfile=replication.pgpass"
      pgorthanc replication rejoin --pgdata /srv/primary \\
          --host db2 --username postgres \\
          --from "host=db2 user=pgorthanc_replication passfile=replication.pgpass"

    Exit codes: 0 it follows the new primary; 6 the contents differ.
    """
    from pgorthanc_cli import replication
    from pgorthanc_cli.views import failover as views

    login = _login(call, source)
    with _compared_database(call) as administrator, output.transfer(quiet=call.quiet) as report:
        rejoined = replication.rejoin(
            directory,
            login,
            administrator=administrator,
            start=not no_start,
            report=report,
            **options,  # type: ignore[arg-type]
        )
    status_command = options_of.status_of_both(rejoined.primary, rejoined.address, administrator)
    call.emit_page(rejoined, views.rejoined_page(rejoined, status=status_command))
    _exit_unless(rejoined.difference == "none" or not rejoined.index)


for _command in (plan, primary, standby, status, promote, rejoin):
    command.add_command(_command, str(_command.name).rpartition(" ")[2])
