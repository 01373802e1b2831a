"""The Click skin: a command is options, one library call, one emit.

`command()` gives every command the same options for the same things; `Call` is what they mean.
Longer than other modules: half of it declares the options that all commands share.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pgorthanc_cli import output
from pgorthanc_cli.commands.help_options import Command, Group, Option
from pgorthanc_cli.commands.type_options import PORT
from pgorthanc_cli.constants import NAGIOS, SSLMODES
from pgorthanc_cli.errors import Interrupted, PgOrthancError, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.config import Resolved
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.views.page import Page


_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")


# A `click.option` that may have `aliases`: names of former releases, which the help does not show.
option = partial(click.option, cls=Option)


def section(title: str) -> Callable[..., Callable[[_Function], _Function]]:
    """Return a `click.option` for options that the help shows together under a heading."""
    return partial(click.option, cls=Option, section=title)


CONFIG_HELP = "Orthanc's configuration, a JSON file or a folder of them; repeatable."
_connection, _output = section("Connection"), section("Output")
_OUTPUT = (
    _output("--json", "as_json", is_flag=True, help="Print one JSON document."),
    _output("-q", "--quiet", is_flag=True, help="Print problems only: no progress, no warnings."),
    _output("-v", "--verbose", is_flag=True, help="Print details, and where each setting came from."),
    _output(
        "--traceback",
        is_flag=True,
        expose_value=False,
        help="Show the Python traceback of an unexpected error.",
    ),
    _output(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        expose_value=False,
        callback=lambda _context, _option, value: _set_colour(value),
        help="Colours and bold type.  [default: auto, without NO_COLOR]",
    ),
    _output(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Also append what stderr shows to FILE, with times.",
    ),
    _output(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How --log-file is written; json: one object a line.",
    ),
    _output(
        "--no-input",
        is_flag=True,
        expose_value=False,
        callback=lambda context, _option, value: context.meta.update({_NO_INPUT: value}),
        help="Never ask a question or for a password.",
    ),
)
_CONNECTION = (
    _connection("--uri", metavar="DSN", help="Connection URI or keyword/value string, as libpq takes it."),
    _connection("--host", metavar="HOST", help="Host name, address or folder of the socket."),
    _connection("-p", "--port", type=PORT, metavar="PORT", help="TCP port.  [default: 5432]"),
    _connection("-d", "--dbname", metavar="NAME", help="Database."),
    _connection("-U", "--username", metavar="ROLE", help="Role to log in with."),
    _connection(
        "--sslmode",
        type=click.Choice(SSLMODES),
        help="TLS; only verify-full proves the identity of the server.",
    ),
    _connection("--schema", metavar="NAME", help="PostgreSQL schema of the index.  [default: public]"),
    _connection(
        "--config",
        type=click.Path(exists=True),
        multiple=True,
        metavar="PATH",
        help=CONFIG_HELP,
    ),
    _connection(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="File whose first line is the password.",
    ),
    _connection(
        "--embedded",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="The private PostgreSQL server in DIR; init, migrate-sqlite and server start create it.",
    ),
)
nagios_option = _output("--nagios", is_flag=True, help="One line and the exit code of a monitoring plugin.")


class _Warnings(logging.Handler):
    """Shows what rooms log, such as the attempts of `db.connect`, as warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        output.warn(record.getMessage())


_NO_INPUT = "pgorthanc_cli.no_input"
_SEVERAL_SERVERS = {"replication standby", "replication promote", "replication rejoin"}


def may_ask() -> bool:
    """Return whether a person can answer: stdin and stderr are a terminal, and no --no-input."""
    asking = not click.get_current_context().meta.get(_NO_INPUT)
    return asking and sys.stdin.isatty() and sys.stderr.isatty()


def _set_colour(choice: str | None) -> None:
    """Set the variables that rich reads, for this process and its workers."""
    if choice in ("always", "never"):
        os.environ.pop("NO_COLOR", None)
        os.environ.pop("FORCE_COLOR", None)
        # rich reads them whenever a console is created.
        os.environ["FORCE_COLOR" if choice == "always" else "NO_COLOR"] = "1"


def _open_log(path: Path | None, form: str) -> None:
    if path is None:
        output.log_to(None)
        return
    from pgorthanc_cli import log_file

    output.log_to(log_file.open_log(path, as_json=form == "json"))


class Call:
    """One call of a command: its connection options, and how to show its result."""

    def __init__(
        self, name: str, options: dict[str, Any], *, as_json: bool, quiet: bool, verbose: bool
    ) -> None:
        self.name = name
        self.options = options
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        logger = logging.getLogger("pgorthanc_cli")
        # Replaced: a second call in one process must not print each warning twice.
        logger.handlers = [_Warnings()]
        logger.setLevel(logging.ERROR if quiet else logging.WARNING)

    @contextmanager
    def resolved(self, *, create: bool = False, needed: bool = True) -> Iterator[Resolved]:
        """Yield the target and the Orthanc configuration that options and environment mean.

        Args:
            create: Create the private server of --embedded if it is missing.
            needed: Whether a server is needed; if not, none is started or connected to.
        """
        from pgorthanc_cli import config

        options = dict(self.options)
        embedded_dir = options.pop("embedded")
        if embedded_dir:
            _refuse_with_embedded(options)
        settings = config.resolve(application=f"pgorthanc {self.name}", **options)
        for warning in settings.warnings:
            self.warn(warning)
        if not needed:
            yield settings
            return
        if not embedded_dir:
            self._print_origins(settings)
            yield replace(settings, target=_with_password(settings.target))
            return
        from pgorthanc_cli.server import embedded

        with embedded.attach(Path(embedded_dir), create=create) as server:
            settings = settings.at(server.dsn, "--embedded")
            self._print_origins(settings)
            yield settings

    @contextmanager
    def target(self) -> Iterator[Target]:
        """Yield the database that the options mean."""
        with self.resolved() as settings:
            yield settings.target

    def _print_origins(self, settings: Resolved) -> None:
        if self.verbose:
            for setting in settings.provenance:
                output.note(str(setting))

    def emit_page(self, result: object, page: Page) -> None:
        """Show the result as JSON, or as its page; with --quiet only problems."""
        output.log(logging.INFO, page.headline)
        if self.as_json:
            output.emit(result)
            return
        from pgorthanc_cli import render
        from pgorthanc_cli.views.page import only_problems

        shown = only_problems(page) if self.quiet else page
        if shown:
            output.text(render.text(shown, render.Medium.of(sys.stdout)))

    def command_line(self, *words: str, **changed: str) -> str:
        """Return a command to paste: `pgorthanc WORDS`, with the connection options of this call.

        `changed` replaces some of these. It never has a password: one in --uri is left out.
        """
        connection = []
        for name, given in (self.options | changed).items():
            for value in given if isinstance(given, tuple) else (given,) if given else ():
                text = str(value)
                connection += [_option(name), _without_password(text) if name == "uri" else text]
        return shlex.join(["pgorthanc", *words, *connection])

    def complete(self, error: PgOrthancError) -> None:
        """Give the command to paste in a hint the connection options of this call.

        Without effect if it names a server itself, or if one of the two commands works with the
        data folders of several servers.
        """
        advice, paste = error.advice()
        if not paste.startswith("pgorthanc "):
            return
        words = shlex.split(paste)[1:]
        known = _connection_options(_named(words))
        names = {name for name, value in self.options.items() if value}
        if (
            names.issubset(known)
            and not any(_option(name) in words for name in known)
            and {self.name, " ".join(words[:2])}.isdisjoint(_SEVERAL_SERVERS)
        ):
            error.hint = f"{advice} {self.command_line(*words)}"

    def again(self, *added: str, without: Collection[str] = ()) -> str:
        """Return this command line, to paste: with more options, which replace their equals, or without some flags.

        A password in --uri is left out.
        """
        context = click.get_current_context()
        words = list(_kept(context.obj, context.command, {*added}, without))
        for number, word in enumerate(words):
            if word.startswith("--uri="):
                words[number] = f"--uri={_without_password(word[6:])}"
            elif number and words[number - 1] == "--uri":
                words[number] = _without_password(word)
        depth = len(self.name.split())
        return shlex.join(["pgorthanc", *words[:depth], *added, *words[depth:]])

    def watch(self, make: Callable[[], _Result], page: Callable[[_Result], Page]) -> None:
        """Show a result repeatedly until Ctrl-C, as its page or as lines of JSON."""
        from pgorthanc_cli import render

        medium = render.Medium.of(sys.stdout)

        def show(result: _Result) -> str:
            return render.text(page(result), medium)

        output.watch(make, None if self.as_json else show)

    def nagios(self, status: str, summary: str, figures: Mapping[str, object] | None = None) -> NoReturn:
        """End with the line and the exit code of a monitoring plugin; `status` is a key of NAGIOS."""
        output.nagios(self.name.replace(" ", "-"), status, summary, figures or {})
        raise click.exceptions.Exit(NAGIOS[status])

    def warn(self, message: str) -> None:
        """Show a warning, unless --quiet."""
        if not self.quiet:
            output.warn(message)


def _kept(
    words: Sequence[str], command: click.Command, replaced: Collection[str], without: Collection[str]
) -> Iterator[str]:
    """Yield the words of a command line but for some flags, and for options that are replaced, with their values."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    flags = {name for option in options if option.is_flag for name in option.opts}
    rest = iter(words)
    for word in rest:
        name, has_value, _ = word.partition("=")
        if word == "--":
            yield from (word, *rest)
        elif name.startswith("--") and name in replaced:
            if not has_value and name not in flags:
                next(rest, None)
        elif word.startswith("-") and word != "-" and flags.issuperset(f"-{letter}" for letter in word[1:]):
            # Flags in one word, such as -qn.
            if left := "".join(letter for letter in word[1:] if f"-{letter}" not in without):
                yield f"-{left}"
        elif word not in without:
            yield word


def _without_password(dsn: str) -> str:
    from psycopg2.extensions import make_dsn

    from pgorthanc_cli import db

    parameters = db.parse_dsn(dsn)
    rest = {name: value for name, value in parameters.items() if name not in db.SECRETS}
    # `make_dsn` writes a URI as keywords: it stays as given where nothing is secret.
    return dsn if rest == parameters else str(make_dsn(**rest))


def _connection_options(command: click.Command | None) -> list[str]:
    """Return the names of the connection options that a command takes."""
    return [
        parameter.name or ""
        for parameter in (command.params if command else ())
        if isinstance(parameter, Option) and parameter.section == "Connection"
    ]


def _named(words: Sequence[str]) -> click.Command | None:
    """Return the command that a command line calls; None if there is none."""
    context = click.get_current_context().find_root()
    command: click.Command | None = context.command
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(context, word)
    return command


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_with_embedded(options: dict[str, Any]) -> None:
    clash = [
        f"--{name}" for name in ("uri", "host", "port", "dbname", "username", "sslmode") if options[name]
    ]
    if clash:
        raise UsageError(f"--embedded and {', '.join(clash)} contradict each other", "name one server")


def _with_password(target: Target) -> Target:
    """Ask for the password if the server requires one that is not given, and a terminal is attached.

    Rooms never prompt, so one attempt is made here; any other failure is left to the command.
    """
    if not may_ask():
        return target
    from pgorthanc_cli import db

    try:
        db.connect(replace(target, retries=0), readonly=True).close()
    except db.PasswordRequired:
        try:
            password: str = click.prompt(f"Password for {target}", hide_input=True, err=True)
        except click.Abort:
            raise Interrupted("interrupted at the question for the password; nothing was done") from None
        return target.with_password(password)
    except PgOrthancError:
        return target
    return target


class List(click.File):
    """A file that is read line by line; - is standard input. Named pipes are refused: their writer may never come."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the opened file."""
        if value == "-":
            return super().convert(value, param, ctx)
        from pgorthanc_cli import files

        try:
            stream = os.fdopen(files.open_to_read(value), "rb")
        except OSError as error:
            self.fail(f"{value!r}: {error.strerror}", param, ctx)
        except UsageError as error:
            self.fail(error.message, param, ctx)
        if ctx is not None:
            ctx.call_on_close(stream.close)
        return stream


def depth_option(
    *levels: str, default: str, explanation: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--depth`, and `--deep` for the last of its levels; the function gets `depth`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--depth", type=click.Choice(levels), default=default, show_default=True, help=explanation
        )
        @click.option("--deep", is_flag=True, help=f"The same as --depth {levels[-1]}.")
        @wraps(function)
        def run(*arguments: Any, depth: str, deep: bool, **options: Any) -> None:
            function(*arguments, depth=levels[-1] if deep else depth, **options)

        return run

    return decorate


def command(
    name: str,
    *,
    connection: bool = True,
    help_values: Callable[[], Mapping[str, str]] | None = None,
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command with the shared options of a function.

    The function gets a `Call` first, then its own options. `help_values` is called when the
    help is shown, so that it may import a room.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        # `wraps` also copies the options that click has attached (__click_params__).
        @wraps(function)
        def run(*, as_json: bool, quiet: bool, verbose: bool, **own: Any) -> None:
            context = click.get_current_context()
            names = _connection_options(context.command) if connection else []
            options = {name: own.pop(name) for name in names}
            # A monitoring system reads only one line.
            quiet = quiet or bool(own.get("nagios"))
            path = context.command_path.partition(" ")[2]  # with the names of its groups
            _open_log(own.pop("log_file"), own.pop("log_format"))
            call = Call(path or name, options, as_json=as_json, quiet=quiet, verbose=verbose)
            try:
                function(call, **own)
            except PgOrthancError as error:
                call.complete(error)
                raise

        # click lists options in the opposite order of their declaration.
        for declare in reversed((*(_CONNECTION if connection else ()), *_OUTPUT)):
            run = declare(run)
        result = click.command(name, cls=Command)(run)
        result.help_values = help_values
        return result

    return decorate


def group(name: str) -> Callable[[Callable[..., None]], Group]:
    """Make a group of commands of a function, whose docstring is its help."""
    return click.group(name, cls=Group)
