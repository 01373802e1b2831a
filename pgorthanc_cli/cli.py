"""The main group: finds commands by name, and is the one place that turns errors into exit codes."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import Any

import click

from pgorthanc_cli import __version__, commands, output
from pgorthanc_cli.errors import ConnectError, Interrupted, PgOrthancError, UsageError

# Name on the command line -> module in pgorthanc_cli.commands. A module is imported when its command runs
# (or when the list of commands is shown), and imports its room when the command is called.
COMMANDS = {
    "config": "config",
    "check-lock": "check_lock",
    "check-auth": "check_auth",
    "doctor": "doctor",
    "downgrade": "downgrade",
    "import": "import_",
    "init": "init",
    "migrate-sqlite": "migrate_sqlite",
    "keepalive-test": "keepalive_test",
    "replication": "replication",
    "server": "server",
    "status": "status",
    "support-bundle": "support_bundle",
    "upgrade": "upgrade",
    "verify": "verify",
    "wait": "wait",
}


class Main(click.Group):
    """The group of all commands; each is imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None: click then says that there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pgorthanc_cli.commands.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes a message on stderr and the exit code of its class."""
        monitored = "--nagios" in ctx.args
        try:
            return super().invoke(ctx)
        except PgOrthancError as error:
            failure = error
        except click.UsageError as error:
            if not monitored:
                raise
            failure = UsageError(error.format_message())
        except KeyboardInterrupt:
            failure = Interrupted(
                "interrupted; everything that was counted is committed", "run it again to go on"
            )
        if monitored:
            status = "CRITICAL" if isinstance(failure, ConnectError) else "UNKNOWN"
            output.nagios(ctx.invoked_subcommand or "pgorthanc", status, failure.message, {})
            raise click.exceptions.Exit(commands.NAGIOS[status])
        output.fail(failure, as_json=bool(ctx.meta.get("json")))
        raise click.exceptions.Exit(failure.exit_code)


@click.command(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pgorthanc")
def main() -> None:
    """Administer the PostgreSQL databases of Orthanc, the DICOM server.

    \b
    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 cannot reach the server or log in;
    4 no index, unknown or damaged schema; 5 somebody works on the database;
    6 finished, but some items were refused; 130 interrupted (run again to go on).
    """
    for number in commands.ending_signals():
        if number != signal.SIGINT:
            signal.signal(number, _terminate)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: the batch at hand is settled first."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
