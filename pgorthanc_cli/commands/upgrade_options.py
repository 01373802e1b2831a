"""Options, plan, progress and questions of `upgrade` and `downgrade`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pgorthanc_cli import output, signals
from pgorthanc_cli.commands import Call, may_ask, option
from pgorthanc_cli.commands.type_options import TIME
from pgorthanc_cli.errors import Interrupted, PgOrthancError, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.progress import Progress
    from pgorthanc_cli.upgrade import Changed, Settings
    from pgorthanc_cli.views.page import Page
    from pgorthanc_cli.views.upgrade import Commands

_PRINT_EVERY_S = 5.0
_UNCONFIRMED = "confirmation needed, but stdin is not a terminal, or --no-input was given"

_OPTIONS = (
    click.option("--to", type=int, metavar="N", help="Target revision."),
    click.option("--plugin", metavar="VERSION", help="Or the PostgreSQL plugin that will use it."),
    click.option("--plan", "planned", is_flag=True, help="Show what would be done, with estimates, and stop."),
    option(
        "--print-sql",
        "sql",
        aliases=["--sql"],
        is_flag=True,
        help="Print the statements for an administrator, and stop.",
    ),
    click.option(
        "--phase",
        type=click.Choice(["prepare", "switch", "finish"]),
        help="Only this phase; prepare and finish run while Orthanc is running.  [default: all, in this order]",
    ),
    click.option(
        "--wait", "wait_s", type=TIME, default=0, metavar="TIME",
        help="Wait for other sessions to leave the database.",
    ),
    click.option("--terminate", is_flag=True, help="End other sessions."),
    click.option("--yes", is_flag=True, help="Do not ask."),
)  # fmt: skip


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of both commands."""
    for declare in reversed(_OPTIONS):
        function = declare(function)
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


def commands_of(call: Call, to: int | None, plugin: str | None, flags: Mapping[str, object]) -> Commands:
    """Return what a page needs to suggest commands: this one with other options, and others."""
    from pgorthanc_cli.views.upgrade import Commands

    words = [call.name]
    words += ["--to", str(to)] if to is not None else []
    words += ["--plugin", plugin] if plugin is not None else []
    words += [f"--{name.replace('_', '-')}" for name, value in flags.items() if value is True]
    return Commands(call.command_line, tuple(words))


def show_plan(
    call: Call, target: Target, to: int, commands: Commands, *, as_sql: bool, merge: bool = False
) -> None:
    """Show what would be done; exit code 6 if it is blocked."""
    from pgorthanc_cli import db, upgrade
    from pgorthanc_cli.views import upgrade as views

    down = call.name == "downgrade"
    with db.session(target, readonly=True) as conn, output.steps(quiet=call.quiet) as report:
        plan = upgrade.plan(conn, target.schema, to, down=down, report=report)
    if as_sql:
        output.text(upgrade.sql(plan, command=call.name))
        return
    page = views.plan_page(plan, commands, merge=merge)
    call.emit_page(plan, page)
    if page.status == "problem":
        raise click.exceptions.Exit(6)


def confirm(question: str, details: Sequence[object], *, yes: bool, needed: bool) -> None:
    """Ask for confirmation, if a person can answer.

    Args:
        question: The question.
        details: Printed before the question, one per line.
        yes: Whether the user has confirmed already.
        needed: Whether to refuse without a confirmation if no person can answer.
    """
    if yes:
        return
    for line in details:
        output.warn(str(line))
    _ask(question, UsageError(_UNCONFIRMED, "add --yes to confirm") if needed else None)


def confirm_page(question: str, page: Page, refusal: PgOrthancError | None) -> None:
    """Show a page on stderr and ask for confirmation, if a person can answer.

    Args:
        question: The question.
        page: What to know before.
        refusal: The error if no person can answer; None: continue without confirmation.
    """
    from pgorthanc_cli import render

    click.echo(render.text(page, render.Medium.of(sys.stderr)), err=True)
    _ask(question, refusal)


def _ask(question: str, refusal: PgOrthancError | None) -> None:
    if not may_ask():
        if refusal:
            raise refusal
        return
    # Not on stdout, which may be a pipe that expects only the result.
    if not click.confirm(question, err=True):
        output.note("Cancelled. Nothing was changed.")
        raise click.exceptions.Exit(1)


def confirm_termination(target: Target, *, yes: bool) -> None:
    """Show the sessions that would be ended, and ask for confirmation."""
    from pgorthanc_cli import db, upgrade
    from pgorthanc_cli.views import upgrade as views

    with db.session(target, readonly=True) as conn:
        sessions = upgrade.other_sessions(conn)
    if sessions and not yes:
        refusal = UsageError(_UNCONFIRMED, "add --yes to end these sessions")
        confirm_page("End these sessions?", views.sessions_page(sessions), refusal)


def run(
    call: Call,
    change: Callable[..., Changed],
    target: Target,
    to: int,
    settings: Settings,
    commands: Commands,
) -> None:
    """Change the revision, show the progress and the result; Ctrl-C stops it at the next safe point."""
    from pgorthanc_cli.views import upgrade as views

    printer = ProgressPrinter(quiet=call.quiet)
    answer = "" if call.quiet else signals.STOPPING.format("at the next safe point")
    with signals.stop_on_signal(answer) as stop:

        def report(progress: Progress) -> None:
            if stop.is_set():
                raise Interrupted(
                    "interrupted; the steps that were finished stay, the unfinished one was undone",
                    f"to continue, run: {commands.again()}",
                )
            printer.update(progress)

        changed = change(target, to=to, settings=settings, report=report)
    call.emit_page(changed, views.changed_page(changed, commands))


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
