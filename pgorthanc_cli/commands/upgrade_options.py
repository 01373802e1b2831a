"""What `upgrade` and `downgrade` share: options, the plan, the progress, the questions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.db import Target
    from pgorthanc_cli.upgrade import Changed, Event, Settings

_TELL_EVERY_S = 5.0

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
    """The options of both commands."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def wanted(to: int | None, plugin: str | None) -> int | None:
    """The revision that --to or --plugin means; None: none is given."""
    from pgorthanc_cli.schema import catalog

    if to is not None and plugin is not None:
        raise UsageError("--to and --plugin both say which revision is wanted", "give one of them")
    if to is not None:
        catalog.require_revision(to)  # before anything is asked of the server
    return to if plugin is None else catalog.revision_of_plugin(plugin)


def settings(*, phase: str | None, **given: Any) -> Settings:
    """The options, as the library wants them."""
    from pgorthanc_cli import upgrade

    return upgrade.Settings(phases=(phase,) if phase else upgrade.PHASES, **given)


def show_plan(call: Call, target: Target, to: int, *, as_sql: bool) -> None:
    """Look, say what would be done, and stop."""
    from pgorthanc_cli import db, upgrade

    down = call.name == "downgrade"
    with db.session(target, readonly=True) as conn:
        plan = upgrade.plan(conn, target.schema, to, down=down)
    if as_sql:
        output.text(upgrade.sql(plan, command=call.name))
    else:
        call.emit(plan)


def confirm(question: str, shown: Sequence[object], *, yes: bool, needed: bool) -> None:
    """Ask, where somebody sits at a terminal.

    Args:
        question: What to ask.
        shown: What to show before.
        yes: The answer is given already.
        needed: Without a terminal the answer has to be given.
    """
    if yes:
        return
    for line in shown:
        output.warn(str(line))
    if not sys.stdin.isatty():
        if needed:
            raise UsageError(f"{question} Nobody is there to answer", "if that is what you want, add --yes")
        return
    if not click.confirm(question, err=True):
        raise Interrupted("the answer was no; nothing was changed")


def confirm_termination(target: Target, *, yes: bool) -> None:
    """Show whose sessions would be ended, and ask."""
    from pgorthanc_cli import db, upgrade

    with db.session(target, readonly=True) as conn:
        found = upgrade.others(conn)
    if found:
        confirm("End the sessions of others?", found, yes=yes, needed=True)


def run(call: Call, events: Iterator[Event]) -> None:
    """Tell what goes on, and show the result; Ctrl-C ends it at the next safe point."""
    from pgorthanc_cli import upgrade
    from pgorthanc_cli.schema import catalog

    teller = Teller(quiet=call.quiet)
    with commands.stopping() as stop, closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, upgrade.Changed):
                changed = event
            elif stop.is_set():
                raise Interrupted("interrupted; what was done stays, or was undone", "run it again to go on")
            else:
                teller.tell(event)
    for warning in _warnings(changed, catalog.TRIGRAM_WARNINGS):
        call.warn(warning)
    call.emit(changed)


def _warnings(changed: Changed, of_trigram: dict[str, str]) -> list[str]:
    return [
        *(f"mended: {what}" for what in changed.repaired),
        *(f"merged: {what}" for what in changed.merged),
        *(f"no row names the file {file.uuid} any more" for file in changed.surplus_files),
        *([of_trigram[changed.trigram]] if changed.trigram in of_trigram else []),
    ]


class Told(Protocol):
    """Something that goes on."""

    @property
    def phase(self) -> str:
        """The part of the work that it belongs to."""

    @property
    def what(self) -> str:
        """What is done."""

    @property
    def done(self) -> int | None:
        """How much of it, None where nobody can tell."""

    @property
    def total(self) -> int | None:
        """Out of how much."""


class Teller:
    """A line for each thing that begins, and one every few seconds while it lasts."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ""
        self._told = 0.0

    def tell(self, event: Told) -> None:
        """Tell of it, unless it was told just now."""
        now = time.monotonic()
        if self._quiet or (event.what == self._last and now - self._told < _TELL_EVERY_S):
            return
        self._last, self._told = event.what, now
        output.note(f"{event.phase}: {event.what}{_extent(event)}")


def _extent(event: Told) -> str:
    if event.done is None:
        return ""
    if not event.total:
        return f", {event.done:,}"
    return f", {100 * event.done / event.total:.0f} %"
