"""The server: settings that hurt, limits that come near, transactions and standbys that hold things up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psycopg2 import sql

from pgorthanc_cli.doctor.model import Status, Subject, Verdict

_MINUTE_S = 60.0
_LONG_S, _TOO_LONG_S = 10 * _MINUTE_S, 120 * _MINUTE_S
_LAST_TRANSACTION = 2**31
_SMALL_BUFFERS = 256 << 20
_BIG_DATABASE = 8 << 30


@dataclass(frozen=True)
class _Bad:
    """A value that hurts."""

    name: str
    is_bad: Callable[[str], bool]
    status: Status
    why: str


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


_BAD = (
    _Bad("fsync", _is("off"), "CRITICAL", "a crash of the machine destroys the database"),
    _Bad("full_page_writes", _is("off"), "CRITICAL", "a crash of the machine leaves torn pages"),
    _Bad("zero_damaged_pages", _is("on"), "CRITICAL", "damaged pages are emptied without a word"),
    _Bad("ignore_checksum_failure", _is("on"), "CRITICAL", "damaged pages are read as if they were good"),
    _Bad("autovacuum", _is("off"), "CRITICAL", "tables grow without end, and transaction ids run out"),
    _Bad("track_counts", _is("off"), "CRITICAL", "autovacuum does not know what to do"),
    _Bad("synchronous_commit", _is("off"), "WARNING", "a crash loses what Orthanc has already acknowledged"),
    _Bad("log_statement", _is("all", "mod"), "WARNING", "patient data is written to the server's log"),
    _Bad("log_min_duration_statement", _is("0"), "WARNING", "patient data is written to the server's log"),
    _Bad("debug_assertions", _is("on"), "WARNING", "this is a slow build for developers"),
    _Bad("default_transaction_read_only", _is("on"), "WARNING", "Orthanc cannot write"),
    _Bad(
        "idle_session_timeout",
        lambda value: value != "0",
        "WARNING",
        "idle connections of Orthanc are closed",
    ),
    _Bad("statement_timeout", lambda value: value != "0", "WARNING", "long statements of Orthanc fail"),
)
_SIZES = """
    SELECT setting::bigint * 8192, pg_database_size(current_database()) FROM pg_settings WHERE name = 'shared_buffers'
"""
# What a session of this role has got at its start, whatever it has set since.
_SETTINGS = "SELECT name, reset_val, source FROM pg_settings WHERE name = ANY (%s)"

_CONNECTIONS = """
    SELECT (SELECT sum(numbackends) FROM pg_stat_database)::integer,
           current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
           (SELECT numbackends FROM pg_stat_database WHERE datname = current_database()),
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
_OLDEST = """
    SELECT pid, coalesce(nullif(application_name, ''), 'no name'), state,
           extract(epoch FROM clock_timestamp() - xact_start)::float8
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
            AND backend_type = 'client backend'
        ORDER BY xact_start LIMIT 1
"""
_HIDDEN = """
    SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND usesysid IS NOT NULL AND NOT pg_has_role(usesysid, 'USAGE')
            AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
"""
_PREPARED = """
    SELECT count(*), coalesce(max(extract(epoch FROM now() - prepared)), 0)::float8 FROM pg_prepared_xacts
        WHERE database = current_database()
"""
_AGES = "SELECT max(age(datfrozenxid)), max(mxid_age(datminmxid)) FROM pg_database"
_STANDBY = """
    SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint,
           extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8
"""
_FOLLOWERS = """
    SELECT coalesce(nullif(application_name, ''), 'pid ' || pid), state,
           pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint FROM pg_stat_replication ORDER BY 1
"""
_SLOTS = """
    SELECT slot_name, active, {wal_status}, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
        FROM pg_replication_slots ORDER BY 1
"""
_WAL_STATUS_SINCE = 130000


def settings(subject: Subject) -> Verdict:
    """Values that hurt, with the place that they come from."""
    known = {
        name: (value, source) for name, value, source in subject.rows(_SETTINGS, [bad.name for bad in _BAD])
    }
    hurting = [bad for bad in _BAD if bad.name in known and bad.is_bad(known[bad.name][0])]
    words = [f"{bad.name} is {known[bad.name][0]} (by {known[bad.name][1]}): {bad.why}" for bad in hurting]
    status: Status = "OK"
    if hurting:
        status = "CRITICAL" if any(bad.status == "CRITICAL" for bad in hurting) else "WARNING"
    buffers, size = subject.row(_SIZES)
    if buffers < _SMALL_BUFFERS and size > _BIG_DATABASE:
        words.append(f"shared_buffers is {buffers >> 20} MB for a database of {size >> 30} GB")
        status = "WARNING" if status == "OK" else status
    return Verdict(
        status,
        "; ".join(words) or "none that hurts",
        "as an administrator: ALTER SYSTEM SET name = value; then SELECT pg_reload_conf(); shared_buffers and fsync "
        "want a look at the manual first",
        {"database_size_bytes": size},
    )


def connections(subject: Subject) -> Verdict:
    """How near the limits are: at the limit no Orthanc can start, and no administrator can look."""
    used, limit, here, limit_here = subject.row(_CONNECTIONS)
    share = used / limit
    words = f"{used} of {limit} are in use"
    if limit_here >= 0:
        share = max(share, here / max(limit_here, 1))
        words += f", {here} of {limit_here} in this database"
    status: Status = "OK" if share < 0.8 else "WARNING" if share < 0.95 else "CRITICAL"
    return Verdict(
        status,
        words,
        'raise max_connections, or lower "IndexConnectionsCount" (50 for each Orthanc since plugin 7.0)',
        {"connections_used": used, "connections_limit": limit},
    )


def transactions(subject: Subject) -> Verdict:
    """What keeps the server from tidying up."""
    oldest = subject.rows(_OLDEST)
    age = oldest[0][3] if oldest else 0.0
    words = [f"the oldest is {_duration(row[3])} old: pid {row[0]} ({row[1]}), {row[2]}" for row in oldest]
    prepared, prepared_s = subject.row(_PREPARED)
    if prepared:
        words.append(f"{prepared} prepared transactions, the oldest {_duration(prepared_s)} old")
    ((hidden,),) = subject.rows(_HIDDEN)
    if hidden and not oldest:
        return Verdict(
            "UNKNOWN",
            f"{hidden} sessions of other roles show nothing to this one",
            f"as an administrator: GRANT pg_read_all_stats TO {_role(subject)};",
        )
    worst = max(age, prepared_s)
    status: Status = "OK" if worst < _LONG_S else "WARNING" if worst < _TOO_LONG_S else "CRITICAL"
    return Verdict(
        status,
        "; ".join(words) or "none is open",
        "nothing that was deleted since can be tidied up: end it there, or with SELECT pg_terminate_backend(pid); a "
        "prepared one with ROLLBACK PREPARED",
        {"oldest_transaction_s": worst},
    )


def wraparound(subject: Subject) -> Verdict:
    """How far the numbers of transactions are from the point where the server stops to accept any."""
    age, multixacts = subject.row(_AGES)
    share = max(age, multixacts) / _LAST_TRANSACTION
    status: Status = "OK" if share < 0.5 else "WARNING" if share < 0.75 else "CRITICAL"
    return Verdict(
        status,
        f"the oldest number in use is {age:,} transactions old, {100 * share:.0f} % of the way",
        "find what keeps autovacuum from its work (transactions, slots, settings above), then: VACUUM (FREEZE);",
        {"transaction_age": age},
    )


def replication(subject: Subject) -> Verdict:
    """Standbys, and slots that nobody reads any more."""
    if subject.row("SELECT pg_is_in_recovery()")[0]:
        behind, lag_s = subject.row(_STANDBY)
        return Verdict(
            "OK",
            f"this server is a standby, {behind or 0:,} bytes are still to be replayed",
            None,
            {"replay_bytes": behind or 0, "replay_lag_s": lag_s or 0.0},
        )
    followers = subject.rows(_FOLLOWERS)
    words = [
        f"{name}: {state or 'hidden'}, {behind or 0:,} bytes behind" for name, state, behind in followers
    ]
    known = subject.conn.server_version >= _WAL_STATUS_SINCE
    slots = subject.rows(_SLOTS.format(wal_status="wal_status" if known else "NULL"))
    lost = [name for name, _, wal, _ in slots if wal == "lost"]
    idle = [(name, kept or 0) for name, active, wal, kept in slots if not active and wal != "lost"]
    words += [f"slot {name} has lost what its standby needs" for name in lost]
    words += [f"slot {name} is not in use and keeps {kept:,} bytes of WAL" for name, kept in idle]
    return Verdict(
        "CRITICAL" if lost else "WARNING" if idle else "OK",
        "; ".join(words) or "no standby follows this server",
        "start the standby again, or: SELECT pg_drop_replication_slot(name); see: pgorthanc replication status",
        {"standbys": len(followers), "slot_retained_bytes": sum(kept for _, kept in idle)},
    )


def disk(subject: Subject) -> Verdict:
    """Room for the database and for the files, where they are on this machine."""
    places = {"storage area": subject.storage_dir} if subject.storage_dir else {}
    if subject.local and (folder := _data_directory(subject)):
        places["database"] = folder
    free = {what: shutil.disk_usage(folder) for what, folder in places.items() if folder and folder.is_dir()}
    if not free:
        return Verdict(
            "UNKNOWN",
            "the server's disk cannot be seen from here",
            f"run it on the server's machine; as an administrator: GRANT pg_read_all_settings TO {_role(subject)};",
        )
    least = min(usage.free / usage.total for usage in free.values())
    status: Status = "OK" if least >= 0.1 else "WARNING" if least >= 0.05 else "CRITICAL"
    return Verdict(
        status,
        "; ".join(
            f"{what}: {usage.free / 1e9:,.1f} GB of {usage.total / 1e9:,.1f} GB are free"
            for what, usage in free.items()
        ),
        "make room before it is full: a full disk stops the server, and Orthanc with it",
        {f"{what.replace(' ', '_')}_free_bytes": usage.free for what, usage in free.items()},
    )


def _role(subject: Subject) -> str:
    return sql.Identifier(subject.conn.info.user).as_string(subject.conn)


def _data_directory(subject: Subject) -> Path | None:
    """None: the role may not see it."""
    rows = subject.rows("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    folder = Path(rows[0][0]) if rows and rows[0][0] else None
    return folder if folder and os.path.isdir(folder) else None


def _duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3.5 h."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < 120 * _MINUTE_S else f"{seconds / 3600:.1f} h"
