"""`replication status`: a primary and its standbys as they say it themselves. Reads only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from pgorthanc_cli.replication import survey
from pgorthanc_cli.replication.walsender import show_lsn
from pgorthanc_cli.status import status as index_status

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_OLDEST_READ_ONLY = 3  # the revision of plugin 7.0, the first one that knows ReadOnly (SCHEMA.md 9)
_CONNECT_TIMEOUT_S = "5"

_ANY = """
    SELECT pg_is_in_recovery(), current_setting('server_version'),
           (SELECT system_identifier::text FROM pg_control_system()),
           CASE WHEN pg_is_in_recovery()
                THEN greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                              (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                              (SELECT received_tli FROM pg_stat_wal_receiver))
                ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn"""
_STANDBY = """
    SELECT CASE WHEN r.pid IS NULL THEN 'none' ELSE coalesce(r.status, 'running') END,
           r.sender_host || ':' || r.sender_port,
           pg_last_wal_receive_lsn() - '0/0'::pg_lsn,
           CASE WHEN r.pid IS NOT NULL
                     AND coalesce(pg_last_wal_receive_lsn(), '0/0') <= pg_last_wal_replay_lsn() THEN 0
                ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END::float,
           pg_last_xact_replay_timestamp(), pg_is_wal_replay_paused(),
           (SELECT sum(confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock)::bigint
            FROM pg_stat_database_conflicts),
           current_setting('hot_standby_feedback')
    FROM (SELECT) AS here LEFT JOIN pg_stat_wal_receiver r ON true"""
_STANDBYS = """
    SELECT coalesce(application_name, ''),
           coalesce(host(client_addr), CASE WHEN state IS NULL THEN 'hidden' ELSE 'socket' END),
           coalesce(state, 'hidden'), coalesce(sync_state, 'hidden'), (pg_current_wal_lsn() - replay_lsn)::bigint,
           extract(epoch FROM replay_lag)::float
    FROM pg_stat_replication WHERE application_name IS DISTINCT FROM 'pg_basebackup' ORDER BY 1, 2"""
_SLOTS = """
    SELECT slot_name, active, (pg_current_wal_lsn() - restart_lsn)::bigint, {left}, {state}
    FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"""


@dataclass(frozen=True)
class Limits:
    """How far a standby may be behind, in bytes of WAL."""

    warning_bytes: int = 64 * 2**20
    critical_bytes: int = 2**30


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        place: Host and port.
        role: primary, standby, or unreachable.
        version: Of PostgreSQL.
        timeline: Goes up with each promotion.
        lsn: Where a primary's log ends; up to where a standby has replayed it.
        lag_bytes: What a standby has still to replay of the primary's log, or of what it has received if the
            primary is not among the servers.
        lag_s: How old its data are; 0 if it has replayed all that it has received.
        receiver: `streaming`, `none`, and what else its receiver does; of a primary empty.
        follows: Host and port of its primary, as far as the login may see it.
        last_replay: When the last transaction that it has replayed was committed.
        conflicts: How many of its queries were cancelled because the primary had removed their rows.
        read_only_orthanc: Whether an Orthanc with `ReadOnly` true and `Lock` false can use it now; why not.
    """

    place: str
    role: str
    version: str = ""
    timeline: int | None = None
    lsn: str = ""
    lag_bytes: int | None = None
    lag_s: float | None = None
    receiver: str = ""
    follows: str = ""
    last_replay: datetime | None = None
    conflicts: int | None = None
    read_only_orthanc: str = ""


@dataclass(frozen=True)
class Follower:
    """A standby as its primary sees it; `sync` is async, potential, sync or quorum."""

    name: str
    address: str
    state: str
    sync: str
    lag_bytes: int | None
    lag_s: float | None


@dataclass(frozen=True)
class Slot:
    """A slot of the primary: the WAL it holds back, and how much more it may, if that is limited.

    `state` is reserved, extended, unreserved or lost (PostgreSQL, "pg_replication_slots"); empty before 13.
    """

    name: str
    in_use: bool
    holds_bytes: int | None
    left_bytes: int | None
    state: str


@dataclass(frozen=True)
class Status:
    """A primary and its standbys.

    Attributes:
        verdict: OK, WARNING or CRITICAL.
        problems: Why it is not OK.
        servers: Each host of the connection.
        standbys: Those that the primary sends to.
        slots: Its slots.
        synchronous: Its synchronous_standby_names; `none`: commits wait for no standby.
        free_bytes: Free on the disk for WAL, if the primary is on this machine.
    """

    verdict: str
    problems: tuple[str, ...]
    servers: tuple[Server, ...]
    standbys: tuple[Follower, ...] = ()
    slots: tuple[Slot, ...] = ()
    synchronous: str = "none"
    free_bytes: int | None = None

    def figures(self) -> dict[str, object]:
        """What a monitoring system draws."""
        behind = [server for server in self.servers if server.role == "standby"]
        found: dict[str, object] = {"standbys": len(self.standbys)}
        for server in behind:
            if server.lag_bytes is not None:
                found[f"{server.place} lag"] = f"{server.lag_bytes}B"
            if server.lag_s is not None:
                found[f"{server.place} age"] = f"{server.lag_s:.1f}s"
        for slot in self.slots:
            if slot.holds_bytes is not None:
                found[f"slot {slot.name}"] = f"{slot.holds_bytes}B"
        return found


@dataclass
class _Seen:
    """What one connection told."""

    server: Server
    system_identifier: str = ""
    lsn: int = 0
    paused: bool = False
    feedback: bool = False
    standbys: tuple[Follower, ...] = ()
    slots: tuple[Slot, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    free_bytes: int | None = None


def hosts(target: db.Target) -> list[db.Target]:
    """One target for each host of a connection string that lists several."""
    given = db.parse(target.dsn)
    several = {name: given.pop(name, "").split(",") for name in ("host", "hostaddr", "port")}
    number = max(map(len, several.values()))
    given.pop("target_session_attrs", None)
    given.setdefault("connect_timeout", _CONNECT_TIMEOUT_S)
    for name, values in several.items():
        several[name] = values * number if len(values) == 1 else values
    return [
        replace(
            target,
            dsn=make_dsn(**given, **{name: values[n] for name, values in several.items() if values[n]}),
            retries=0,
        )
        for n in range(number)
    ]


def status(targets: Sequence[db.Target], limits: Limits = Limits()) -> Status:
    """The servers, and what is wrong with them.

    Raises:
        ConnectError: None of them can be reached.
    """
    seen, failures = [], []
    for target in targets:
        try:
            seen.append(_look(target))
        except ConnectError as error:
            failures.append(error)
            seen.append(_Seen(Server(_place(target), "unreachable", receiver=error.message)))
    if len(failures) == len(seen):
        raise failures[0]
    primary = next((one for one in seen if one.server.role == "primary"), None)
    servers = tuple(_measured(one, primary, limits) for one in seen)
    problems = [*_problems(seen, servers, limits), *(_primary_problems(primary) if primary else ())]
    levels = {level for level, _ in problems}
    return Status(
        verdict=next((level for level in ("CRITICAL", "WARNING") if level in levels), "OK"),
        problems=tuple(f"{level}: {text}" for level, text in sorted(problems)),
        servers=servers,
        standbys=primary.standbys if primary else (),
        slots=primary.slots if primary else (),
        synchronous=(primary.settings["synchronous_standby_names"] if primary else "") or "none",
        free_bytes=primary.free_bytes if primary else None,
    )


def _place(target: db.Target) -> str:
    given = db.parse(target.dsn)
    return f"{given.get('host', 'local socket')}:{given.get('port', '5432')}"


# Looking


def _look(target: db.Target) -> _Seen:
    with db.session(target, autocommit=True, readonly=True, need_schema=False) as conn:
        [(standby, version, system, timeline, lsn)] = _rows(conn, _ANY)
        server = Server(
            _place(target), "standby" if standby else "primary", version, timeline, show_lsn(int(lsn or 0))
        )
        found = _Seen(server, system, int(lsn or 0))
        return _look_standby(conn, found, target.schema) if standby else _look_primary(conn, found)


def _look_primary(conn: Connection, found: _Seen) -> _Seen:
    new = conn.server_version >= 130000
    query = _SLOTS.format(
        left="safe_wal_size" if new else "NULL", state="coalesce(wal_status, '')" if new else "''"
    )
    found.slots = tuple(Slot(*row) for row in _rows(conn, query))
    found.standbys = tuple(Follower(*row) for row in _rows(conn, _STANDBYS))
    names = ["synchronous_standby_names", "data_directory", "max_slot_wal_keep_size"]
    found.settings = dict(
        _rows(conn, "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", names)
    )
    folder = survey.local_folder(conn, found.settings.get("data_directory"))
    found.free_bytes = shutil.disk_usage(folder / "pg_wal").free if folder else None
    return found


def _look_standby(conn: Connection, found: _Seen, schema: str) -> _Seen:
    [(receiver, follows, received, age, last, paused, conflicts, feedback)] = _rows(conn, _STANDBY)
    found.paused, found.feedback = paused, feedback == "on"
    found.server = replace(
        found.server,
        lag_bytes=max(int(received) - found.lsn, 0) if received is not None else None,
        lag_s=age,
        receiver=receiver,
        follows=follows or "hidden",
        last_replay=last,
        conflicts=conflicts,
        read_only_orthanc=_index_obstacle(conn, schema),
    )
    return found


def _index_obstacle(conn: Connection, schema: str) -> str:
    """Why a read-only Orthanc could not use the index; `yes` and the releases that can."""
    try:
        index = index_status(conn, schema)
    except PgOrthancError as error:
        return f"no: {error.message}"
    if not isinstance(index.revision, int) or index.revision < _OLDEST_READ_ONLY:
        return (
            f"no: the index is at revision {index.revision}, and ReadOnly needs {_OLDEST_READ_ONLY} or higher"
        )
    if index.recorded_revision != index.revision:
        return f"no: recorded as revision {index.recorded_revision}, but the tables are those of {index.revision}"
    return f"yes, with plugin {index.plugins}"


# Judging


def _measured(seen: _Seen, primary: _Seen | None, limits: Limits) -> Server:
    """The server with its lag behind the primary, and what that means for a read-only Orthanc."""
    server = seen.server
    if server.role != "standby":
        return server
    if primary and primary.system_identifier == seen.system_identifier:
        server = replace(server, lag_bytes=max(primary.lsn - seen.lsn, 0))
    if server.read_only_orthanc.startswith("yes"):
        late = server.lag_bytes is not None and server.lag_bytes >= limits.critical_bytes
        if server.receiver == "none" or late:
            why = "it receives nothing" if server.receiver == "none" else "it is too far behind"
            server = replace(server, read_only_orthanc=f"no: {why}, and finds would miss new studies")
    return server


def _problems(seen: Sequence[_Seen], servers: Sequence[Server], limits: Limits) -> Iterator[tuple[str, str]]:
    for server in servers:
        if server.role == "unreachable":
            yield "CRITICAL", f"{server.place}: {server.receiver}"
    primaries = [one for one in seen if one.server.role == "primary"]
    if len(primaries) > 1:
        places = " and ".join(one.server.place for one in primaries)
        yield (
            "CRITICAL",
            f"two primaries, {places}: stop the one of the lower timeline at once, then rejoin it",
        )
    if len({one.system_identifier for one in seen if one.system_identifier}) > 1:
        yield "CRITICAL", "the servers hold different databases: their system identifiers differ"
    for one, server in zip(seen, servers, strict=True):
        if server.role == "standby":
            yield from _standby_problems(one, server, limits)


def _standby_problems(seen: _Seen, server: Server, limits: Limits) -> Iterator[tuple[str, str]]:
    if server.receiver == "none":
        yield "CRITICAL", f"{server.place} receives nothing: its log says why"
    if seen.paused:
        yield "CRITICAL", f"{server.place} does not replay: SELECT pg_wal_replay_resume()"
    lag = server.lag_bytes or 0
    if lag >= limits.warning_bytes:
        level = "CRITICAL" if lag >= limits.critical_bytes else "WARNING"
        yield level, f"{server.place} is {lag:,} bytes behind"
    if server.conflicts and not seen.feedback:
        yield (
            "WARNING",
            f"{server.place} has cancelled {server.conflicts:,} queries: set hot_standby_feedback, "
            "or a longer max_standby_streaming_delay",
        )


def _primary_problems(primary: _Seen) -> Iterator[tuple[str, str]]:
    streaming = [standby for standby in primary.standbys if standby.state in ("streaming", "hidden")]
    if not streaming:
        yield "CRITICAL", f"no standby streams from {primary.server.place}"
    if any(standby.state == "hidden" for standby in primary.standbys):
        yield "WARNING", "this login sees too little: GRANT pg_monitor TO it"
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


def _rows(conn: Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(query, values or None)
        return cur.fetchall()
