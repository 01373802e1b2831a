"""`pgorthanc server`: keep the embedded PostgreSQL up for others, such as an Orthanc."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands.type_options import PORT
from pgorthanc_cli.errors import UsageError

_connection = commands.section("Connection")

_DIRECTORY = commands.option(
    "--embedded",
    "directory",
    aliases=["--dir"],
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="PGDATA",
    show_envvar=True,
    required=True,
    help="Folder of the server.",
)


@commands.group("server")
def command() -> None:
    """Run a private PostgreSQL server.

    It needs no administrator. Other commands use the same server with --embedded DIR,
    whether it is kept running or not.

    \b
    Examples:
      pgorthanc server start --embedded /srv/orthanc-pg
      pgorthanc server status --embedded /srv/orthanc-pg
    """


@commands.command("start", connection=False)
@_DIRECTORY
@_connection(
    "-p",
    "--port",
    type=PORT,
    metavar="PORT",
    help="TCP port.  [default: the one before; at first a free one]",
)
@click.option(
    "--listen", metavar="ADDR", help="TCP address; * for all.  [default: the one before; at first 127.0.0.1]"
)
@_connection(
    "-d",
    "--dbname",
    envvar="POSTGRES_DB",
    show_envvar=True,
    help="Database.  [default: the one before; at first named like the role]",
)
@_connection(
    "-U",
    "--username",
    envvar="POSTGRES_USER",
    show_envvar=True,
    help="Role that owns the database.  [default: the one before; at first orthanc]",
)
@_connection(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="POSTGRES_PASSWORD_FILE",
    show_envvar=True,
    help="File whose first line is the role's password.  [default: POSTGRES_PASSWORD, else generated]",
)
@click.option("--show-password", is_flag=True, help="Print the password instead of ***.")
def start(
    call: commands.Call,
    *,
    directory: Path,
    port: int | None,
    listen: str | None,
    dbname: str | None,
    username: str | None,
    password_file: Path | None,
    show_password: bool,
) -> None:
    """Start a server on TCP, with a password, and leave it running.

    Creates the folder, the role and its database as far as they are missing. The password
    is in the folder's pgorthanc.password, mode 0600. With -v or --show-password it prints
    how to connect, and the section for Orthanc's configuration. Connections are not
    encrypted: listen on another address than 127.0.0.1 only in a network that you trust.

    \b
    Examples:
      pgorthanc server start --embedded /srv/orthanc-pg
      pgorthanc server start --embedded /srv/orthanc-pg --port 5433 --dbname pacs
    """
    from pgorthanc_cli.server import embedded
    from pgorthanc_cli.views import server as views

    running = embedded.start(
        directory,
        port=port,
        listen=listen,
        database=dbname,
        role=username,
        password=_password(password_file),
        show_password=show_password,
    )
    page = views.started_page(
        running,
        init=call.command_line("init", embedded=running.directory),
        stop=call.command_line("server", "stop", embedded=running.directory),
        connection=call.verbose or show_password,
    )
    call.emit_page(running, page)


def _password(file: Path | None) -> str | None:
    given = os.environ.get("POSTGRES_PASSWORD")
    if file is None:
        return given or None
    # PostgreSQL's container image, whose variables these are, refuses both as well.
    if given and os.environ.get("POSTGRES_PASSWORD_FILE") == str(file):
        raise UsageError("both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are set", "keep one of them")
    from pgorthanc_cli import files

    return files.read_password(file, "--password-file")


@commands.command("stop", connection=False)
@_DIRECTORY
def stop(call: commands.Call, *, directory: Path) -> None:
    """Stop a server; clients such as Orthanc lose their connections.

    \b
    Examples:
      pgorthanc server stop --embedded /srv/orthanc-pg
      pgorthanc server stop --embedded /srv/orthanc-pg --json

    Exit codes: 0 stopped; 5 refused, because commands use it with --embedded.
    """
    from pgorthanc_cli.server import embedded
    from pgorthanc_cli.views import server as views

    stopped = embedded.stop(directory)
    start_again = call.command_line("server", "start", embedded=stopped.directory)
    call.emit_page(stopped, views.stopped_page(stopped, start=start_again))


@commands.command("status", connection=False)
@_DIRECTORY
def status(call: commands.Call, *, directory: Path) -> None:
    """Show whether a server runs, and where it listens.

    Also its version and what it holds.

    \b
    Examples:
      pgorthanc server status --embedded /srv/orthanc-pg
      pgorthanc server status --embedded /srv/orthanc-pg --json

    Exit codes: 0 it runs; 1 it is stopped, or the folder holds no server.
    """
    from pgorthanc_cli.server import embedded
    from pgorthanc_cli.views import server as views

    state = embedded.status(directory)
    start_command = call.command_line("server", "start", embedded=state.directory)
    call.emit_page(state, views.status_page(state, start=start_command))
    click.get_current_context().exit(0 if state.state == "running" else 1)


for _command in (start, stop, status):
    command.add_command(_command)
