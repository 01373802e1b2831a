"""The pages about a primary and its standbys."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli.replication import Follower, Problem, ReplicationStatus, ServerState, Slot
from pgorthanc_cli.text import age, duration, plural, printable, size
from pgorthanc_cli.views.page import Block, Note, Page, Status

_STATUS: dict[str, Status] = {"CRITICAL": "problem", "WARNING": "warning"}
_SYNC = {
    "async": "asynchronously",
    "sync": "synchronously: commits wait for it",
    "quorum": "synchronously, as one of a quorum",
    "potential": "asynchronously, as a spare of the synchronous one",
}


# Status


def status_page(state: ReplicationStatus, *, watched: bool = False, verbose: bool = False) -> Page:
    """Return the page of the servers and their problems.

    Args:
        state: The servers.
        watched: The page is shown again and again, so it says when it was true.
        verbose: Also show positions in the WAL and free space.
    """
    blocks: list[Block] = []
    for server in state.servers:
        blocks += _server(server, state, verbose=verbose)
    primaries = [server for server in state.servers if server.role == "primary"]
    steps = []
    if len(primaries) > 1:
        # Two primaries diverge with every commit: all other problems can wait.
        blocks += _split(state)
        advice = "Next, stop every Orthanc now, then decide which server to keep:"
        steps.append(Note(advice, paste="pgorthanc guide replication"))
    else:
        shared = (problem for problem in state.findings if len(problem.places) > 1)
        blocks += [Note(_sentence(problem), _STATUS[problem.level]) for problem in shared]
    if len(primaries) == 1 and state.synchronous == "none" and state.standbys:
        blocks.append(
            Note("Replication is asynchronous: a failover can lose the commits of the last moments.")
        )
    where = (state.time.isoformat(" ", "seconds"),) if watched and state.time else ()
    return Page(_verdict(state), where, tuple(blocks), tuple(steps), _STATUS.get(state.verdict, "ok"))


def _split(state: ReplicationStatus) -> Iterator[Note]:
    """Yield where several primaries parted, and which of them was written to last."""
    if state.split is None:
        return
    branches = state.split.branches
    if state.split.lsn:
        written = [f"{printable(b.place)} has written {size(b.written_bytes or 0)} of WAL" for b in branches]
        yield Note(
            f"They parted at {state.split.lsn} on timeline {state.split.timeline}. "
            f"Since then {' and '.join(written)}."
        )
    dated = sorted(
        ((branch.newest, branch.place) for branch in branches if branch.newest is not None), reverse=True
    )
    if len(dated) < len(branches) or state.time is None:
        return
    times = {newest for newest, _ in dated}
    if len(times) == 1:
        yield Note(f"The newest instance on each of them was stored {age(times.pop(), state.time)}.")
    else:
        parts = [f"{printable(place)} {age(newest, state.time)}" for newest, place in dated]
        yield Note(f"{printable(dated[0][1])} stored an instance last: {', '.join(parts)}.")


def _verdict(state: ReplicationStatus) -> str:
    if state.findings:
        more = len(state.findings) - 1
        rest = f" {plural(more, 'more problem')}." if more else ""
        return f"{state.verdict}: {printable(state.findings[0].text)}.{rest}"
    standbys = [server for server in state.servers if server.role == "standby"]
    primary = next((server.place for server in state.servers if server.role == "primary"), "")
    if len(standbys) == 1:
        [standby] = standbys
        name, lag = printable(standby.place), _lag(standby.lag_bytes, standby.lag_s)
        if not primary:  # whose position is not known
            left = f", and has yet to replay {lag}" if lag else ", and has replayed all of it"
            return f"Replication works: standby {name} receives WAL{left}."
        behind = f"is {lag} behind" if lag else "is up to date with"
        return f"Replication works: standby {name} {behind} {printable(primary)}."
    if standbys:
        lags = [lag for each in standbys if (lag := _lag(each.lag_bytes, each.lag_s))]
        count = plural(len(standbys), "standby", "standbys")
        return f"Replication works: {count} follow {primary}{', up to date' if not lags else ''}."
    count = plural(len(state.standbys), "standby streams", "standbys stream")
    return f"Replication works: {count} from {printable(primary)}."


def _lag(count: int | None, seconds: float | None) -> str:
    """Return how far a standby is behind; empty if it is up to date, or not known."""
    if not count:
        return ""
    return f"{size(count)} of WAL ({duration(seconds)})" if seconds else f"{size(count)} of WAL"


def _server(server: ServerState, state: ReplicationStatus, *, verbose: bool) -> Iterator[Note]:
    """Yield a note for a server, and one for each further statement to paste."""
    found = [problem for problem in state.findings if server.place in problem.places]
    problems = [problem for problem in found if problem.places == (server.place,)]
    to_paste = [problem for problem in problems if problem.statement]
    details = [*_facts(server, state, verbose=verbose)]
    details += [_sentence(problem) for problem in problems if not problem.statement]
    details += [_sentence(problem) for problem in to_paste[:1]]
    yield Note(
        f"{printable(server.place)}  {_kind(server)}",
        _STATUS[found[0].level] if found else "ok",
        tuple(details),
        to_paste[0].statement if to_paste else "",
    )
    for problem in to_paste[1:]:
        yield Note(_sentence(problem), _STATUS[problem.level], paste=problem.statement)


def _kind(server: ServerState) -> str:
    if server.role == "unreachable":
        return "no connection"
    primary = f" of {printable(server.follows)}" if server.follows not in ("", "hidden") else ""
    version = server.version.partition(" ")[0]
    return f"{server.role}{primary}, PostgreSQL {version}, timeline {server.timeline}"


def _facts(server: ServerState, state: ReplicationStatus, *, verbose: bool) -> Iterator[str]:
    if server.role == "primary":
        own = any(each.role == "standby" for each in state.servers)
        yield from (_follower(follower, lag=not own) for follower in state.standbys)
        yield from (_slot(slot) for slot in state.slots if slot.in_use)
        if verbose and state.free_bytes is not None:
            yield f"{size(state.free_bytes)} are free on the disk for WAL."
    elif server.role == "standby":
        lag = _lag(server.lag_bytes, server.lag_s)
        if lag and state.verdict == "OK":
            yield f"It has yet to replay {lag}."
        yield _read_only(server.read_only_orthanc)
        if verbose and server.last_replay and state.time:
            yield f"The last commit that it has replayed: {age(server.last_replay, state.time)}."
    elif server.server_message:
        yield f"PostgreSQL: {printable(server.server_message)}"
    if verbose and server.lsn:
        yield f"Its position in the WAL is {server.lsn}."


def _follower(follower: Follower, *, lag: bool) -> str:
    """Return what a primary reports of a standby; with `lag` also how far it is behind."""
    if follower.state == "hidden":
        return "A standby is connected; its state is hidden from this login."
    name = f"Standby {printable(follower.name)} ({printable(follower.address)})"
    if follower.state != "streaming":
        return f"{name} is connected, and in state {follower.state}."
    missing = _lag(follower.lag_bytes, follower.lag_s) if lag else ""
    behind = f"; it is {missing} behind" if missing else ""
    return f"{name} streams {_SYNC.get(follower.sync, follower.sync)}{behind}."


def _slot(slot: Slot) -> str:
    more = f", and may hold back {size(slot.left_bytes)} more" if slot.left_bytes is not None else ""
    return f"Slot {slot.name} holds back {size(slot.holds_bytes or 0)} of WAL{more}."


def _read_only(answer: str) -> str:
    """Turn `yes, with plugin 10.0 to 10.3` and `no: the reason` into a sentence."""
    if answer.startswith("yes"):
        return f"A read-only Orthanc can use it{printable(answer.removeprefix('yes'))}."
    return f"A read-only Orthanc cannot use it{printable(answer.removeprefix('no'))}."


def _sentence(problem: Problem) -> str:
    text, remedy = printable(problem.text), printable(problem.remedy)
    if not text.startswith(problem.places):  # a host name stays as it is
        text = f"{text[0].upper()}{text[1:]}"
    end = "" if remedy.endswith(":") or not remedy else "."
    return f"{text}. {remedy[:1].upper()}{remedy[1:]}{end}".rstrip()
