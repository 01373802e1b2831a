"""The main group: finds commands by name, and is the one place that turns errors into exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import resource
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from pgorthanc_cli import __version__, commands, output, signals
from pgorthanc_cli.commands import help_options
from pgorthanc_cli.constants import NAGIOS
from pgorthanc_cli.errors import ConnectError, Interrupted, PgOrthancError
from pgorthanc_cli.text import printable


def _command_modules() -> dict[str, str]:
    """Return the commands by name: the modules of `commands/`, but those with shared options."""
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    modules = (name for name in names if not name.endswith("_options"))
    # `import_` has the underscore because `import` is a keyword of Python.
    return {name.rstrip("_").replace("_", "-"): name for name in modules}


# A module is imported when its command runs or is listed, and imports its room when it is called.
COMMANDS = _command_modules()


# How the help lists them: the first sentences of their own helps, as importing all commands to read those would
# take as long as everything else that `--help` does. A test compares.
GROUPS = {
    "Set up": {
        "init": "Create an Orthanc index in an empty schema, or repair one.",
        "config": "Create, check, compare and edit Orthanc's configuration.",
        "wait": "Wait until Orthanc can start.",
        "server": "Run a private PostgreSQL server.",
    },
    "Inspect (changes nothing)": {
        "status": "Show what an index contains and who is using it.",
        "verify": "Check an index and its stored files for damage.",
        "doctor": "Check the server and the index, and suggest fixes.",
        "check-lock": "Show which sessions hold Orthanc's locks.",
        "check-auth": "Show whether Orthanc can log in, and if not, why.",
        "keepalive-test": "Find out when idle connections are dropped.",
        "explain-log": "Explain the PostgreSQL messages in an Orthanc log.",
    },
    "Change": {
        "storage": "Show where the stored files are, and move them.",
        "import": "Import DICOM files, folders, ZIP and gzip archives.",
        "upgrade": "Upgrade an index for a newer PostgreSQL plugin.",
        "downgrade": "Downgrade an index for an older PostgreSQL plugin.",
        "reindex": "Recompute main DICOM tags from the stored files.",
        "migrate-sqlite": "Convert Orthanc's default SQLite index to PostgreSQL.",
    },
    "Protect": {
        "replication": "Keep a standby copy of the database, and fail over to it.",
    },
    "Help": {
        "guide": "Show a run-book in the terminal.",
        "support-bundle": "Collect diagnostics in a file, without patient data.",
        "completion": "Print the completion script for bash, zsh or fish.",
    },
}


class Main(help_options.Group):
    """The group of all commands; each is imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(COMMANDS)

    def listed(self, ctx: click.Context) -> Mapping[str, Mapping[str, str]]:
        """Return the summaries of the commands by what they are for."""
        return GROUPS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None: click then says that there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pgorthanc_cli.commands.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C and SIGTERM become an error of ours."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; everything that was counted is committed", "run it again to go on"
            ) from None

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line and exit: whatever happens becomes a message on stderr and an exit code."""
        words = list(sys.argv[1:] if args is None else args)
        output.prepare()
        try:
            code = super().main(words, prog_name, standalone_mode=False, obj=words, **extra) or 0
            output.flush()
        except click.UsageError as error:
            code = _usage(error, words)
        except click.ClickException as error:
            code = _fail(PgOrthancError(error.format_message()), words)
        except click.Abort:
            code = _fail(Interrupted("cancelled; nothing was changed"), words)
        except PgOrthancError as error:
            code = _fail(error, words)
        except Exception as error:  # noqa: BLE001 - the last resort: no traceback unless it is asked for
            code = _fail(_unexpected(error, words), words)
        output.close()
        sys.exit(code)


def _usage(error: click.UsageError, words: Sequence[str]) -> int:
    """Show what is wrong with the command line, or the help of a group that needs a command."""
    if isinstance(error, _NO_COMMAND) and error.ctx:
        with suppress(OSError):
            sys.stderr.write(f"{error.ctx.get_help()}\n")
        return error.exit_code
    return _fail(help_options.usage_error(error), words)


def _fail(error: PgOrthancError, words: Sequence[str]) -> int:
    """Show an error and return its exit code."""
    if any(isinstance(cause, OSError) and cause.errno == errno.EMFILE for cause in _causes(error)):
        error.hint = _open_files_hint()  # whatever could not be opened
    try:
        if "--nagios" in words:
            status = "CRITICAL" if isinstance(error, ConnectError) else "UNKNOWN"
            service = next((word for word in words if not word.startswith("-")), "pgorthanc")
            output.nagios(service, status, error.message, {})
            return NAGIOS[status]
        output.fail(error, as_json="--json" in words)
    except OSError:  # stderr is full: the exit code still tells
        pass
    except (MemoryError, ImportError, SystemError):
        # Too little memory even for colours.
        os.write(2, f"error: {error.message}\n".encode(errors="backslashreplace"))
    return error.exit_code


def _unexpected(error: Exception, words: Sequence[str]) -> PgOrthancError:
    """Return what to say of an exception that no room expects.

    Its own text may hold a password or the name of a patient, so only its kind and its place are shown.
    """
    if "--traceback" in words:
        with suppress(OSError):
            traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return PgOrthancError(
            "not enough memory", "free some, raise the limit (ulimit -v), or use fewer --jobs"
        )
    if isinstance(error, OSError) and error.strerror:
        place = (
            f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        )
        hint = _open_files_hint() if error.errno == errno.EMFILE else _OS_HINTS.get(error.errno or 0, _BUG)
        return PgOrthancError(f"{place}{error.strerror}", hint)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    return PgOrthancError(f"unexpected error: {type(error).__name__} in {place}", _BUG)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those during whose handling it was raised."""
    while error:
        yield error
        error = error.__context__


def _open_files_hint() -> str:
    """Return the command that raises the limit on open files, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(2 * soft, 1024)
    if hard in (resource.RLIM_INFINITY, -1) or enough <= hard or os.geteuid() == 0:
        return f"raise the limit on open files: ulimit -n {enough}"
    if soft < hard:
        return f"raise the limit on open files: ulimit -n {hard}"
    return f"an administrator has to raise the limit on open files, which is {hard}"


def _show_versions(context: click.Context) -> None:
    """Print the versions that a report about a problem needs, and which plugins use which revision."""
    import platform

    from psycopg2.extensions import libpq_version

    from pgorthanc_cli import catalogs

    libpq = ".".join(map(str, divmod(libpq_version(), 10_000)))
    releases: dict[int, list[str]] = {}
    for layout in reversed(catalogs.load("layouts.json")):
        releases.setdefault(layout["revision"], []).append(layout["plugins"])
    lines = [
        f"pgorthanc, version {__version__}",
        f"Python {platform.python_version()}, libpq {libpq}",
        "",
        "Revisions, and the releases of Orthanc's PostgreSQL plugin that use them:",
        *(f"  {number:2}  {', '.join(releases[number])}" for number in catalogs.revisions()),
    ]
    output.text("\n".join(lines))
    context.exit()


# click before 8.2 prints that help itself.
_NO_COMMAND: tuple[type[click.UsageError], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])
)
_BUG = "this is a bug; run again with --traceback and report the output"
_OS_HINTS = {
    errno.ENFILE: "this machine has too many open files; close some programs",
    errno.ENOSPC: "free disk space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free disk space, then run the same command again",
    errno.EACCES: "run it as a user who may use that file or folder",
    errno.EPERM: "run it as a user who may change that file or folder",
    errno.EROFS: "choose a place on a file system that is not read-only",
}


@click.command(
    cls=Main,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar=None,
    subcommand_metavar="COMMAND [OPTIONS]",
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, value: _show_versions(ctx) if value else None,
    help="Show versions, and the supported revisions and plugins.",
)
def main() -> None:
    """Administer the PostgreSQL databases of Orthanc, the DICOM server.

    \b
    Examples:
      pgorthanc status --config /etc/orthanc
      pgorthanc doctor --config /etc/orthanc
      pgorthanc import --help

    Exit codes, output and interruptions: pgorthanc guide basics
    """
    signals.end_on_signals()
