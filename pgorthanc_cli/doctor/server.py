"""Checks of the server: settings, limits, long transactions, replication, disk space."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.doctor.model import Status, Subject, Verdict, check
from pgorthanc_cli.text import duration, plural, printable, size

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_MINUTE_S = 60.0
_LONG_S, _TOO_LONG_S = 10 * _MINUTE_S, 120 * _MINUTE_S
_WRAPAROUND_AGE = 2**31
_SMALL_BUFFERS = 256 << 20
_BIG_DATABASE = 8 << 30


@dataclass(frozen=True)
class _HarmfulSetting:
    """A setting that is harmful with some values."""

    name: str
    is_harmful: Callable[[str], bool]
    status: Status
    reason: str


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


_HARMFUL = (
    _HarmfulSetting("fsync", _is("off"), "CRITICAL", "a crash of the machine destroys the database"),
    _HarmfulSetting("full_page_writes", _is("off"), "CRITICAL", "a crash of the machine leaves torn pages"),
    _HarmfulSetting("zero_damaged_pages", _is("on"), "CRITICAL", "damaged pages are emptied silently"),
    _HarmfulSetting(
        "ignore_checksum_failure", _is("on"), "CRITICAL", "damaged pages are read as if they were good"
    ),
    _HarmfulSetting(
        "autovacuum", _is("off"), "CRITICAL", "tables grow without end, and transaction ids run out"
    ),
    _HarmfulSetting("track_counts", _is("off"), "CRITICAL", "autovacuum cannot tell what to do"),
    _HarmfulSetting(
        "synchronous_commit", _is("off"), "WARNING", "a crash loses what Orthanc has already acknowledged"
    ),
    _HarmfulSetting(
        "log_statement", _is("all", "mod"), "WARNING", "patient data is written to the server's log"
    ),
    _HarmfulSetting(
        "log_min_duration_statement", _is("0"), "WARNING", "patient data is written to the server's log"
    ),
    _HarmfulSetting("debug_assertions", _is("on"), "WARNING", "this is a slow build, for developers"),
    _HarmfulSetting("default_transaction_read_only", _is("on"), "WARNING", "Orthanc cannot write"),
    _HarmfulSetting(
        "idle_session_timeout",
        lambda value: value != "0",
        "WARNING",
        "idle connections of Orthanc are closed",
    ),
    _HarmfulSetting(
        "statement_timeout", lambda value: value != "0", "WARNING", "long statements of Orthanc fail"
    ),
)
# pg_settings counts shared_buffers in blocks, of 8 kB unless it was built otherwise.
_SIZES = """
    SELECT setting::bigint * 8192, pg_database_size(current_database()) FROM pg_settings WHERE name = 'shared_buffers'
"""
# reset_val is what a session of this role starts with, whatever this one has set since.
_SETTINGS = "SELECT name, reset_val, unit, source, boot_val FROM pg_settings WHERE name = ANY (%s)"

# The reserved connections are for superusers, which Orthanc should not be.
_CONNECTIONS = """
    SELECT (SELECT sum(numbackends) FROM pg_stat_database)::integer,
           current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
           (SELECT numbackends FROM pg_stat_database WHERE datname = current_database()),
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
_OLDEST_TRANSACTION = """
    SELECT pid, coalesce(nullif(application_name, ''), 'no name'), state,
           extract(epoch FROM clock_timestamp() - xact_start)::float8
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
            AND backend_type = 'client backend'
        ORDER BY xact_start LIMIT 1
"""
_HIDDEN_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND usesysid IS NOT NULL AND NOT pg_has_role(usesysid, 'USAGE')
            AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
"""
_PREPARED = """
    SELECT count(*), coalesce(max(extract(epoch FROM now() - prepared)), 0)::float8,
           quote_literal((array_agg(gid ORDER BY prepared))[1])
        FROM pg_prepared_xacts WHERE database = current_database()
"""
_AGES = "SELECT max(age(datfrozenxid)), max(mxid_age(datminmxid)) FROM pg_database"
_STANDBY = """
    SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint,
           extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8
"""
_STANDBYS = """
    SELECT coalesce(nullif(application_name, ''), 'pid ' || pid), state,
           pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint FROM pg_stat_replication ORDER BY 1
"""
_SLOTS = """
    SELECT slot_name, active, {wal_status}, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
        FROM pg_replication_slots ORDER BY 1
"""
_WAL_STATUS_SINCE = 130000


@check("settings")
def settings(subject: Subject) -> Verdict:
    """Check settings that endanger the data, with the source of each."""
    names = [setting.name for setting in _HARMFUL]
    current = {name: values for name, *values in db.rows(subject.conn, _SETTINGS, names)}
    problems, fixes = [], []
    status: Status = "OK"
    for setting in _HARMFUL:
        # idle_session_timeout exists since PostgreSQL 14.
        if setting.name not in current:
            continue
        value, unit, source, default = current[setting.name]
        if setting.is_harmful(value):
            shown = f"{value} {unit}" if unit else value
            problems.append(f"{setting.name} is {shown} (by {source}): {setting.reason}")
            fixes.append(_reset(subject, setting.name, source, default))
            status = "CRITICAL" if "CRITICAL" in (status, setting.status) else "WARNING"
    if any(fix.startswith("ALTER SYSTEM") for fix in fixes):
        fixes.append("SELECT pg_reload_conf();")
    hint = "Change each where it is set." if fixes else None
    if any(fixes):
        hint = "As a superuser; new sessions then start with the default:"
    [(buffers, database_bytes)] = db.rows(subject.conn, _SIZES)
    if buffers < _SMALL_BUFFERS and database_bytes > _BIG_DATABASE:
        # PostgreSQL's settings have PostgreSQL's units.
        problems.append(
            f"shared_buffers is {buffers >> 20}MB for a database of {size(database_bytes)}: "
            "most reads come from the disk"
        )
        hint = hint or "A quarter of the server's memory is usual; it needs a restart."
        status = "WARNING" if status == "OK" else status
    return Verdict(
        status,
        "; ".join(problems) or "no harmful settings",
        hint,
        {"database_size_bytes": database_bytes},
        statements="\n".join(filter(None, fixes)),
    )


def _reset(subject: Subject, name: str, source: str, default: str) -> str:
    """Return the statement that undoes a setting where it was made; empty if none can."""
    if source == "configuration file":
        return f"ALTER SYSTEM SET {name} = '{default}';"
    # ALTER SYSTEM has no effect on what the command line of the server sets.
    return db.reset_statement(subject.conn, name, source)


@check("connections")
def connections(subject: Subject) -> Verdict:
    """Check how near the limits are: at the limit no Orthanc can start."""
    [(used, limit, used_here, limit_here)] = db.rows(subject.conn, _CONNECTIONS)
    share = used / limit
    message = f"{used} of {limit} connections are in use"
    hint = (
        'At the limit no Orthanc can start. Raise max_connections, or lower "IndexConnectionsCount" '
        "(50 for each Orthanc since plugin 7.0)."
    )
    if limit_here >= 0:  # -1: the database has no limit of its own
        share = max(share, used_here / max(limit_here, 1))
        message += f", {used_here} of {limit_here} in this database"
        hint += " The limit of this database is set by ALTER DATABASE ... CONNECTION LIMIT."
    status: Status = "OK" if share < 0.8 else "WARNING" if share < 0.95 else "CRITICAL"
    return Verdict(
        status,
        message,
        hint,
        {"connections_used": used, "connections_limit": limit},
    )


@check("transactions")
def transactions(subject: Subject, long_s: float = _LONG_S) -> Verdict:
    """Check for long transactions: VACUUM removes nothing that one of them may still see."""
    conn = subject.conn
    age_s = 0.0
    messages = []
    end = ""
    for pid, application, state, age_s in db.rows(conn, _OLDEST_TRANSACTION):
        messages.append(f"the oldest is {duration(age_s)} old: pid {pid} ({printable(application)}), {state}")
        end = f"SELECT pg_terminate_backend({pid});"
    oldest_is_visible = bool(messages)
    [(prepared, prepared_s, gid)] = db.rows(conn, _PREPARED)
    if prepared:
        messages.append(f"{plural(prepared, 'prepared transaction')}, the oldest {duration(prepared_s)} old")
        if prepared_s > age_s:
            end = f"ROLLBACK PREPARED {gid};"
    hidden = db.value(conn, _HIDDEN_SESSIONS)
    if hidden and not oldest_is_visible:
        return Verdict(
            "UNKNOWN",
            f"not checked: {plural(hidden, 'session')} of other roles cannot be seen by this one",
            "As a superuser:",
            statements=f"GRANT pg_read_all_stats TO {subject.role};",
        )
    worst_s = max(age_s, prepared_s)
    status: Status = "OK"
    if worst_s >= long_s:
        status = "WARNING" if worst_s < _TOO_LONG_S else "CRITICAL"
    return Verdict(
        status,
        "; ".join(messages) or "no open transactions",
        "VACUUM cannot remove rows that were deleted since then. Finish it in its program, or "
        "end it, which rolls back what it has done:",
        {"oldest_transaction_s": worst_s},
        statements=end,
    )


@check("wraparound")
def wraparound(subject: Subject) -> Verdict:
    """Check the age of transaction ids: near 2**31 the server refuses all writes."""
    [(age, multixact_age)] = db.rows(subject.conn, _AGES)
    share = max(age, multixact_age) / _WRAPAROUND_AGE
    status: Status = "OK" if share < 0.5 else "WARNING" if share < 0.75 else "CRITICAL"
    return Verdict(
        status,
        f"oldest transaction id: {age:,} transactions ago ({100 * share:.0f}% of the limit)",
        "At the limit the server refuses all writes. Find what holds autovacuum back (see the "
        # Others than a superuser cannot vacuum the catalogs that all databases share.
        "checks transactions, replication and settings); then, as a superuser, in every database "
        "but template0, which takes no connections and is left to autovacuum:",
        {"transaction_age": age},
        statements="VACUUM (FREEZE);",
    )


@check("replication")
def replication(subject: Subject) -> Verdict:
    """Check standbys, and slots that keep WAL although nothing reads them."""
    conn = subject.conn
    if db.value(conn, "SELECT pg_is_in_recovery()"):
        [(behind, lag_s)] = db.rows(conn, _STANDBY)
        return Verdict(
            "OK",
            f"this server is a standby; it has {size(behind or 0)} of WAL to replay",
            None,
            {"replay_bytes": behind or 0, "replay_lag_s": lag_s or 0.0},
        )
    standbys = db.rows(conn, _STANDBYS)
    messages = [
        f"{printable(name)}: {state or 'hidden'}, {size(behind or 0)} behind"
        for name, state, behind in standbys
    ]
    lost, retained = [], []
    for name, active, wal_status, retained_bytes in slots(conn, conn.server_version):
        if wal_status == "lost":
            lost.append(name)
        elif not active:
            retained.append((name, retained_bytes or 0))
    messages += [f"slot {name} has lost WAL that its standby needs" for name in lost]
    messages += [
        f"slot {name} is not in use and keeps {size(retained_bytes)} of WAL"
        for name, retained_bytes in retained
    ]
    # Names of slots consist of a-z, 0-9 and _: they need no quoting.
    unused = (*lost, *(name for name, _ in retained))
    return Verdict(
        "CRITICAL" if lost else "WARNING" if retained else "OK",
        "; ".join(messages) or "this server has no standby",
        "A standby that has lost WAL must be created again; others catch up when they are "
        "started. If a standby is gone for good, drop its slot:",
        {
            "standbys": len(standbys),
            "slot_retained_bytes": sum(retained_bytes for _, retained_bytes in retained),
        },
        statements="\n".join(f"SELECT pg_drop_replication_slot('{name}');" for name in unused),
    )


def slots(conn: Connection, server_version: int) -> list[tuple[str, bool, str | None, int | None]]:
    """Return name, whether it is in use, wal_status and retained bytes of each slot.

    PostgreSQL 12 does not have the column wal_status; it is None there.
    """
    wal_status = "wal_status" if server_version >= _WAL_STATUS_SINCE else "NULL"
    return db.rows(conn, _SLOTS.format(wal_status=wal_status))


@check("disk")
def disk(subject: Subject) -> Verdict:
    """Check free space for the database and the files, if they are on this machine."""
    folders = {}
    if subject.storage_dir:
        folders["storage area"] = subject.storage_dir
    if subject.local:
        # Without pg_read_all_settings there is no row.
        data_directory = db.value(
            subject.conn, "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
        )
        if data_directory:
            folders["database"] = Path(data_directory)
    usages = {name: shutil.disk_usage(folder) for name, folder in folders.items() if folder.is_dir()}
    if not usages:
        message = "not checked: the server's disk cannot be seen from here"
        if not subject.local:
            return Verdict("UNKNOWN", message, "Run this check on the server's machine.")
        grant = f"GRANT pg_read_all_settings TO {subject.role};"
        return Verdict("UNKNOWN", message, "As a superuser:", statements=grant)
    least = min(usage.free / usage.total for usage in usages.values())
    status: Status = "OK" if least >= 0.1 else "WARNING" if least >= 0.05 else "CRITICAL"
    return Verdict(
        status,
        "; ".join(
            f"{size(usage.free)} ({100 * usage.free / usage.total:.0f}%) of {size(usage.total)} "
            f"is free on the disk of the {name}"
            for name, usage in usages.items()
        ),
        "A full disk stops the server, and Orthanc with it. Free some space.",
        {f"{name.replace(' ', '_')}_free_bytes": usage.free for name, usage in usages.items()},
    )
