"""`replication status`: a primary and its standbys as they say it themselves. Reads only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from pgorthanc_cli.replication import judge, survey
from pgorthanc_cli.replication.walsender import show_lsn
from pgorthanc_cli.schema.status import status as index_status

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_OLDEST_READ_ONLY = 3  # the revision of plugin 7.0, the first one that knows ReadOnly (SCHEMA.md 9)
_CONNECT_TIMEOUT_S = "5"
_SUSPICIOUS_BYTES = 2**20  # received, but not replayed: a standby that works replays as much in a moment
_ANSWERS_WITHIN_S = 12.0  # an idle standby answers every 10 s (wal_receiver_status_interval)

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
           extract(epoch FROM replay_lag)::float, (flush_lsn - replay_lsn)::bigint, pid
    FROM pg_stat_replication WHERE application_name IS DISTINCT FROM 'pg_basebackup' ORDER BY 1, 2"""
_REPLAYS = """
    SELECT pid, replay_lsn - '0/0'::pg_lsn, extract(epoch FROM reply_time)::float FROM pg_stat_replication
    WHERE pid = ANY(%s)"""
_SLOTS = """
    SELECT slot_name, active, (pg_current_wal_lsn() - restart_lsn)::bigint, {left}, {state}
    FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"""


@dataclass(frozen=True)
class Limits:
    """How far a standby may be behind, in bytes of WAL, and in seconds."""

    warning_bytes: int = 64 * 2**20
    critical_bytes: int = 2**30
    warning_s: float = 30.0  # an idle standby tells its place every 10 s only
    critical_s: float = 300.0


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
    """A standby as its primary sees it.

    Attributes:
        name: Its application_name.
        address: From where it is connected.
        state: Such as streaming; `hidden` from this login.
        sync: async, potential, sync or quorum.
        lag_bytes: What it has still to replay.
        lag_s: How long ago the primary wrote what it has replayed last.
        unreplayed_bytes: What it has received, and not replayed.
        stuck: Whether it replays nothing of that: it is paused, or something holds it up.
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
class Seen:
    """What one connection told."""

    server: Server
    system_identifier: str = ""
    lsn: int = 0
    paused: bool = False
    feedback: bool = False
    standbys: tuple[Follower, ...] = ()
    slots: tuple[Slot, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)  # by folder
    free_bytes: int | None = None
    login: str = ""


def hosts(target: db.Target) -> list[db.Target]:
    """One target for each host of a connection string that lists several."""
    given = db.parse_dsn(target.dsn)
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
            seen.append(Seen(Server(_place(target), "unreachable", receiver=error.message)))
    if len(failures) == len(seen):
        raise failures[0]
    primary = next((one for one in seen if one.server.role == "primary"), None)
    servers = tuple(judge.measured(one, primary, limits) for one in seen)
    problems = list(judge.problems(seen, servers, primary, limits))
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
    given = db.parse_dsn(target.dsn)
    return f"{given.get('host', 'local socket')}:{given.get('port', '5432')}"


# Looking


def _look(target: db.Target) -> Seen:
    with db.session(target, autocommit=True, readonly=True, need_schema=False) as conn:
        [(standby, version, system, timeline, lsn)] = _rows(conn, _ANY)
        server = Server(
            _place(target), "standby" if standby else "primary", version, timeline, show_lsn(int(lsn or 0))
        )
        found = Seen(server, system, int(lsn or 0))
        return _look_standby(conn, found, target.schema) if standby else _look_primary(conn, found)


def _look_primary(conn: Connection, found: Seen) -> Seen:
    new = conn.server_version >= 130000
    query = _SLOTS.format(
        left="safe_wal_size" if new else "NULL", state="coalesce(wal_status, '')" if new else "''"
    )
    found.slots = tuple(Slot(*row) for row in _rows(conn, query))
    found.standbys = tuple(_followers(conn))
    found.login = sql.Identifier(conn.info.user).as_string(conn)
    names = ["synchronous_standby_names", "data_directory", "max_slot_wal_keep_size"]
    found.settings = dict(
        _rows(conn, "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", names)
    )
    found.free = _free(conn, found.settings.get("data_directory"))
    found.free_bytes = next(iter(found.free.values()), None)
    return found


def _free(conn: Connection, name: str | None) -> dict[str, int]:
    """Free bytes on the disks of WAL and data, in this order, if they are on this machine."""
    folder = survey.local_folder(conn, name)
    return {str(path): shutil.disk_usage(path).free for path in (folder / "pg_wal", folder)} if folder else {}


def _followers(conn: Connection) -> Iterator[Follower]:
    rows = _rows(conn, _STANDBYS)
    stuck = _stuck(conn, [pid for *_, unreplayed, pid in rows if (unreplayed or 0) >= _SUSPICIOUS_BYTES])
    for *values, pid in rows:
        yield replace(Follower(*values), stuck=pid in stuck)


def _stuck(conn: Connection, pids: list[int]) -> set[int]:
    """Those whose standby has answered again after a second or more, and has replayed nothing meanwhile."""
    before = {
        pid: (replayed, answered) for pid, replayed, answered in _rows(conn, _REPLAYS, pids) if answered
    }
    deadline = time.monotonic() + _ANSWERS_WITHIN_S
    found: set[int] = set()
    while before and time.monotonic() < deadline:
        now = {pid: (replayed, answered) for pid, replayed, answered in _rows(conn, _REPLAYS, list(before))}
        for pid, (replayed, answered) in list(before.items()):
            if pid not in now or now[pid][0] != replayed:
                del before[pid]
            elif now[pid][1] >= answered + 1:
                found.add(pid)
                del before[pid]
        time.sleep(0.1)
    return found


def _look_standby(conn: Connection, found: Seen, schema: str) -> Seen:
    [(receiver, follows, received, age, last, paused, conflicts, feedback)] = _rows(conn, _STANDBY)
    found.paused, found.feedback = paused, feedback == "on"
    name = _rows(conn, "SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    found.free = _free(conn, name[0][0] if name else None)
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


def _rows(conn: Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(query, values or None)
        return cur.fetchall()
