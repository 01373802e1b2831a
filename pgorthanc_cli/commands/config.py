"""`pgorthanc config`: read, check and edit Orthanc's configuration.

Longer than other modules: six subcommands, of which most lines declare options.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.commands.type_options import COUNT
from pgorthanc_cli.errors import PartialFailure, UsageError
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from pgorthanc_cli.config.deployment import Deployment
    from pgorthanc_cli.config.documents import Paths, Problem
    from pgorthanc_cli.config.template import Starting
    from pgorthanc_cli.db import Target

_CONFIG = commands.section("Connection")(
    "--config",
    type=click.Path(exists=True),
    multiple=True,
    metavar="PATH",
    help=f"{commands.CONFIG_HELP}  [env var: PGORTHANC_CONFIG]",
    callback=lambda _context, _option, paths: _paths(paths),
)
_READER = (
    click.option(
        "--plugin", metavar="VERSION", help="Release of Orthanc's PostgreSQL plugin.  [default: read from it]"
    ),
    click.option(
        "--container", is_flag=True, help="Read variables and secrets as the image orthancteam/orthanc does."
    ),
    click.option(
        "--env-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="With --container: its variables, one NAME=value a line.  [default: the environment]",
    ),
    click.option(
        "--secrets",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        default="/run/secrets",
        show_default=True,
        help="With --container: its secrets.",
    ),
)


def _paths(given: tuple[str, ...]) -> Paths | None:
    """Return the configuration that --config or PGORTHANC_CONFIG names."""
    from pgorthanc_cli.config.documents import Paths

    variable = os.environ.get("PGORTHANC_CONFIG")
    paths = given or ((variable,) if variable else ())
    return Paths.of(paths) if paths else None


_SET_HELP = "run: pgorthanc config set --help"


def _reader(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say who reads the configuration."""
    for option in reversed((_CONFIG, *_READER)):
        function = option(function)
    return function


@commands.group("config")
def command() -> None:
    """Create, check, compare and edit Orthanc's configuration.

    Only `new` and `set` write.

    \b
    Examples:
      pgorthanc config check --config /etc/orthanc
      pgorthanc config show --config /etc/orthanc
    """


@commands.command("check", connection=False)
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path), metavar="[PATH]")
@_reader
@click.option(
    "--containers",
    type=COUNT,
    default=1,
    metavar="N",
    help="Orthancs with this configuration.",
)
@click.option("--offline", is_flag=True, help="Do not connect to the database.")
@commands.nagios_option
def check(
    call: Call,
    *,
    path: Path | None,
    containers: int,
    offline: bool,
    nagios: bool,
    **reader: Any,
) -> None:
    """Find the problems of a configuration before Orthanc is started with it.

    PATH is a JSON file or a folder of them, as with --config. Reported are misspelt and unknown options, wrong
    types, options that the plugin's release does not know, values that the plugin garbles on their way to libpq,
    contradictions, weak passwords. Then, in the database that it names: what the plugin will do with the revision it
    finds, connection limits, a pooler in between. Changes nothing; -v also shows remarks.

    \b
    Examples:
      pgorthanc config check /etc/orthanc
      pgorthanc config check --plugin 6.0 --offline /etc/orthanc/postgresql.json
      pgorthanc config check --container --env-file orthanc.env

    Exit codes: 0 no problems, but perhaps remarks; 6 errors or warnings.
    """
    from pgorthanc_cli.config.check import check as check_configuration
    from pgorthanc_cli.views import config_check as views

    if path:
        source = click.get_current_context().get_parameter_source("config")
        if source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError("PATH and --config are the same thing", "give one of them")
        reader["config"] = _paths((str(path),))
    deployment = _deployment(containers=containers, **reader)
    further = list(_unread_container_variables(reader))
    if not offline:
        further += _database_problems(call, deployment)
    checked = check_configuration(deployment, tuple(further))
    problems = checked.wrong
    if nagios:
        summary = "no problems"
        if problems:
            summary = f"{problems[0].key}: {problems[0].message}"
        call.nagios(checked.status, summary, {"problems": len(problems)})
    call.emit_page(checked, views.page(checked, reader["config"], verbose=call.verbose))
    if problems:
        raise click.exceptions.Exit(PartialFailure.exit_code)


@commands.command("show", connection=False)
@_reader
@click.option(
    "--all", "everything", is_flag=True, help="Every option that is given, those of other plugins, too."
)
def show(call: Call, *, everything: bool, **reader: Any) -> None:
    """Print the merged configuration, and the origin of each value.

    The origin is a file and line, or a variable. Passwords and other secrets are masked.

    \b
    Examples:
      pgorthanc config show --config /etc/orthanc
      pgorthanc config show --config /etc/orthanc --config /run/orthanc.json --all
    """
    from pgorthanc_cli.config import deployment
    from pgorthanc_cli.views import config as views

    options = deployment.show(_deployment(**reader), everything=everything)
    call.emit_page(options, views.options_page(options))


@commands.command("uri")
@click.option("--fields", is_flag=True, help='Print the section "PostgreSQL" with single fields instead.')
@click.option("--show-password", is_flag=True, help="Print the password instead of ***.")
def uri(call: Call, *, fields: bool, show_password: bool) -> None:
    """Print the ConnectionUri for a connection, correctly encoded.

    Or, with --fields, the single fields. The connection is the one that the options, the environment and --config mean,
    as for every other command; libpq's own environment, service file and .pgpass are resolved. The server need not be
    reachable.

    \b
    Examples:
      pgorthanc config uri --host db1 --dbname orthanc --username orthanc
      pgorthanc config uri --config /etc/orthanc --fields

    Exit codes: 0 printed; 6 single fields cannot carry this connection.
    """
    from pgorthanc_cli import db
    from pgorthanc_cli.config import conninfo

    target = _named(call)
    parameters = conninfo.complete(conninfo.configured(target), target)
    if not fields:
        text = conninfo.uri(parameters, show_password=show_password)
        output.text(json.dumps({"uri": text}) if call.as_json else text)
        return
    section, problems = conninfo.fields(parameters)
    if "Password" in section and not show_password:
        section["Password"] = db.MASK
    output.text(json.dumps({"PostgreSQL": section}, indent=2, ensure_ascii=False))
    for problem in problems:
        call.warn(problem.warning)
    if any(problem.severity == "error" for problem in problems):
        raise PartialFailure("the single fields cannot carry this connection", "run: pgorthanc config uri")


def _named(call: Call) -> Target:
    """Return the target that options, environment and --config name; no server is needed."""
    from pgorthanc_cli import config

    options = {name: value for name, value in call.options.items() if name != "embedded"}
    if call.options["embedded"]:
        server = call.command_line("server", "start", "-v")
        raise UsageError("Orthanc cannot connect to an --embedded folder", f"start its server: {server}")
    return config.resolve(application=f"pgorthanc {call.name}", **options).target


@dataclass(frozen=True)
class New:
    """A starting configuration, for programs.

    Attributes:
        file: Where it was written; None: nowhere.
        configuration: Its text, if it was written nowhere.
        has_password: Whether it holds the password.
        problems: What `config check` says about it on this machine.
    """

    file: str | None
    configuration: str | None
    has_password: bool
    problems: tuple[Problem, ...]


@commands.command("new")
@click.option(
    "--output",
    "output_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Create FILE, readable by its owner only; an existing file is never replaced.  [default: print it]",
)
@click.option(
    "--storage",
    type=click.Choice(("filesystem", "postgresql")),
    default="filesystem",
    show_default=True,
    help="Where Orthanc stores the DICOM files.",
)
@click.option(
    "--storage-dir",
    "storage_directory",
    metavar="DIR",
    default="/var/lib/orthanc/db",
    show_default=True,
    help="Orthanc's StorageDirectory.",
)
@click.option(
    "--plugins",
    metavar="DIR",
    default="/usr/share/orthanc/plugins",
    show_default=True,
    help="The folder with the libraries of Orthanc's plugins.",
)
@click.option(
    "--plugin",
    "release",
    metavar="VERSION",
    help="Release of the PostgreSQL plugin.  [default: read from its library]",
)
@click.option(
    "--passfile", metavar="FILE", help="Let the plugin read the password from FILE, in the format of .pgpass."
)
@click.option("--show-password", is_flag=True, help="Write the password into the configuration.")
def new(call: Call, *, output_file: Path | None, storage: str, **own: Any) -> None:
    """Write a commented configuration for Orthanc with PostgreSQL.

    The database is the one that the connection options name; it need not exist yet. The password is not written
    unless --show-password is given. Next, create the index with `pgorthanc init`.

    \b
    Examples:
      pgorthanc config new --host localhost --dbname orthanc --username orthanc
      pgorthanc config new --uri service=orthanc --output /etc/orthanc/orthanc.json
    """
    from pgorthanc_cli import files
    from pgorthanc_cli.config import conninfo, template

    if own["passfile"] and own["show_password"]:
        raise UsageError("--passfile and --show-password contradict each other", "keep one")
    target = _named(call)
    choices = template.Choices(schema=target.schema, postgresql_storage=storage == "postgresql", **own)
    parameters = conninfo.complete(conninfo.configured(target), target)
    made = template.create(parameters, choices, name=output_file or Path("orthanc.json"))
    if output_file:
        files.create(output_file, made.text)
    if call.as_json:
        text = None if output_file else made.text
        output.emit(New(str(output_file) if output_file else None, text, made.has_password, made.problems))
    else:
        _show_new(call, made, output_file)


def _show_new(call: Call, made: Starting, file: Path | None) -> None:
    """Show a starting configuration, or where it is, and what remains to be done."""
    if file is None:
        output.text(made.text)
    else:
        quoted = shlex.quote(str(file))
        output.text(
            f"Created {printable(str(file))}; only its owner can read it.\n\n"
            "If Orthanc runs as another user, give it the file:\n"
            f"    chown orthanc {quoted}\n"
            "Next, create the index in the database, and check both:\n"
            f"    pgorthanc init --config {quoted}{f' --plugin {made.release}' if made.release else ''}\n"
            f"    pgorthanc config check --config {quoted}"
        )
    if made.withheld:
        call.warn(
            "the password was not written, so Orthanc cannot log in yet: set PGPASSWORD in its environment, or "
            "use --passfile or --show-password"
        )
    for problem in made.problems:
        hint = f"; {problem.hint}" if problem.hint else ""
        call.warn(f"{problem.key}: {problem.message}{hint}")


@commands.command("diff", connection=False)
@click.argument("first", metavar="A", type=click.Path(exists=True, path_type=Path))
@click.argument("second", metavar="B", type=click.Path(exists=True, path_type=Path))
def diff(call: Call, *, first: Path, second: Path) -> None:
    """Compare the configurations of two Orthancs.

    A and B are files or folders, of Orthancs that share a database or are to share one. Shows which options must be
    the same in both (database, schema, storage, tags, encoding, overwriting, limits), which must differ
    (DatabaseServerIdentifier), and which may (name, ports, passwords). Passwords and other secrets are compared,
    but masked. Each configuration is read with the variables of this environment.

    \b
    Examples:
      pgorthanc config diff /etc/orthanc-1 /etc/orthanc-2
      pgorthanc config diff writer.json reader.json --json

    Exit codes: 0 the two can share a database; 6 they must not.
    """
    from pgorthanc_cli.config import compare, documents
    from pgorthanc_cli.config.deployment import Deployment
    from pgorthanc_cli.views import compare as view

    sides = []
    for path in (first, second):
        paths = documents.Paths.of(path)
        document, folder = documents.read(paths, os.environ), paths.folder
        sides.append(compare.Side(path, Deployment.of(document, folder)))
        for problem in compare.problems(sides[-1]):
            call.warn(problem)
    compared = compare.compare(*sides)
    call.emit_page(compared, view.page(compared))
    if compared.forbidding:
        raise click.exceptions.Exit(PartialFailure.exit_code)


@commands.command("set", connection=False)
@_CONFIG
@click.argument("key")
@click.argument("value", required=False)
@click.option("--unset", is_flag=True, help="Remove the option instead.")
@click.option("--rename", is_flag=True, help="Give the option KEY the name VALUE; its value stays.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would change.")
def set_(
    call: Call,
    *,
    config: Paths | None,
    key: str,
    value: str | None,
    unset: bool,
    rename: bool,
    dry_run: bool,
) -> None:
    """Change one option in a JSON file; comments and layout stay.

    The old file is kept next to it. KEY is an option of the section "PostgreSQL", such as Host or PostgreSQL.Host, or
    one of Orthanc itself. VALUE is the text, number, true or false; - reads it from standard input, for passwords.
    With --rename, KEY is a name that `config check` calls misspelt, and VALUE the right one.

    \b
    Examples:
      pgorthanc config set Host db1 --config /etc/orthanc
      pgorthanc config set StorageDirectory /data --config /etc/orthanc --dry-run
      pgorthanc config set Password - --config /etc/orthanc < password.txt
      pgorthanc config set --rename EnableIndx EnableIndex --config /etc/orthanc
    """
    from pgorthanc_cli.config import edit
    from pgorthanc_cli.views import config as views

    if config is None:
        raise UsageError("no configuration is named", "name it with --config")
    paths = (word for path in config.paths for word in ("--config", str(path)))
    check = shlex.join(["pgorthanc", "config", "check", *paths])
    if rename:
        if value is None or unset:
            raise UsageError("--rename needs two names: KEY as it is, VALUE as it must be", _SET_HELP)
        renamed = edit.rename_option(config, key, value, environ=os.environ, dry_run=dry_run)
        call.emit_page(renamed, views.renamed_page(renamed, check))
        return
    keys = edit.key_of(key)
    if (value is None) != unset:
        raise UsageError("give a VALUE, or --unset", _SET_HELP)
    new = None if value is None else edit.value_of(keys, _text(keys[-1], value))
    edited = edit.set_option(config, keys, new, environ=os.environ, dry_run=dry_run)
    call.emit_page(edited, views.edited_page(edited, check))


def _text(key: str, value: str) -> str:
    """Return the value, from standard input if it is `-`; refuse passwords on the command line."""
    if value == "-":
        # A password may begin or end with blanks: only the end of the line is removed.
        return sys.stdin.readline().rstrip("\r\n")
    from pgorthanc_cli import db

    if key == "Password" or (key == "ConnectionUri" and "password" in db.parse_dsn(value, key)):
        raise UsageError(
            "a password on the command line can be read by every user of this machine",
            f"give it on standard input: pgorthanc config set {key} - < FILE",
        )
    return value


def _deployment(
    *,
    config: Paths | None,
    plugin: str | None,
    container: bool,
    env_file: Path | None,
    secrets: Path,
    containers: int = 1,
) -> Deployment:
    """Return the configuration that the options name, and what is known about its readers."""
    from pgorthanc_cli.config import documents, image
    from pgorthanc_cli.config.deployment import Deployment

    if env_file and not container:
        raise UsageError("--env-file without --container: only the image reads variables", "add --container")
    if container:
        document = image.read(config, image.variables(env_file) if env_file else os.environ, secrets)
    elif config:
        document = documents.read(config, os.environ)
    else:
        raise UsageError(
            "no configuration is named", "name it with --config, or read a container's with --container"
        )
    folder = config.folder if config else Path().absolute()
    return Deployment.of(document, folder, release=plugin, containers=containers, in_image=container)


def _unread_container_variables(reader: dict[str, Any]) -> tuple[Problem, ...]:
    """Return a problem for variables of the container image outside of it."""
    from pgorthanc_cli.config import image
    from pgorthanc_cli.config.documents import Problem

    names = sorted(name for name in os.environ if name.startswith(image.PREFIX))
    if reader["container"] or not names:
        return ()
    message = f"{names[0]} and {len(names) - 1} more are set" if len(names) > 1 else f"{names[0]} is set"
    return (
        Problem(
            "",
            "warning",
            f"{message}, but only the image {image.IMAGE} reads it",
            "add --container if that is it",
        ),
    )


def _database_problems(call: Call, deployment: Deployment) -> tuple[Problem, ...]:
    """Return the problems with the database, if the configuration is good enough to connect."""
    from pgorthanc_cli import config
    from pgorthanc_cli.config import ConfigurationError, database, documents
    from pgorthanc_cli.config.orthanc import validate

    if not (deployment.option("EnableIndex") or deployment.option("EnableStorage")):
        return ()
    try:
        orthanc = validate(documents.Paths.of("the configuration"), deployment.document)
        # Only this configuration counts here, and a server that is down is a problem to report at once.
        target = config.resolve(application=f"pgorthanc {call.name}", orthanc=orthanc, environ={}).target
    except (ConfigurationError, UsageError):
        # They are among the problems of the document itself.
        return ()
    return database.problems(deployment, replace(target, retries=0))


for _command in (check, show, uri, new, diff, set_):
    command.add_command(_command)
