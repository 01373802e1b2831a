"""Options that several subcommands of `pgorthanc replication` share."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pgorthanc_cli.commands import Call
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.replication import Promoted

_Function = TypeVar("_Function", bound=Callable[..., Any])
PGDATA = ("-D", "--pgdata", "directory")
FOLDER = click.Path(file_okay=False, path_type=Path)
_SLOT = click.option("--slot", default="pgorthanc_standby", show_default=True, help="Slot of this standby.")
NO_START = click.option("--no-start", is_flag=True, help="Leave the start to a service manager.")


def _options(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Return a decorator that adds several options, in this order."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


requirements = _options(
    click.option(
        "--allow", multiple=True, metavar="ADDR", help="Address or network of the standby; may be repeated."
    ),
    click.option(
        "--role",
        default="pgorthanc_replication",
        show_default=True,
        help="Role that the standby logs in with.",
    ),
    _SLOT,
    click.option(
        "--slot-limit",
        "limit",
        default="10GB",
        show_default=True,
        metavar="SIZE",
        help="WAL that slots may keep, in PostgreSQL's units; a standby that needs more is given up.",
    ),
    click.option("--synchronous", is_flag=True, help="Commits wait for the standby, once it streams."),
)
following = _options(
    click.option(
        "--from",
        "source",
        required=True,
        metavar="DSN",
        help="The primary, by the replication role; its password by passfile= or PGPASSWORD.",
    ),
    _SLOT,
    click.option("--name", default="", help="Its application_name.  [default: the slot's name]"),
)


def status_of_both(primary: str, standby: str, database: Target | None) -> str:
    """Return the command that shows two servers, each of them `host:port`.

    `standby` is empty if it is not known yet.
    """
    dsn = _login_at([primary, standby or "STANDBY:5432"], database)
    return shlex.join(["pgorthanc", "replication", "status", "--uri", dsn])


def service_for(primary: str, slot: str, database: Target | None) -> str:
    """Return the command that prints a service for a standby of a server, `host:port`."""
    from pgorthanc_cli.replication import Requirements

    words = Requirements(slot=slot).options()
    login = shlex.join(["--uri", _login_at([primary], database)])
    return f"pgorthanc replication plan {shlex.join([*words, '--print', 'systemd'])} {login}"


def _login_at(places: list[str], database: Target | None) -> str:
    """Return the connection string of Orthanc's database on servers, each `host:port`."""
    from psycopg2.extensions import make_dsn

    from pgorthanc_cli import db

    login = db.parse_dsn(database.dsn) if database else {}
    parts = [place.rpartition(":") for place in places]
    return make_dsn(
        host=",".join(host for host, _, _ in parts),
        port=",".join(port for _, _, port in parts),
        user=login.get("user", "orthanc"),
        dbname=login.get("dbname", "orthanc"),
    )


def preparation(call: Call, promoted: Promoted, directory: Path | None) -> str:
    """Return the command that lets the old primary connect to the new one."""
    from pgorthanc_cli import replication

    wanted = replication.Requirements(("ADDRESS-OF-THE-OLD-PRIMARY",), promoted.role, promoted.slot)
    words = ["replication", "primary", *wanted.options(), "--passfile", "replication.pgpass"]
    if directory is None:
        return call.command_line(*words)
    # The connection options are those of Orthanc, which is no superuser.
    host, _, port = promoted.server.rpartition(":")
    login = ("--host", host.strip("[]"), "--port", port, "--username", "postgres")
    return shlex.join(["pgorthanc", *words, *login])
