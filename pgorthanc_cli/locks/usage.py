"""Who uses a database: Orthanc's locks, the Orthancs with and without one, and the problems with them.

No lock is ever tried: that could keep an Orthanc from starting.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pgorthanc_cli import db
from pgorthanc_cli.locks import statements
from pgorthanc_cli.locks.orthancs import Group, Orthanc, group_sessions, without_fraction
from pgorthanc_cli.locks.sessions import Observed, observe
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.features import first_revision_of_plugin

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

KEYS = (db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)
_POLL_S = 0.2
_SEVERAL_STARTS = 3
NAMELESS = "no application name"  # how that remark begins

# Housekeeping reads these two tables every second, and hardly anything else does. The server counts
# a scan up to a second later; two that were counted one after the other are no coincidence.
_SCANS = """
    SELECT coalesce(sum(coalesce(seq_scan, 0) + coalesce(idx_scan, 0)), 0) FROM pg_stat_all_tables
        WHERE schemaname = %s AND relname IN ('globalintegerschanges', 'invalidchildcounts')
"""
_HOUSEKEEPING_S = 4.0
_SCANS_OF_HOUSEKEEPING = 2

# Every role may read the system catalogs, whatever privileges the tables have.
_COLUMNS = """
    SELECT format('column %%s.%%s', c.relname, a.attname)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
"""


@dataclass(frozen=True)
class Lock:
    """One of Orthanc's advisory locks; the rest is None if it is free, or the role may not see it.

    Attributes:
        key: Its number: 42, 43 or 44.
        name: What it protects.
        held: Whether a session holds it.
        pid: Server process of the holder.
        role: The holder's role.
        application: The holder's application_name.
        address: Client address; None: the local socket, or hidden.
        since: When the holder connected.
        state: `active`, `idle`, `idle in transaction`.
        idle_since: When the holder became idle.
        last_statement: The kind of its last statement, never the statement.
    """

    key: int
    name: str
    held: bool
    pid: int | None = None
    role: str | None = None
    application: str | None = None
    address: str | None = None
    since: datetime | None = None
    state: str | None = None
    idle_since: datetime | None = None
    last_statement: str | None = None


@dataclass(frozen=True)
class Usage:
    """Who uses a database.

    Attributes:
        database: Its name.
        locks: The locks 42, 43 and 44.
        orthancs: The Orthancs among the sessions, with a lock or without.
        housekeeping: Whether a session does the housekeeping of the index, which only Orthanc does
            (plugin 7.0 or later); detected only if the sessions leave a doubt.
        problems: What endangers the index.
        errors: What an Orthanc that starts now would log, why, and the fix.
        notes: Remarks; what the role may not see.
        endpoint: The database, server and role.
        time: When, by the server's clock.
    """

    database: str
    locks: tuple[Lock, ...]
    orthancs: tuple[Orthanc, ...]
    housekeeping: bool
    problems: tuple[str, ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    endpoint: db.Endpoint
    time: datetime = field(compare=False)

    @property
    def held(self) -> tuple[Lock, ...]:
        """The locks that are held."""
        return tuple(lock for lock in self.locks if lock.held)

    @property
    def free(self) -> bool:
        """Whether no lock is held, and no Orthanc was detected."""
        return not (self.held or self.orthancs or self.housekeeping)

    @property
    def status(self) -> Literal["OK", "WARNING", "CRITICAL"]:
        """For monitoring. A working Orthanc is OK; a set-up that lasts is worth a warning."""
        if self.problems:
            return "CRITICAL"
        is_set_up = any(lock.key == db.LOCK_DATABASE_SETUP for lock in self.held)
        return "WARNING" if is_set_up else "OK"

    @property
    def summary(self) -> str:
        """One line."""
        users = [f"lock {lock.key} ({lock.name}) is held by pid {lock.pid}" for lock in self.held]
        for orthanc in self.orthancs:
            users.append(f"{orthanc.named}{'' if orthanc.locked else ' holds no lock'}")
        if self.housekeeping and not self.orthancs:
            users.append("an Orthanc does the housekeeping of the index")
        return "; ".join(users) or "no session holds a lock of Orthanc, and no Orthanc was detected"


class Watcher:
    """Inspects a database repeatedly, and remembers who held the locks.

    Args:
        conn: An autocommit connection: within a transaction the server shows the same sessions again.
        schema: Namespace of the index, whose layout tells which releases of the plugin fit.
        lock: Orthanc's option `Lock`, if its configuration is known.
        connections: IndexConnectionsCount by release of the plugin, if the configuration is known.
        storage: Orthanc's option `EnableStorage`; True if the configuration is not known.
    """

    def __init__(
        self,
        conn: Connection,
        schema: str,
        *,
        lock: bool | None = None,
        connections: Callable[[str], int] | None = None,
        storage: bool = True,
    ) -> None:
        self._connections = connections
        self._storage = storage
        self._conn = conn
        self._schema = schema
        self._lock = lock
        self._last_holders: dict[int, Lock] = {}

    def inspect(self) -> Usage:
        """Return who uses the database now.

        Raises:
            psycopg2.Error: The connection is lost.
        """
        sessions = observe(self._conn)
        columns = db.rows(self._conn, _COLUMNS, self._schema)
        layout = catalog.layout({name: "" for (name,) in columns}, self._schema)
        most = self._most_connections(layout)
        groups = group_sessions(sessions, layout, connections=most, storage=self._storage)
        doubtful = [group for group in groups if not group.orthanc.certain]
        housekeeping = False
        # Only then: it watches the statistics of the server for up to 4 s.
        if doubtful or any(session.query is None for session in sessions):
            housekeeping = _detect_housekeeping(self._conn, self._schema, layout)
            if housekeeping and len(doubtful) == 1:
                groups = group_sessions(
                    sessions, layout, housekeeping=True, connections=most, storage=self._storage
                )
        # Remembered: whoever held a lock, works on and holds it no more has lost it.
        locks = tuple(_lock(key, sessions) for key in KEYS)
        self._last_holders |= {lock.key: lock for lock in locks if lock.held}
        uncountable = [] if most is not None else list(_several_perhaps(groups))
        remarks = [*notes(groups), *uncountable, *hidden_sessions(self._conn, sessions)]
        remarks += [
            f"the command {session.application or 'of another role'} (pid {session.pid}) holds "
            f"our {db.LOCK_NAMES[key]} lock, which no Orthanc waits for"
            for session in sessions
            for key in session.locks
            if key in db.OUR_LOCKS
        ]
        if layout is None and groups:
            remarks.append(
                f"schema {self._schema} holds no index: name the one of that Orthanc with --schema"
            )
        problems = [*unlocked_writers(groups), *self._lost_locks(locks, groups)]
        return Usage(
            database=self._conn.info.dbname,
            locks=locks,
            orthancs=tuple(group.orthanc for group in groups),
            housekeeping=housekeeping,
            problems=tuple(dict.fromkeys(problems)),
            errors=tuple(_errors(locks)),
            notes=tuple(remarks),
            endpoint=db.endpoint(self._conn),
            time=db.value(self._conn, "SELECT date_trunc('second', clock_timestamp())"),
        )

    def _most_connections(self, layout: catalog.Layout | None) -> int | None:
        """Return how many connections to the index one Orthanc opens, if the configuration is known."""
        releases = re.findall(r"\d+\.\d+", layout.plugins) if layout else []
        return self._connections(releases[-1]) if self._connections and releases else None

    def _lost_locks(self, locks: Sequence[Lock], groups: Sequence[Group]) -> Iterator[str]:
        """Yield the locks that an Orthanc which still works must have had.

        One option, `Lock`, decides for the index and the storage area.
        """
        for lock in locks:
            if lock.held or lock.key == db.LOCK_DATABASE_SETUP:
                continue
            last = self._last_holders.get(lock.key)
            for group in groups:
                orthanc = group.orthanc
                # Pids change with each connection; role, address and name do not.
                if last and _client(last) == _client(orthanc):
                    reason = f"pid {last.pid}, which held it, has ended"
                elif orthanc.locked and group.uses(lock.key):
                    reason = "it holds the other lock and works with what this one protects"
                elif self._lock and orthanc.certain and lock.key == db.LOCK_INDEX:
                    reason = f'"Lock" is true in the configuration, but {orthanc.named} may have another one'
                else:
                    continue
                yield (
                    f"lock {lock.key} ({lock.name}) was lost, and {orthanc.named} continues without it: "
                    f"{reason}; restart that Orthanc, only a start takes the lock"
                )


def inspect(conn: Connection, schema: str, *, lock: bool | None = None) -> Usage:
    """Return who uses a database; the arguments and errors are those of `Watcher`."""
    return Watcher(conn, schema, lock=lock).inspect()


def wait_until_free(watcher: Watcher, timeout_s: float, report: Report = silent) -> Usage:
    """Return as soon as the database is free, or after `timeout_s`; report who uses it meanwhile."""
    deadline = time.monotonic() + timeout_s
    reported = None
    while True:
        usage = watcher.inspect()
        if usage.free:
            return usage
        # Only what has changed: a log may watch for hours.
        if usage != reported:
            reported = usage
            report(Progress("waiting", usage.summary))
        if time.monotonic() >= deadline:
            return usage
        time.sleep(_POLL_S)


def _detect_housekeeping(conn: Connection, schema: str, layout: catalog.Layout | None) -> bool:
    """Return whether housekeeping runs, by the server's statistics, which every role may read."""
    if layout is None or layout.revision < first_revision_of_plugin("housekeeping"):
        return False
    deadline = time.monotonic() + _HOUSEKEEPING_S
    counts: set[int] = set()
    while len(counts) <= _SCANS_OF_HOUSEKEEPING and time.monotonic() < deadline:
        # Within a transaction the server would return the statistics of the first query again.
        db.rows(conn, "SELECT pg_catalog.pg_stat_clear_snapshot()")
        counts.add(int(db.value(conn, _SCANS, schema)))
        time.sleep(_POLL_S)
    return len(counts) > _SCANS_OF_HOUSEKEEPING


def _lock(key: int, sessions: Sequence[Observed]) -> Lock:
    name = db.LOCK_NAMES[key]
    holder = next((session for session in sessions if key in session.locks), None)
    if holder is None:
        return Lock(key, name, held=False)
    return Lock(
        key=key,
        name=name,
        held=True,
        pid=holder.pid,
        role=holder.role,
        application=holder.application,
        address=holder.address,
        since=without_fraction(holder.since),
        state=holder.state,
        idle_since=without_fraction(holder.idle_since),
        last_statement=statements.read(holder.query).kind,
    )


def _client(session: Lock | Orthanc) -> tuple[str | None, ...]:
    return session.role, session.address, session.application


def unlocked_writers(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the Orthancs that work on a database which another one has locked."""
    orthancs = [group.orthanc for group in groups]
    owners = [orthanc for orthanc in orthancs if orthanc.certain and orthanc.locked]
    unlocked = [orthanc for orthanc in orthancs if not orthanc.locked]
    for owner, other in itertools.product(owners, unlocked):
        same_client = _client(owner) == _client(other)
        if not other.certain and not same_client:
            continue
        doubt = "; or both are one, which has connected again" if same_client else ""
        yield (
            f"{other.named} works without a lock on a database that {owner.named} has locked for itself: "
            'stop one of them, or set "Lock" to false for both if their plugin allows several '
            f"writers{doubt}"
        )


def _errors(locks: Sequence[Lock]) -> Iterator[str]:
    """Yield what an Orthanc would log if it started now, in its own words."""
    *start, setup = locks
    if holders := _holders(start):
        yield (
            f'"The PostgreSQL database is locked by another instance of Orthanc": {holders}; stop that '
            "Orthanc; if its machine is gone, and the server has not noticed: pgorthanc check-lock "
            "--terminate PID, for each of them"
        )
    if holders := _holders([setup]):
        yield (
            f'"Cannot acquire a transient advisory lock": {holders}, because it makes or upgrades tables; '
            "an Orthanc that starts meanwhile gives up after 5 s; let it finish: pgorthanc wait --unlocked"
        )


def _holders(locks: Sequence[Lock]) -> str:
    return " and ".join(
        f"pid {lock.pid} ({lock.application or 'no name'}) holds lock {lock.key}"
        for lock in locks
        if lock.held
    )


def notes(groups: Sequence[Group]) -> Iterator[str]:
    """Yield remarks about the Orthancs on a database."""
    locked = [group for group in groups if group.orthanc.locked]
    for group in locked:
        if group.starts >= _SEVERAL_STARTS:
            yield (
                f"{group.orthanc.named} opens connections as it needs them (UseDynamicConnectionPool): it "
                f"loses its lock as soon as it closes the connection of pid {group.orthanc.pid}, idle for "
                "60 s or 1 h old"
            )
    for group in groups:
        if group.orthanc.certain and not locked:
            yield (
                f'{group.orthanc.named} holds no lock: its "Lock" is false, as in the official container '
                "image, or it lost the lock with its connection"
            )
    nameless = [str(group.orthanc.pid) for group in groups if not group.orthanc.application]
    if nameless:
        yield (
            f"{NAMELESS}: pid {', '.join(nameless)}; name each Orthanc by ApplicationName (plugin "
            "10.0 or later) or application_name in ConnectionUri"
        )


def _several_perhaps(groups: Sequence[Group]) -> Iterator[str]:
    """Yield for which groups only the number of connections tells whether they are one Orthanc."""
    for group in groups:
        if len(group.members) > 1 and group.starts == 1 and not group.orthanc.locked:
            yield (
                f"{group.orthanc.named} may be several Orthancs: its {len(group.members)} sessions hold no lock "
                "and began within seconds; name its configuration (--config) to tell them apart"
            )


def hidden_sessions(conn: Connection, sessions: Sequence[Observed]) -> Iterator[str]:
    """Yield what the role may not see, and where else to ask."""
    hidden = sum(session.query is None for session in sessions)
    [(role, is_standby)] = db.rows(conn, "SELECT quote_ident(current_user), pg_is_in_recovery()")
    if hidden:
        yield (
            f"{hidden} of {len(sessions)} other sessions show no statements and addresses to role {role}, "
            f"so that an Orthanc without a lock may be missed: GRANT pg_read_all_stats TO {role}; or switch "
            "track_activities on"
        )
    if is_standby:
        yield "this server is a standby: Orthanc's locks are on the primary, ask there"
