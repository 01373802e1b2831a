"""Options, plan, progress and questions of `upgrade` and `downgrade`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import output, signals
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.progress import Progress
    from pgorthanc_cli.upgrade import Changed, Settings

_PRINT_EVERY_S = 5.0

_OPTIONS = (
    click.option("--to", type=int, metavar="N", help="Revision that is wanted."),
    click.option("--plugin", metavar="V", help="Or the release of Orthanc's plugin that it is wanted for."),
    click.option("--plan", "planned", is_flag=True, help="Say what would be done, and stop."),
    click.option("--sql", is_flag=True, help="Print the statements for an administrator, and stop."),
    click.option(
        "--phase",
        type=click.Choice(["prepare", "switch", "finish"]),
        help="Only this phase; prepare and finish run beside Orthanc.  [default: all, in this order]",
    ),
    click.option(
        "--wait", "wait_s", type=click.FloatRange(min=0), default=0, metavar="SECONDS",
        help="Wait for others to leave the database.",
    ),
    click.option("--terminate", is_flag=True, help="End the sessions of others."),
    click.option("--yes", is_flag=True, help="Do not ask."),
)  # fmt: skip


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of both commands."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def target_revision(to: int | None, plugin: str | None) -> int | None:
    """Return the revision of --to or --plugin; None if neither is given."""
    from pgorthanc_cli.schema import catalog

    if to is not None and plugin is not None:
        raise UsageError("--to and --plugin both say which revision is wanted", "give one of them")
    if to is not None:
        catalog.require_revision(to)  # before the first connection
    return to if plugin is None else catalog.revision_of_plugin(plugin)


def settings(*, phase: str | None, **options: Any) -> Settings:
    """Return the options as settings of the library."""
    from pgorthanc_cli import upgrade

    return upgrade.Settings(phases=(phase,) if phase else upgrade.PHASES, **options)


def show_plan(call: Call, target: Target, to: int, *, as_sql: bool) -> None:
    """Show what would be done."""
    from pgorthanc_cli import db, upgrade

    down = call.name == "downgrade"
    with db.session(target, readonly=True) as conn:
        plan = upgrade.plan(conn, target.schema, to, down=down)
    if as_sql:
        output.text(upgrade.sql(plan, command=call.name))
    else:
        call.emit(plan)


def confirm(question: str, details: Sequence[object], *, yes: bool, needed: bool) -> None:
    """Ask for confirmation, if stdin is a terminal.

    Args:
        question: The question.
        details: Printed before the question, one per line.
        yes: Whether the user has confirmed already.
        needed: Whether to refuse without a confirmation if stdin is not a terminal.
    """
    if yes:
        return
    for line in details:
        output.warn(str(line))
    if not sys.stdin.isatty():
        if needed:
            raise UsageError(f"{question} Nobody is there to answer", "if that is what you want, add --yes")
        return
    if not click.confirm(question, err=True):
        raise Interrupted("the answer was no; nothing was changed")


def confirm_termination(target: Target, *, yes: bool) -> None:
    """Show the sessions that would be ended, and ask for confirmation."""
    from pgorthanc_cli import db, upgrade

    with db.session(target, readonly=True) as conn:
        sessions = upgrade.other_sessions(conn)
    if sessions:
        confirm("End the sessions of others?", sessions, yes=yes, needed=True)


def run(call: Call, change: Callable[..., Changed], target: Target, to: int, settings: Settings) -> None:
    """Change the revision, show the progress, and emit the result; Ctrl-C stops it at the next safe point."""
    from pgorthanc_cli.schema import catalog

    printer = ProgressPrinter(quiet=call.quiet)
    with signals.stop_on_signal() as stop:

        def report(progress: Progress) -> None:
            if stop.is_set():
                raise Interrupted("interrupted; what was done stays, or was undone", "run it again to go on")
            printer.update(progress)

        changed = change(target, to=to, settings=settings, report=report)
    for warning in _warnings(changed, catalog.TRIGRAM_WARNINGS):
        call.warn(warning)
    call.emit(changed)


def _warnings(changed: Changed, trigram_warnings: dict[str, str]) -> list[str]:
    return [
        *(f"mended: {what}" for what in changed.repaired),
        *(f"merged: {what}" for what in changed.merged),
        *(f"no row names the file {file.uuid} any more" for file in changed.surplus_files),
        *([trigram_warnings[changed.trigram]] if changed.trigram in trigram_warnings else []),
    ]


class ProgressPrinter:
    """Prints a line for each new step, and one every few seconds while it lasts."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._step = ""
        self._printed = 0.0

    def update(self, progress: Progress) -> None:
        """Print a line, unless one of this step was printed a moment ago."""
        now = time.monotonic()
        recent = progress.what == self._step and now - self._printed < _PRINT_EVERY_S
        if self._quiet or recent:
            return
        self._step, self._printed = progress.what, now
        output.note(f"{progress.phase}: {progress.what}{_extent(progress)}")


def _extent(progress: Progress) -> str:
    if progress.done is None:
        return ""
    if not progress.total:
        return f", {progress.done:,}"
    return f", {100 * progress.done / progress.total:.0f} %"
