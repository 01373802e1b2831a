"""Problems of a primary and its standbys, by what `state` has read from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pgorthanc_cli.text import duration, plural, size

if TYPE_CHECKING:
    from pgorthanc_cli.replication.state import Follower, Limits, Observation, ServerState, Slot

_LOW_DISK_BYTES = 1_000_000_000
_FULL_DISK_BYTES = 100_000_000
# Less is replayed immediately: the first transaction after a quiet night looks old, too.
_SIGNIFICANT_BYTES = 2**20
# What delays a standby.
_SLOW = "check the network, and the disk of the standby"
_RELOAD = "SELECT pg_reload_conf();"


@dataclass(frozen=True)
class Problem:
    """A problem of some of the servers.

    Attributes:
        level: How bad it is, as a monitoring system names it.
        text: The fact, without a full stop.
        remedy: What to do, without a full stop; it ends with a colon before `statement`.
        statement: SQL for the server; empty if none helps.
        places: Host and port of the servers that have the problem.
    """

    level: Literal["WARNING", "CRITICAL"]
    text: str
    remedy: str
    places: tuple[str, ...]
    statement: str = ""

    def __str__(self) -> str:
        """Return all of it on one line."""
        return f"{self.level}: {self.text}: {' '.join(f'{self.remedy} {self.statement}'.split())}"


def with_lag(observation: Observation, primary: Observation | None, limits: Limits) -> ServerState:
    """Return a server with its lag, and whether a read-only Orthanc can use it."""
    server = observation.server
    if server.role != "standby":
        return server
    # Positions of different clusters cannot be compared.
    if primary and primary.system_identifier == observation.system_identifier:
        # They are asked one after the other: a standby may have replayed more by then.
        server = replace(server, lag_bytes=max(primary.lsn - observation.lsn, 0))
    if server.read_only_orthanc.startswith("yes"):
        # An Orthanc on a stale copy answers, and silently misses the newest studies.
        late = server.lag_bytes is not None and server.lag_bytes >= limits.critical_bytes
        why = "it is too far behind" if late else ""
        if observation.paused:
            why = "it has stopped replaying"
        if server.receiver == "none":
            why = "it receives nothing"
        if why:
            server = replace(server, read_only_orthanc=f"no: {why}, and finds would miss new studies")
    return server


def problems(
    observations: Sequence[Observation],
    servers: Sequence[ServerState],
    primary: Observation | None,
    limits: Limits,
) -> Iterator[Problem]:
    """Yield each problem, within a level the most important first."""
    primaries = tuple(each.server.place for each in observations if each.server.role == "primary")
    if len(primaries) > 1:
        count = "two" if len(primaries) == 2 else str(len(primaries))
        yield Problem(
            "CRITICAL",
            f"{count} primaries: {' and '.join(primaries)} accept writes",
            "stop every Orthanc now, then decide which server to keep",
            primaries,
        )
    identified = [each for each in observations if each.system_identifier]
    if len({each.system_identifier for each in identified}) > 1:
        yield Problem(
            "CRITICAL",
            "the servers hold different databases: their system identifiers differ",
            "name a primary and its own standbys",
            tuple(each.server.place for each in identified),
        )
    for observation in observations:
        if failure := observation.failure:
            place, fact = observation.server.place, failure.fact
            fact = fact if place in fact else f"{place}: {fact}"
            yield Problem("CRITICAL", fact, failure.hint or "", (place,))
    for observation, server in zip(observations, servers, strict=True):
        if server.role == "standby":
            yield from _standby_problems(observation, server, limits)
        yield from _disk_problems(observation)
    if primary:
        yield from _primary_problems(primary)
        # A standby among the servers has reported its own lag, which is more exact.
        if sum(server.role == "standby" for server in servers) < len(primary.standbys):
            for follower in primary.standbys:
                yield from _follower_problems(follower, limits, primary.server.place)


def _standby_problems(observation: Observation, server: ServerState, limits: Limits) -> Iterator[Problem]:
    places = (server.place,)
    if server.receiver == "none":
        yield Problem(
            "CRITICAL",
            f"{server.place} receives nothing from its primary",
            "check that the primary runs; the log of the standby says why",
            places,
        )
    if observation.paused:
        yield Problem(
            "CRITICAL",
            f"{server.place} has stopped replaying what it receives",
            "resume on it:",
            places,
            "SELECT pg_wal_replay_resume();",
        )
    else:
        yield from _lag_problems(server, limits)
    # Vacuum on the primary removes rows that a query on the standby still needs, unless
    # feedback prevents it.
    if server.conflicts and not observation.feedback:
        yield Problem(
            "WARNING",
            f"{server.place} has cancelled {plural(server.conflicts, 'query', 'queries')}, because the primary had "
            "removed rows that they still needed",
            "set hot_standby_feedback there, or a longer max_standby_streaming_delay:",
            places,
            f"ALTER SYSTEM SET hot_standby_feedback = on;\n{_RELOAD}",
        )


def _lag_problems(server: ServerState, limits: Limits) -> Iterator[Problem]:
    # Bytes and seconds are independent: a slow night has old data and no backlog, a bulk
    # import the opposite.
    lag, places = server.lag_bytes or 0, (server.place,)
    yield from _lag_problem(server.place, lag, limits, places)
    if lag >= _SIGNIFICANT_BYTES:
        yield from _age_problem(server.place, server.lag_s or 0.0, limits, places)


def _lag_problem(name: str, lag: int, limits: Limits, places: tuple[str, ...]) -> Iterator[Problem]:
    if lag >= limits.warning_bytes:
        level: Literal["WARNING", "CRITICAL"] = "CRITICAL" if lag >= limits.critical_bytes else "WARNING"
        yield Problem(level, f"{name} is {size(lag)} of WAL behind", _SLOW, places)


def _age_problem(name: str, age: float, limits: Limits, places: tuple[str, ...]) -> Iterator[Problem]:
    if age >= limits.warning_s:
        level: Literal["WARNING", "CRITICAL"] = "CRITICAL" if age >= limits.critical_s else "WARNING"
        yield Problem(level, f"{name} is {duration(age)} behind", _SLOW, places)


def _primary_problems(primary: Observation) -> Iterator[Problem]:
    place = primary.server.place
    streaming = [standby for standby in primary.standbys if standby.state in ("streaming", "hidden")]
    if not streaming:
        yield Problem(
            "CRITICAL",
            f"no standby streams from {place}",
            "check that the standby runs; its log says why it does not connect",
            (place,),
        )
    if any(standby.state == "hidden" for standby in primary.standbys):
        yield Problem(
            "WARNING",
            f"role {primary.login} may not see the state of the standbys",
            "as a superuser:",
            (place,),
            f"GRANT pg_read_all_stats TO {primary.login};",
        )
    if primary.settings["synchronous_standby_names"] and not any(
        standby.sync in ("sync", "quorum", "hidden") for standby in streaming
    ):
        yield Problem(
            "CRITICAL",
            "commits hang: no standby of synchronous_standby_names is streaming",
            "bring that standby back; or, to let commits continue without it:",
            (place,),
            f"ALTER SYSTEM SET synchronous_standby_names = '';\n{_RELOAD}",
        )
    for slot in primary.slots:
        yield from _slot_problems(slot, primary.free_bytes, (place,))
    if primary.slots and primary.settings.get("max_slot_wal_keep_size") == "-1":
        yield Problem(
            "WARNING",
            "a standby that stays away would fill the disk: max_slot_wal_keep_size is unlimited",
            "limit it:",
            (place,),
            f"ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';\n{_RELOAD}",
        )


def _slot_problems(slot: Slot, free_bytes: int | None, places: tuple[str, ...]) -> Iterator[Problem]:
    if slot.state == "lost":
        yield Problem(
            "CRITICAL",
            f"slot {slot.name} is lost: the WAL that its standby needs has been removed",
            "copy the standby again with `pgorthanc replication standby`; drop the slot first:",
            places,
            f"SELECT pg_drop_replication_slot('{slot.name}');",
        )
    elif slot.state == "unreserved":
        yield Problem("CRITICAL", f"slot {slot.name} is about to be lost", "start its standby now", places)
    elif not slot.in_use:
        yield Problem(
            "WARNING",
            f"slot {slot.name} is not in use, and holds back {size(slot.holds_bytes or 0)} of WAL",
            "start its standby; if it has none any more, drop the slot with pg_drop_replication_slot()",
            places,
        )
    if free_bytes is not None and (slot.holds_bytes or 0) > free_bytes:
        yield Problem(
            "WARNING",
            f"slot {slot.name} holds back more than the {size(free_bytes)} that are free",
            "start its standby, or free some space",
            places,
        )


def _follower_problems(follower: Follower, limits: Limits, place: str) -> Iterator[Problem]:
    """Yield the problems of a standby that only its primary reports."""
    name = f"the standby {follower.name} ({follower.address})"
    lag = follower.lag_bytes or 0
    yield from _lag_problem(name, lag, limits, (place,))
    if lag:
        yield from _age_problem(name, follower.lag_s or 0.0, limits, (place,))
    if follower.stuck:
        yield Problem(
            "WARNING",
            f"{name} has received {size(follower.unreplayed_bytes or 0)} of WAL that it does not replay",
            "a query there, or its disk, delays it; if its replay is paused, run on the standby:",
            (place,),
            "SELECT pg_wal_replay_resume();",
        )


def _disk_problems(observation: Observation) -> Iterator[Problem]:
    if not observation.free:
        return
    folder, free = min(observation.free.items(), key=lambda item: item[1])
    if free < _LOW_DISK_BYTES:
        place = observation.server.place
        yield Problem(
            "CRITICAL" if free < _FULL_DISK_BYTES else "WARNING",
            f"{place} has {size(free)} free on the disk of {folder}",
            "free some space: a full disk stops the server",
            (place,),
        )
