"""`replication status`: a primary and its standbys as they report themselves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from pgorthanc_cli.replication import health, split_brain
from pgorthanc_cli.replication.split_brain import Split
from pgorthanc_cli.replication.survey import local_folder
from pgorthanc_cli.schema.features import first_revision_of_plugin
from pgorthanc_cli.schema.status import status as index_status
from pgorthanc_cli.server.wal import format_lsn

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Seconds, so that a host that is down does not delay the others for long.
_CONNECT_TIMEOUT = "5"
# Received, but not replayed: a standby that works replays as much immediately.
_SUSPICIOUS_BYTES = 2**20
# An idle standby replies every 10 s (wal_receiver_status_interval).
_REPLY_TIMEOUT_S = 12.0

_STANDBYS = """
    SELECT coalesce(application_name, ''),
           coalesce(host(client_addr), CASE WHEN state IS NULL THEN 'hidden' ELSE 'socket' END),
           coalesce(state, 'hidden'), coalesce(sync_state, 'hidden'), (pg_current_wal_lsn() - replay_lsn)::bigint,
           extract(epoch FROM replay_lag)::float, (flush_lsn - replay_lsn)::bigint, pid
    FROM pg_stat_replication WHERE application_name IS DISTINCT FROM 'pg_basebackup' ORDER BY 1, 2"""
_REPLAYS = """
    SELECT pid, replay_lsn - '0/0'::pg_lsn, extract(epoch FROM reply_time)::float FROM pg_stat_replication
    WHERE pid = ANY(%s)"""
_SLOTS = """
    SELECT slot_name, active, (pg_current_wal_lsn() - restart_lsn)::bigint, safe_wal_size, coalesce(wal_status, '')
    FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"""
_SLOTS_12 = """
    SELECT slot_name, active, (pg_current_wal_lsn() - restart_lsn)::bigint, NULL, ''
    FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"""


@dataclass(frozen=True)
class Limits:
    """How far a standby may lag, in bytes of WAL, and in seconds."""

    warning_bytes: int = 64 * 2**20
    critical_bytes: int = 2**30
    # An idle standby reports its position every 10 s only.
    warning_s: float = 30.0
    critical_s: float = 300.0


@dataclass(frozen=True)
class ServerState:
    """One server.

    Attributes:
        place: Host and port.
        role: primary, standby, or unreachable.
        version: Of PostgreSQL.
        timeline: Goes up with each promotion.
        lsn: The end of a primary's WAL; the position that a standby has replayed.
        lag_bytes: What a standby has yet to replay of the primary's WAL, or of the WAL
            that it has received if the primary is not among the servers.
        lag_s: How old its data are; 0 if it has replayed all that it has received.
        receiver: `streaming`, `none`, or another state of its WAL receiver; of a primary
            empty; why it is unreachable.
        follows: Host and port of its primary, as far as the login may see it.
        last_replay: Commit time of the last transaction that it has replayed.
        conflicts: Number of its queries that were cancelled because the primary had
            removed their rows.
        read_only_orthanc: Whether an Orthanc with `ReadOnly` true and `Lock` false can
            use it now, or why not.
        server_message: What PostgreSQL answered instead of a login.
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
    server_message: str = ""


@dataclass(frozen=True)
class Follower:
    """A standby as its primary reports it.

    Attributes:
        name: Its application_name.
        address: The address of its connection.
        state: Such as streaming; `hidden` from this login.
        sync: async, potential, sync or quorum.
        lag_bytes: What it has yet to replay.
        lag_s: How long ago the primary wrote what it has replayed last.
        unreplayed_bytes: What it has received, but not replayed.
        stuck: Whether it replays none of that: it is paused or blocked.
    """

    name: str
    address: str
    state: str
    sync: str
    lag_bytes: int | None
    lag_s: float | None
    unreplayed_bytes: int | None = None
    stuck: bool = False


@dataclass(frozen=True)
class Slot:
    """A slot: the WAL that it holds back, and how much more it may.

    `state` is reserved, extended, unreserved or lost (PostgreSQL,
    "pg_replication_slots"); empty before 13.
    """

    name: str
    in_use: bool
    holds_bytes: int | None
    left_bytes: int | None
    state: str


@dataclass(frozen=True)
class ReplicationStatus:
    """A primary and its standbys.

    Attributes:
        verdict: OK, WARNING or CRITICAL.
        problems: Why it is not OK, a line for each.
        servers: Each host of the connection.
        standbys: Those that the primary sends to.
        slots: Its slots.
        synchronous: Its synchronous_standby_names; `none`: commits wait for no standby.
        free_bytes: Free on the disk for WAL, if the primary is on this machine.
        findings: The problems with their remedies, the most important first.
        time: When, by the clock of this machine.
        split: Where several primaries parted, and which was written to last.
    """

    verdict: str
    problems: tuple[str, ...]
    servers: tuple[ServerState, ...]
    standbys: tuple[Follower, ...] = ()
    slots: tuple[Slot, ...] = ()
    synchronous: str = "none"
    free_bytes: int | None = None
    findings: tuple[health.Problem, ...] = ()
    time: datetime | None = field(default=None, compare=False)
    split: Split | None = None

    def figures(self) -> dict[str, object]:
        """Return the performance data for a monitoring system."""
        figures: dict[str, object] = {"standbys": len(self.standbys)}
        for server in self.servers:
            if server.role != "standby":
                continue
            if server.lag_bytes is not None:
                figures[f"{server.place} lag"] = f"{server.lag_bytes}B"
            if server.lag_s is not None:
                figures[f"{server.place} age"] = f"{server.lag_s:.1f}s"
        for slot in self.slots:
            if slot.holds_bytes is not None:
                figures[f"slot {slot.name}"] = f"{slot.holds_bytes}B"
        return figures


@dataclass
class Observation:
    """What one connection reports of its server, or why there is none.

    `free` are the free bytes by folder.
    """

    server: ServerState
    system_identifier: str = ""
    lsn: int = 0
    paused: bool = False
    feedback: bool = False
    standbys: tuple[Follower, ...] = ()
    slots: tuple[Slot, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    free_bytes: int | None = None
    login: str = ""
    failure: ConnectError | None = None


def hosts(target: db.Target) -> list[db.Target]:
    """Return one target for each host of a connection string that lists several."""
    parameters = db.parse_dsn(target.dsn)
    lists = {name: parameters.pop(name, "").split(",") for name in ("host", "hostaddr", "port")}
    count = max(map(len, lists.values()))
    # Every host is asked, whatever its role.
    parameters.pop("target_session_attrs", None)
    parameters.setdefault("connect_timeout", _CONNECT_TIMEOUT)
    for name, values in lists.items():
        if len(values) == 1:
            lists[name] = values * count
    targets = []
    for n in range(count):
        address = {name: values[n] for name, values in lists.items() if values[n]}
        targets.append(replace(target, dsn=make_dsn(**parameters, **address), retries=0))
    return targets


def status(targets: Sequence[db.Target], limits: Limits = Limits()) -> ReplicationStatus:
    """Return the state of the servers, and their problems.

    Raises:
        ConnectError: None of them can be reached.
    """
    observations, failures = [], []
    for target in targets:
        try:
            observations.append(_observe(target))
        except ConnectError as error:
            failures.append(error)
            server = ServerState(
                _endpoint(target),
                "unreachable",
                receiver=error.message,
                server_message=error.server_message,
            )
            observations.append(Observation(server, failure=error))
    if len(failures) == len(observations):
        raise failures[0]
    primary = next((each for each in observations if each.server.role == "primary"), None)
    servers = tuple(health.with_lag(each, primary, limits) for each in observations)
    problems = sorted(
        health.problems(observations, servers, primary, limits), key=lambda problem: problem.level
    )
    return ReplicationStatus(
        verdict=problems[0].level if problems else "OK",
        problems=tuple(map(str, problems)),
        servers=servers,
        standbys=primary.standbys if primary else (),
        slots=primary.slots if primary else (),
        synchronous=(primary.settings["synchronous_standby_names"] if primary else "") or "none",
        free_bytes=primary.free_bytes if primary else None,
        findings=tuple(problems),
        time=datetime.now().astimezone(),
        split=_split(targets, observations),
    )


def _split(targets: Sequence[db.Target], observations: Sequence[Observation]) -> Split | None:
    """Return how several primaries differ; None if there is one, or they are of different databases."""
    primaries = [
        (target, each.server.place, each.server.timeline or 1, each.lsn)
        for target, each in zip(targets, observations, strict=True)
        if each.server.role == "primary"
    ]
    systems = {each.system_identifier for each in observations if each.server.role == "primary"}
    return split_brain.inspect(primaries) if len(primaries) > 1 and len(systems) == 1 else None


def _endpoint(target: db.Target) -> str:
    parameters = db.parse_dsn(target.dsn)
    return f"{parameters.get('host', 'local socket')}:{parameters.get('port', '5432')}"


# One server


def _observe(target: db.Target) -> Observation:
    with db.session(target, autocommit=True, readonly=True, need_schema=False) as conn:
        [(standby, version, system, timeline, lsn)] = db.rows(conn, db.statement(__package__, "server.sql"))
        role, position = "standby" if standby else "primary", int(lsn or 0)
        server = ServerState(_endpoint(target), role, version, timeline, format_lsn(position))
        observation = Observation(server, system, position)
        if standby:
            _observe_standby(conn, observation, target.schema)
        else:
            _observe_primary(conn, observation)
        return observation


def _observe_primary(conn: Connection, observation: Observation) -> None:
    # PostgreSQL 12 has no limit for slots, and so no state of one.
    slots = _SLOTS if conn.server_version >= 130000 else _SLOTS_12
    observation.slots = tuple(Slot(*row) for row in db.rows(conn, slots))
    observation.standbys = tuple(_followers(conn))
    observation.login = sql.Identifier(conn.info.user).as_string(conn)
    names = ["synchronous_standby_names", "data_directory", "max_slot_wal_keep_size"]
    query = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)"
    observation.settings = dict(db.rows(conn, query, names))
    observation.free = _free(conn, observation.settings.get("data_directory"))
    observation.free_bytes = next(iter(observation.free.values()), None)


def _free(conn: Connection, name: str | None) -> dict[str, int]:
    """Return the free bytes on the local disks of WAL and data, in this order."""
    folder = local_folder(conn, name)
    if folder is None:
        return {}
    return {str(path): shutil.disk_usage(path).free for path in (folder / "pg_wal", folder)}


def _followers(conn: Connection) -> Iterator[Follower]:
    rows = db.rows(conn, _STANDBYS)
    stuck = _stuck(conn, [pid for *_, unreplayed, pid in rows if (unreplayed or 0) >= _SUSPICIOUS_BYTES])
    for *values, pid in rows:
        yield replace(Follower(*values), stuck=pid in stuck)


def _stuck(conn: Connection, pids: list[int]) -> set[int]:
    """Return those whose standby replies, but has replayed nothing for a second."""
    # A standby that is paused still replies, with the position at which it stopped.
    before = {pid: (replayed, replied) for pid, replayed, replied in db.rows(conn, _REPLAYS, pids) if replied}
    deadline = time.monotonic() + _REPLY_TIMEOUT_S
    stuck: set[int] = set()
    while before and time.monotonic() < deadline:
        rows = db.rows(conn, _REPLAYS, list(before))
        now = {pid: (replayed, replied) for pid, replayed, replied in rows}
        for pid, (replayed, replied) in list(before.items()):
            if pid not in now or now[pid][0] != replayed:
                del before[pid]
            elif now[pid][1] >= replied + 1:
                stuck.add(pid)
                del before[pid]
        time.sleep(0.1)
    return stuck


def _observe_standby(conn: Connection, observation: Observation, schema: str) -> None:
    [row] = db.rows(conn, db.statement(__package__, "standby.sql"))
    receiver, follows, received, age, last, paused, conflicts, feedback = row
    observation.paused, observation.feedback = paused, feedback == "on"
    name = db.value(conn, "SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    observation.free = _free(conn, name)
    observation.server = replace(
        observation.server,
        lag_bytes=max(int(received) - observation.lsn, 0) if received is not None else None,
        lag_s=age,
        receiver=receiver,
        follows=follows or "hidden",
        last_replay=last,
        conflicts=conflicts,
        read_only_orthanc=_read_only_orthanc(conn, schema),
    )


def _read_only_orthanc(conn: Connection, schema: str) -> str:
    """Return `yes` and the plugin releases that can use the index, or why none can."""
    try:
        index = index_status(conn, schema)
    except PgOrthancError as error:
        return f"no: {error.message}"
    oldest = first_revision_of_plugin("read_only")
    if not isinstance(index.revision, int) or index.revision < oldest:
        return f"no: the index is at revision {index.revision}, and ReadOnly needs {oldest} or higher"
    if index.recorded_revision != index.revision:
        return f"no: recorded as revision {index.recorded_revision}, but the tables are those of {index.revision}"
    return f"yes, with plugin {index.plugins}"
