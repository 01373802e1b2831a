"""The pages about a change of revision: its plan, and its result.

Commands to paste come from `Commands`, which knows the options of the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pgorthanc_cli.text import duration, plural, printable, shortened, size
from pgorthanc_cli.upgrade import PHASES, Changed, Item, Loss, Plan, Session
from pgorthanc_cli.views.page import Block, Facts, Note, Page, Status, Table

_SHOWN = 5  # of a list within a line
_MILLION = 1_000_000
_SHORT_S = 30.0  # a change that is not worth the separate phases


class CommandLine(Protocol):
    """Returns a command to paste, with the connection options of the call."""

    def __call__(self, *words: str) -> str:
        """Return the command line of `pgorthanc WORDS`."""


@dataclass(frozen=True)
class Commands:
    """The commands that a page suggests.

    Attributes:
        line: Returns a command with the connection options of this call.
        change: The words of this call: `upgrade`, or `downgrade --to 6`.
    """

    line: CommandLine
    change: tuple[str, ...]

    def again(self, *options: str) -> str:
        """Return the same change with other options."""
        return self.line(*self.change, *options)


# --- plan -------------------------------------------------------------------------------


def plan_page(plan: Plan, commands: Commands, *, merge: bool = False) -> Page:
    """Return the page of a plan; `merge`: duplicates will be merged, so they block nothing."""
    where = (str(plan.endpoint), *_where(plan))
    if not plan.needed:
        headline = f"Nothing to do: {plan.endpoint} is already at revision {plan.to}."
        return Page(headline, tuple(_where(plan)))
    blockers = [*_obstacles(plan), *(() if merge else _duplicates(plan, commands))]
    # Duplicates that could not be counted in time are only a warning.
    blocked = [note for note in blockers if note.status == "problem"]
    if blocked:
        obstacles = plural(len(blocked), "obstacle")
        headline = f"The {_change(plan)} is blocked by {obstacles}."
        again = Note("Next, check again:", paste=commands.again("--plan"))
        unchanged = Note("Nothing was changed.")
        blocks = (unchanged, *blockers, *_refusal(plan))
        return Page(headline, where, blocks, (again,), "problem")
    total = plan.prepare_s + plan.switch_s + plan.finish_s
    headline = f"Plan: {_change(plan)}, {_time(total, 'about ')}."
    # With a short change the separate phases are not worth two maintenance windows.
    if not _is_short(plan) and plan.switch:
        headline += f" Stop Orthanc only for the switch ({_time(plan.switch_s)})."
    warnings = (*blockers, *_refusal(plan), *_losses(plan), *_repairs(plan))
    blocks = (Note("Nothing was changed. No obstacles."), Facts(tuple(_facts(plan))), _steps(plan))
    status: Status = "warning" if any(note.status == "warning" for note in warnings) else ""
    steps = tuple(_next_of_plan(plan, commands))
    return Page(headline, where, (*blocks, *warnings), steps, status)


def _where(result: Plan | Changed) -> Iterator[str]:
    """Yield where we looked, after the database; the schema only if it is not the usual one."""
    if result.schema != "public":
        yield f"schema {printable(result.schema)}"
    yield from result.endpoint.login


def _is_short(plan: Plan) -> bool:
    return plan.prepare_s + plan.switch_s + plan.finish_s < _SHORT_S


def _change(plan: Plan) -> str:
    verb = "upgrade" if plan.to > plan.revision else "downgrade"
    if plan.to == plan.revision:
        return f"repair of the index at revision {plan.to}"
    return f"{verb} from {_revision(plan.revision)} to {plan.to}"


def _revision(number: int) -> str:
    return f"revision {number}" if number else "the layout before revision 1"


def _time(seconds: float, about: str = "") -> str:
    return "under 1 s" if seconds < 1 else f"{about}{duration(round(seconds))}"


def _obstacles(plan: Plan) -> Iterator[Note]:
    for obstacle in plan.blockers:
        advice = f"{obstacle.advice[:1].upper()}{obstacle.advice[1:]}"
        paste = "\n".join(obstacle.statements)
        if len(obstacle.statements) > 1:
            advice = f"{advice.rstrip(':')}, by one of these statements:"
        yield Note(obstacle.text, "problem", (advice,) if advice else (), paste)


def _duplicates(plan: Plan, commands: Commands) -> Iterator[Note]:
    if plan.duplicates is None:
        yield Note(
            "whether all public ids are unique could not be checked within 20 s",
            "unknown",
            ("The first phase finds out, while Orthanc is running.",),
        )
    if plan.duplicates:
        count = plural(len(plan.duplicates), "public id occurs", "public ids occur")
        yield Note(
            f"{count} more than once: {printable(shortened(plan.duplicates, _SHOWN))}",
            "problem",
            ("Revision 2 and later require unique ones. To merge them during the upgrade:",),
            commands.again("--repair-duplicates"),
        )


def _refusal(plan: Plan) -> Iterator[Note]:
    if plan.refusal:
        fact, *fixes = plan.refusal
        yield Note(fact, "warning", tuple(fix[:1].upper() + fix[1:] for fix in fixes if fix))


def _losses(plan: Plan) -> Iterator[Note]:
    if plan.not_held:
        rows = plural(sum(loss.rows for loss in plan.not_held), "row")
        listed = tuple(f"{loss.rows:,} {loss.what} -> {loss.table}" for loss in plan.not_held)
        kept = "They are kept in these tables, and the next upgrade restores them."
        text = f"revision {plan.to} cannot hold {rows} of this index"
        yield Note(text, "warning", (*listed, kept, *_unreadable(plan.not_held)))


def _unreadable(losses: Sequence[Loss]) -> Iterator[str]:
    for loss in losses:
        if loss.unreadable:
            count = plural(loss.files, "attachment")
            adopted = f", {loss.adopted:,} of them adopted" if loss.adopted else ""
            yield (
                f"Until then, Orthanc cannot find the files of {count}{adopted}: "
                "a storage plugin noted in customData where they are."
            )


def losses_page(plan: Plan, *, discard: bool) -> Page:
    """Return what to know before a downgrade that a person has to confirm."""
    rows = plural(sum(loss.rows for loss in plan.not_held), "row")
    headline = f"Revision {plan.to} cannot hold {rows} of this index:"
    if discard:
        table = Table(tuple((f"{loss.rows:,}", loss.what) for loss in plan.not_held), numbers=(0,))
        gone = "They will be deleted. Without --discard they are kept for the next upgrade."
        return Page(headline, (), (table, Note(gone, "problem")))
    table = Table(
        tuple((f"{loss.rows:,}", loss.what, f"→ {loss.table}") for loss in plan.not_held),
        numbers=(0,),
    )
    kept = "They are kept in these tables, which Orthanc ignores, until the next upgrade."
    unreadable = tuple(Note(text, "warning") for text in _unreadable(plan.not_held))
    return Page(headline, (), (table, Note(kept), *unreadable))


def sessions_page(sessions: Sequence[Session]) -> Page:
    """Return the sessions that would be ended."""
    count = plural(len(sessions), "other session is", "other sessions are")
    rows = tuple((_session(session),) for session in sessions)
    return Page(f"{count} connected to this database:", (), (Table(rows),))


def _repairs(plan: Plan) -> Iterator[Note]:
    if plan.repairs:
        count = plural(len(plan.repairs), "difference")
        text = f"{count} from {_revision(plan.revision)} will be repaired in the switch"
        yield Note(text, "warning", tuple(map(printable, plan.repairs)))


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    rows = next((table.rows for table in plan.tables if table.name == "resources"), 0)
    total = sum(table.size_bytes + table.index_bytes for table in plan.tables)
    yield "Index", f"about {_count(rows, 'resource')}, {size(total)}"
    if plan.space_bytes:
        tablespaces = [name for name in plan.tablespaces if name != "pg_default"]
        on = f" on tablespace {printable(', '.join(tablespaces))}" if tablespaces else ""
        needed = f"needs {size(plan.space_bytes)}{on}, and as much for the write-ahead log"
        yield "Disk", needed
    if plan.sessions:
        count = plural(len(plan.sessions), "session has", "sessions have")
        names = shortened(map(_session, plan.sessions), _SHOWN, ", ")
        yield "Sessions", f"{count} to disconnect before the switch: {names}"
    if plan.replicas:
        names = shortened((printable(replica.name) for replica in plan.replicas), _SHOWN, ", ")
        yield "Standbys", f"{names}; they replay the switch, and their readers wait for it"


def _count(count: int, noun: str) -> str:
    if count < _MILLION:
        return plural(count, noun)
    return f"{count / _MILLION:,.1f} million {noun}s"


def _session(session: Session) -> str:
    at = f" at {session.address}" if session.address else ""
    return printable(f"{session.application or 'a session without a name'}{at} (pid {session.pid})")


def _steps(plan: Plan) -> Table:
    """Return the operations; those of the switch are one transaction, so their scripts are one row."""
    rows = [*_phase("prepare", plan.prepare)]
    switch = []
    if plan.repairs:
        switch.append(f"repair {plural(len(plan.repairs), 'difference')}")
    if len(plan.path) > 1:
        # 0 is the layout before revision 1, which has no number for an operator.
        numbers = [str(number) for number in plan.path if number]
        older = "older layout → " if plan.path[0] == 0 else ""
        switch.append(f"{older}revision {' → '.join(numbers)}")
    if switch:
        first, *others = switch
        rows.append(("switch", first, _time(plan.switch_s), ""))
        rows += [("", other, "", "") for other in others]
        if len(plan.path) > 1:
            then = f"then install PostgreSQL plugin {plan.plugins_then} and start Orthanc"
            rows.append(("", then, "", ""))
    rows += _phase("finish", plan.finish)
    return Table(tuple(rows), ("phase", "what", "time", "disk"), numbers=(2, 3))


def _phase(name: str, items: Sequence[Item]) -> Iterator[tuple[str, str, str, str]]:
    for number, item in enumerate(items):
        space = size(item.space_bytes) if item.space_bytes else ""
        yield ("" if number else name, item.what, _time(item.seconds), space)


def _next_of_plan(plan: Plan, commands: Commands) -> Iterator[Note]:
    if plan.prepare and not _is_short(plan):
        yield Note("Next, while Orthanc is running:", paste=commands.again("--phase", "prepare"))
    elif len(plan.path) > 1 or plan.repairs:
        yield Note("Next, in your maintenance window: stop Orthanc, then", paste=commands.again())
    else:
        yield Note("Next, while Orthanc is running:", paste=commands.again("--phase", "finish"))
    # Layouts before revision 1 have no number that a downgrade could name.
    if plan.revision and plan.to != plan.revision:
        back = "downgrade" if plan.to > plan.revision else "upgrade"
        only = f"Afterwards only PostgreSQL plugin {plan.plugins_then} can use the index. To go back:"
        yield Note(only, paste=commands.line(back, "--to", str(plan.revision)))


# --- result -----------------------------------------------------------------------------


def changed_page(changed: Changed, commands: Commands) -> Page:
    """Return the page of a change that has run."""
    findings = tuple(_findings(changed))
    bad = any(note.status == "warning" for note in findings)
    return Page(
        _headline(changed),
        tuple(_where(changed)),
        (*_moved(changed), *findings),
        tuple(_next(changed, commands)),
        "warning" if bad else "ok",
    )


def _headline(changed: Changed) -> str:
    took = f"in {duration(changed.elapsed_s)}"
    phases = changed.phases
    if changed.revision != changed.before:
        verb = "Upgraded" if changed.to > changed.before else "Downgraded"
        ends = f"from {_revision(changed.before)} to {changed.revision}"
        return f"{verb} {changed.endpoint} {ends} {took}."
    if changed.to != changed.before:
        return f"Prepared {changed.endpoint} for revision {changed.to} {took}."
    if changed.repaired:
        count = plural(len(changed.repaired), "difference")
        return f"Repaired {count} in {changed.endpoint} at revision {changed.revision} {took}."
    if phases == ("finish",) or changed.child_counts or changed.kept or changed.restored:
        return f"Finished the change of {changed.endpoint} to revision {changed.revision} {took}."
    return f"Nothing to do: {changed.endpoint} is already at revision {changed.revision}."


def _moved(changed: Changed) -> Iterator[Block]:
    # What an operator has to justify: how long images could not be used.
    if changed.revision != changed.before:
        blocked = duration(changed.blocked_s)
        yield Note(
            f"The index was locked for {blocked}. Its schema was verified against "
            f"revision {changed.revision} before the commit."
        )
    elif changed.to != changed.before:
        yield Note(
            f"It is still at {_revision(changed.before)}; Orthanc can keep running, for as long as you like."
        )
    if changed.child_counts:
        yield Note(f"The number of children was stored for {plural(changed.child_counts, 'resource')}.")
    for title, rows in (
        ("kept for the next upgrade in", changed.kept),
        ("restored from", changed.restored),
    ):
        moved = tuple((f"{count:,}", table) for table, count in rows.items())
        yield Table(moved, ("rows", title), numbers=(0,))


def _findings(changed: Changed) -> Iterator[Note]:
    for text in changed.repaired:
        yield Note(f"repaired: {printable(text)}", "ok")
    for duplicate in changed.merged:
        yield Note(f"merged: {printable(str(duplicate))}", "ok")
    for difference in changed.differing:
        yield Note(
            f"the merged rows of {printable(str(difference))} were not the same",
            "warning",
            ("The values of the remaining row were kept.",),
        )
    if changed.surplus_files:
        count = plural(len(changed.surplus_files), "file is", "files are")
        names = tuple(printable(file.uuid) for file in changed.surplus_files[:_SHOWN])
        more = len(changed.surplus_files) - _SHOWN
        rest = (f"and {more:,} more, see --json",) if more > 0 else ()
        text = f"{count} no longer part of the index; remove them from the storage area"
        yield Note(text, "warning", (*names, *rest))
    if _lacks_trigram(changed):
        yield _trigram(changed)


def _lacks_trigram(changed: Changed) -> bool:
    """Return whether the last phase of an upgrade has run and could not build the trigram index."""
    upgraded = "finish" in changed.phases and changed.to >= changed.before
    return upgraded and changed.trigram != "valid"


def _trigram(changed: Changed) -> Note:
    slow = "searches with wildcards are slow"
    if changed.trigram == "unavailable":
        fix = "On the server, install the package postgresql-contrib."
        return Note(f"{slow}: the server lacks the extension pg_trgm", "warning", (fix,))
    fix = "As an administrator, in this database:"
    create = "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public;"
    return Note(f"{slow}: their index could not be built", "warning", (fix,), create)


def _next(changed: Changed, commands: Commands) -> Iterator[Note]:
    switched = changed.revision != changed.before
    if not switched and changed.to != changed.before:
        window = "Next, in your maintenance window: stop Orthanc, then"
        yield Note(window, paste=commands.again("--phase", "switch"))
        return
    if switched:
        yield _next_of_switch(changed, commands)
    if _lacks_trigram(changed):
        build = "Once the extension is available, while Orthanc is running:"
        yield Note(build, paste=commands.again("--phase", PHASES[-1]))


def _next_of_switch(changed: Changed, commands: Commands) -> Note:
    plugin = f"install PostgreSQL plugin {changed.plugins}, start Orthanc"
    if "finish" not in changed.phases:
        finish = commands.again("--phase", PHASES[-1])
        return Note(f"Next: {plugin}, and while it is running:", paste=finish)
    return Note(f"Next: {plugin}, and check both:", paste=commands.line("doctor"))
