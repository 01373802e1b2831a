"""Problems of a primary and its standbys, by what `state` has read from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgorthanc_cli.replication.state import Follower, Limits, Observation, ServerState, Slot

_LOW_DISK_BYTES = 1_000_000_000
_FULL_DISK_BYTES = 100_000_000
# Less is replayed immediately: the first transaction after a quiet night looks old, too.
_SIGNIFICANT_BYTES = 2**20


def with_lag(observation: Observation, primary: Observation | None, limits: Limits) -> ServerState:
    """Return a server with its lag, and whether a read-only Orthanc can use it."""
    server = observation.server
    if server.role != "standby":
        return server
    # Positions of different clusters cannot be compared.
    if primary and primary.system_identifier == observation.system_identifier:
        server = replace(server, lag_bytes=max(primary.lsn - observation.lsn, 0))
    if server.read_only_orthanc.startswith("yes"):
        # An Orthanc on a stale copy answers, and silently misses the newest studies.
        late = server.lag_bytes is not None and server.lag_bytes >= limits.critical_bytes
        if server.receiver == "none" or late:
            why = "it receives nothing" if server.receiver == "none" else "it is too far behind"
            server = replace(server, read_only_orthanc=f"no: {why}, and finds would miss new studies")
    return server


def problems(
    observations: Sequence[Observation],
    servers: Sequence[ServerState],
    primary: Observation | None,
    limits: Limits,
) -> Iterator[tuple[str, str]]:
    """Yield each problem: WARNING or CRITICAL, and the text."""
    for server in servers:
        if server.role == "unreachable":
            yield "CRITICAL", f"{server.place}: {server.receiver}"
    primaries = [each.server.place for each in observations if each.server.role == "primary"]
    if len(primaries) > 1:
        yield (
            "CRITICAL",
            f"two primaries, {' and '.join(primaries)}: stop the one of the lower timeline at once, then rejoin it",
        )
    if len({each.system_identifier for each in observations if each.system_identifier}) > 1:
        yield "CRITICAL", "the servers hold different databases: their system identifiers differ"
    for observation, server in zip(observations, servers, strict=True):
        if server.role == "standby":
            yield from _standby_problems(observation, server, limits)
        yield from _disk_problems(observation)
    if primary:
        yield from _primary_problems(primary)
        # A standby among the servers has reported its own lag, which is more exact.
        if sum(server.role == "standby" for server in servers) < len(primary.standbys):
            for follower in primary.standbys:
                yield from _follower_problems(follower, limits)


def _standby_problems(
    observation: Observation, server: ServerState, limits: Limits
) -> Iterator[tuple[str, str]]:
    if server.receiver == "none":
        yield "CRITICAL", f"{server.place} receives nothing: its log says why"
    if observation.paused:
        yield "CRITICAL", f"{server.place} does not replay: SELECT pg_wal_replay_resume()"
    # Bytes and seconds are independent: a slow night has old data and no backlog, a bulk
    # import the opposite.
    lag = server.lag_bytes or 0
    if lag >= limits.warning_bytes:
        level = "CRITICAL" if lag >= limits.critical_bytes else "WARNING"
        yield level, f"{server.place} is {lag:,} bytes behind"
    age = server.lag_s or 0.0
    if lag >= _SIGNIFICANT_BYTES and age >= limits.warning_s:
        level = "CRITICAL" if age >= limits.critical_s else "WARNING"
        yield level, f"{server.place} is {age:,.0f} s behind"
    # Vacuum on the primary removes rows that a query on the standby still needs, unless
    # feedback prevents it.
    if server.conflicts and not observation.feedback:
        yield (
            "WARNING",
            f"{server.place} has cancelled {server.conflicts:,} queries: set hot_standby_feedback, "
            "or a longer max_standby_streaming_delay",
        )


def _primary_problems(primary: Observation) -> Iterator[tuple[str, str]]:
    streaming = [standby for standby in primary.standbys if standby.state in ("streaming", "hidden")]
    if not streaming:
        yield "CRITICAL", f"no standby streams from {primary.server.place}"
    if any(standby.state == "hidden" for standby in primary.standbys):
        yield "WARNING", f"this login sees too little; as a superuser: GRANT pg_monitor TO {primary.login};"
    if primary.settings["synchronous_standby_names"] and not any(
        standby.sync in ("sync", "quorum", "hidden") for standby in streaming
    ):
        yield "CRITICAL", "commits hang: synchronous_standby_names names a standby that does not stream"
    for slot in primary.slots:
        yield from _slot_problems(slot, primary.free_bytes)
    if primary.slots and primary.settings.get("max_slot_wal_keep_size") == "-1":
        yield "WARNING", "a standby that stays away fills the disk: set max_slot_wal_keep_size"


def _slot_problems(slot: Slot, free_bytes: int | None) -> Iterator[tuple[str, str]]:
    if slot.state == "lost":
        yield (
            "CRITICAL",
            f"slot {slot.name} is lost: its standby needs a new copy (replication standby), drop the slot first",
        )
    elif slot.state == "unreserved":
        yield "CRITICAL", f"slot {slot.name} is about to be lost: bring its standby back"
    elif not slot.in_use:
        yield "WARNING", f"slot {slot.name} is not in use, and holds back {slot.holds_bytes or 0:,} bytes"
    if free_bytes is not None and (slot.holds_bytes or 0) > free_bytes:
        yield "WARNING", f"slot {slot.name} holds back more than the {free_bytes:,} bytes that are free"


def _follower_problems(follower: Follower, limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield the problems of a standby that only its primary reports."""
    name = f"the standby {follower.name} ({follower.address})"
    lag, seconds = follower.lag_bytes or 0, follower.lag_s or 0.0
    if lag >= limits.warning_bytes:
        yield "CRITICAL" if lag >= limits.critical_bytes else "WARNING", f"{name} is {lag:,} bytes behind"
    if lag and seconds >= limits.warning_s:
        yield "CRITICAL" if seconds >= limits.critical_s else "WARNING", f"{name} is {seconds:,.0f} s behind"
    if follower.stuck:
        yield (
            "WARNING",
            f"{name} has received {follower.unreplayed_bytes or 0:,} bytes that it does not replay: if it is paused, "
            "run on it: SELECT pg_wal_replay_resume(); else a query there, or its disk, holds it up",
        )


def _disk_problems(observation: Observation) -> Iterator[tuple[str, str]]:
    if not observation.free:
        return
    folder, free = min(observation.free.items(), key=lambda item: item[1])
    if free < _LOW_DISK_BYTES:
        yield (
            "CRITICAL" if free < _FULL_DISK_BYTES else "WARNING",
            f"{observation.server.place} has {free:,} bytes free on the disk of {folder}: make room, a full disk "
            "stops it",
        )
