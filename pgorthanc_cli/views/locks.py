"""The pages about who uses a database: the Orthancs on it, their locks, and sessions that were ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pgorthanc_cli import db
from pgorthanc_cli.locks import NAMELESS, Lock, Orthanc, Terminated, Usage
from pgorthanc_cli.text import age, plural, printable
from pgorthanc_cli.views.page import Block, Facts, Note, Page

_LOCKED = "The PostgreSQL database is locked by another instance of Orthanc"
_SETUP = "Cannot acquire a transient advisory lock"
_NORMAL = " This is normal."


@dataclass(frozen=True)
class Commands:
    """What to paste.

    Attributes:
        wait: Wait until the database is free.
        watch: Show the page again and again.
        terminate: End all sessions of Orthanc.
    """

    wait: str
    watch: str
    terminate: str


def page(
    usage: Usage,
    commands: Commands,
    *,
    waited: str = "",
    watched: bool = False,
    verbose: bool = False,
) -> Page:
    """Return the page.

    Args:
        usage: Who uses the database.
        commands: The suggested commands.
        waited: How long the command has waited for the database to be free.
        watched: The page is shown again and again, so it says when it was true.
        verbose: Also show why a session is taken for an Orthanc.
    """
    blocks: list[Block] = [_finding(problem) for problem in usage.problems]
    for orthanc in usage.orthancs:
        blocks.append(Facts(tuple(_orthanc(usage, orthanc, verbose=verbose))))
    others = tuple(_other_holders(usage))
    if others:
        blocks.append(Facts(others))
    if usage.free:
        blocks.append(Note("Orthanc's locks are free: an Orthanc can start."))
    blocks += _messages(usage)
    for note in usage.notes:
        if verbose or not note.startswith(NAMELESS):
            blocks.append(Note(_sentence(note)))
    time = (f"{usage.time:%H:%M:%S}",) if watched else ()
    where = (*usage.endpoint.login, *time)
    steps = () if watched else tuple(_steps(usage, commands))
    headline = _headline(usage, waited)
    return Page(headline, where, tuple(blocks), steps, "problem" if usage.problems else "ok")


def terminated_page(result: Terminated, commands: Commands, *, verbose: bool = False) -> Page:
    """Return the page after sessions were ended."""
    ended = [Note(f"ended: {printable(str(session))}", "ok") for session in result.ended]
    remaining = [
        Note(f"has not ended within 5 s: {printable(str(session))}", "warning")
        for session in result.remaining
    ]
    now = page(result, commands, verbose=verbose)
    outcome = [f"Ended {plural(len(ended), 'session')}."] if ended else []
    if remaining:
        outcome.append(f"{plural(len(remaining), 'session')} did not end.")
    if not outcome:
        outcome = ["Nothing to do: there is no session to end."]
    headline = f"{' '.join(outcome)} {now.headline.removesuffix(_NORMAL)}"
    status = "warning" if remaining and now.status == "ok" else now.status
    return now._replace(headline=headline, blocks=(*ended, *remaining, *now.blocks), status=status)


def _headline(usage: Usage, waited: str) -> str:
    place = f"{usage.endpoint}"
    still = " still" if waited else ""
    after = f" after {waited}" if waited else ""
    if usage.problems:
        return f"The index in {place} is not protected by Orthanc's lock."
    if usage.free:
        return f"No Orthanc is using {place}."
    if _is_set_up(usage):
        return f"Tables in {place} are{still} being created or upgraded{after}."
    if not usage.orthancs:
        if usage.held:
            names = " and ".join(dict.fromkeys(map(_holder, usage.held)))
            return f"{names[0].upper()}{names[1:]} is{still} using {place}{after}."
        # Without pg_read_all_stats, most columns of other roles' sessions are NULL.
        return f"An Orthanc is{still} using {place}{after}, but its sessions are hidden."
    certain = all(orthanc.certain for orthanc in usage.orthancs)
    probably = "" if certain else " probably"
    count = len(usage.orthancs)
    who = "One Orthanc is" if count == 1 else f"{count} Orthancs are"
    normal = _NORMAL if count == 1 and certain and not waited else ""
    return f"{who}{still}{probably} using {place}{after}.{normal}"


def _is_set_up(usage: Usage) -> bool:
    return any(lock.key == db.LOCK_DATABASE_SETUP for lock in usage.held)


def _holder(lock: Lock) -> str:
    """Return who holds a lock that is not of a detected Orthanc."""
    application = printable(lock.application or "")
    if application.startswith("pgorthanc"):
        return f"the command {application}"
    return application or f"a session without a name (pid {lock.pid})"


def _finding(problem: str) -> Note:
    """Return a problem: the fact, then what follows after the colon as the fix."""
    return Note(_sentence(problem), "problem")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _orthanc(usage: Usage, orthanc: Orthanc, *, verbose: bool) -> Iterator[tuple[str, str]]:
    address = orthanc.address or ("local socket" if orthanc.since else "address hidden")
    name = (printable(orthanc.application),) if orthanc.application else ()
    role = (f"role {printable(orthanc.role)}",) if orthanc.role else ()
    yield "Orthanc", ", ".join((printable(address), *name, f"pid {orthanc.pid}", *role))
    if not orthanc.certain:
        yield "Certainty", _sentence(f"it {', '.join(orthanc.evidence)}")
    yield "Plugin", orthanc.plugin
    since = f"{age(orthanc.since, usage.time)}, " if orthanc.since else ""
    yield "Connected", f"{since}{plural(orthanc.sessions, 'session')}"
    held = " and ".join(f"{lock.name} ({lock.key})" for lock in _locks_of(usage, orthanc))
    yield "Locks", held or "none"
    if verbose:
        for text in orthanc.evidence if orthanc.certain else ():
            yield "Evidence", printable(text)
        for text in orthanc.reasons:
            yield "Plugin fits", printable(text)


def _locks_of(usage: Usage, orthanc: Orthanc) -> list[Lock]:
    """Return the locks that this Orthanc holds, perhaps by several sessions."""
    client = (orthanc.role, orthanc.address, orthanc.application)
    return [lock for lock in usage.held if (lock.role, lock.address, lock.application) == client]


def _other_holders(usage: Usage) -> Iterator[tuple[str, str]]:
    """Yield the locks that no Orthanc holds, such as those of an import."""
    of_orthancs = [lock for orthanc in usage.orthancs for lock in _locks_of(usage, orthanc)]
    for lock in usage.held:
        if lock not in of_orthancs:
            since = f", connected {age(lock.since, usage.time)}" if lock.since else ""
            role = f", role {printable(lock.role)}" if lock.role else ""
            yield (
                f"{lock.name.capitalize()} lock ({lock.key})",
                f"{_holder(lock)}, pid {lock.pid}{role}{since}",
            )


def _messages(usage: Usage) -> Iterator[Note]:
    """Yield what an Orthanc would log if it started now."""
    if _is_set_up(usage):
        # The plugin tries lock 44 ten times, 500 ms apart.
        yield Note("An Orthanc that starts now waits 5 s, then gives up and logs:", paste=_SETUP)
    elif usage.held:
        another = "Another Orthanc" if usage.orthancs else "An Orthanc"
        yield Note(f"{another} could not start now. It would log:", paste=_LOCKED)


def _steps(usage: Usage, commands: Commands) -> Iterator[Note]:
    if usage.free or usage.problems:
        return
    if _is_set_up(usage):
        yield Note("To see when that has finished:", paste=commands.watch)
        return
    if not usage.orthancs:
        yield Note("To wait until the database is free:", paste=commands.wait)
        return
    orthancs = "that Orthanc" if len(usage.orthancs) == 1 else "these Orthancs"
    yield Note(
        f"Before an upgrade, stop {orthancs} and wait until the database is free:",
        paste=commands.wait,
    )
    if usage.held and len(usage.orthancs) == 1:
        yield Note(
            "If the machine of that Orthanc is gone, but its sessions are not, end them (asks first):",
            paste=commands.terminate,
        )
