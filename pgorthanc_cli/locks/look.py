"""The state of Orthanc's locks and of the Orthancs on a database, and what is wrong with it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pgorthanc_cli import db
from pgorthanc_cli.locks import statements
from pgorthanc_cli.locks.generation import HOUSEKEEPING_SINCE
from pgorthanc_cli.locks.orthancs import Group, Orthanc, groups, second
from pgorthanc_cli.locks.sessions import Observed, observe
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

KEYS = (db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)
_POLL_S = 0.2
_SEVERAL_STARTS = 3

# The two tables that housekeeping reads every second and hardly anybody else. A server counts a scan up to a second
# later; two that were counted one after the other are no accident.
_SCANS = """
    SELECT coalesce(sum(coalesce(seq_scan, 0) + coalesce(idx_scan, 0)), 0) FROM pg_stat_all_tables
        WHERE schemaname = %s AND relname IN ('globalintegerschanges', 'invalidchildcounts')
"""
_HOUSEKEEPING_S = 4.0
_TWICE = 2

# Everybody may read the system catalogs, whatever rights the tables have.
_LAYOUT = """
    SELECT format('column %%s.%%s', c.relname, a.attname)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
"""


@dataclass(frozen=True)
class Lock:
    """One of Orthanc's advisory locks; the rest is None where nobody holds it, or the role may not see it.

    Attributes:
        key: Its number: 42, 43 or 44.
        name: What it protects.
        held: Somebody holds it.
        pid: Process of the server that serves the holder.
        role: The role that the holder has logged in with.
        application: The holder's application_name.
        address: Where it comes from; None: the local socket, or hidden.
        since: When it connected.
        state: `active`, `idle`, `idle in transaction`.
        idle_since: When it became idle.
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

    def __str__(self) -> str:
        """A line for people."""
        if not self.held:
            return f"{self.key} {self.name}: free"
        known = {
            "role": self.role,
            "address": self.address or ("local" if self.since else None),
            "since": self.since,
        }
        known |= {"state": self.state, "idle since": self.idle_since, "last statement": self.last_statement}
        shown = "".join(f", {name} {value}" for name, value in known.items() if value is not None)
        return f"{self.key} {self.name}: pid {self.pid}, application {self.application or 'without a name'}{shown}"


@dataclass(frozen=True)
class Found:
    """Who works on a database.

    Attributes:
        database: Its name.
        locks: The locks 42, 43 and 44.
        orthancs: The Orthancs that are seen, with a lock or without.
        housekeeping: Somebody does the housekeeping of the index, which only Orthanc does (plugin 7.0 or later);
            looked for only where the sessions leave a doubt.
        problems: What endangers the index.
        errors: What an Orthanc that starts now would say, why, and what to do.
        notes: What else to know; what the role may not see.
    """

    database: str
    locks: tuple[Lock, ...]
    orthancs: tuple[Orthanc, ...]
    housekeeping: bool
    problems: tuple[str, ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def held(self) -> tuple[Lock, ...]:
        """The locks that somebody holds."""
        return tuple(lock for lock in self.locks if lock.held)

    @property
    def free(self) -> bool:
        """Nobody holds a lock, and no Orthanc is seen or felt."""
        return not (self.held or self.orthancs or self.housekeeping)

    @property
    def status(self) -> Literal["OK", "WARNING", "CRITICAL"]:
        """For monitoring. An Orthanc at work is as good as none; only a set-up that lasts is worth a warning."""
        if self.problems:
            return "CRITICAL"
        return "WARNING" if any(lock.key == db.LOCK_DATABASE_SETUP for lock in self.held) else "OK"

    @property
    def summary(self) -> str:
        """In one line."""
        held = [f"lock {lock.key} ({lock.name}) is held by pid {lock.pid}" for lock in self.held]
        seen = [f"{orthanc.named}{'' if orthanc.locked else ' holds no lock'}" for orthanc in self.orthancs]
        felt = ["an Orthanc does the housekeeping of the index"] if self.housekeeping and not seen else []
        return "; ".join([*held, *seen, *felt]) or "nobody holds a lock of Orthanc, and no Orthanc is seen"


class Watcher:
    """Looks at a database again and again, and remembers who held the locks.

    Args:
        conn: An autocommit connection: within a transaction the server shows the same sessions again and again.
        schema: Namespace of the index, which tells the releases of the plugin that fit.
        lock: What Orthanc's configuration says of `Lock`; None: nothing is known.
        connections: What it says of `IndexConnectionsCount` for a release of the plugin; None: nothing is known.
    """

    def __init__(
        self,
        conn: Connection,
        schema: str,
        *,
        lock: bool | None = None,
        connections: Callable[[str], int] | None = None,
    ) -> None:
        self._connections = connections
        self._conn = conn
        self._schema = schema
        self._lock = lock
        self._held: dict[int, Lock] = {}

    def look(self) -> Found:
        """Who works on the database now.

        Raises:
            psycopg2.Error: The connection is lost.
        """
        sessions = observe(self._conn)
        layout = _layout(self._conn, self._schema)
        most = self._most(layout)
        seen = groups(sessions, layout, connections=most)
        unknown = [group for group in seen if not group.orthanc.certain]
        housekeeping = False
        if unknown or any(session.query is None for session in sessions):
            housekeeping = _goes_on(self._conn, self._schema, layout)
            if housekeeping and len(unknown) == 1:
                seen = groups(sessions, layout, housekeeping=True, connections=most)
        locks = tuple(_lock(key, sessions) for key in KEYS)
        self._held |= {lock.key: lock for lock in locks if lock.held}
        said = [*notes(seen), *unseen(self._conn, sessions)]
        if layout is None and seen:
            said.append(f"schema {self._schema} holds no index: name the one of that Orthanc with --schema")
        return Found(
            database=self._conn.info.dbname,
            locks=locks,
            orthancs=tuple(group.orthanc for group in seen),
            housekeeping=housekeeping,
            problems=tuple(dict.fromkeys([*_shared(seen), *self._lost(locks, seen)])),
            errors=tuple(_errors(locks)),
            notes=tuple(said),
        )

    def _most(self, layout: catalog.Layout | None) -> int | None:
        """Return how many connections to the index one Orthanc opens, for the plugin that the index is made for."""
        releases = re.findall(r"\d+\.\d+", layout.plugins) if layout else []
        return self._connections(releases[-1]) if self._connections and releases else None

    def _lost(self, locks: Sequence[Lock], seen: Sequence[Group]) -> Iterator[str]:
        """Locks that an Orthanc which goes on must have had: `Lock` is one option for index and storage area."""
        free = [lock for lock in locks if not lock.held and lock.key != db.LOCK_DATABASE_SETUP]
        for lock in free:
            before = self._held.get(lock.key)
            for group in seen:
                orthanc = group.orthanc
                if before and _place(before) == _place(orthanc):
                    why = f"pid {before.pid}, which held it, has ended"
                elif orthanc.locked and group.uses(lock.key):
                    why = "it holds the other lock and works with what this one protects"
                elif self._lock and orthanc.certain and lock.key == db.LOCK_INDEX:
                    why = f'"Lock" is true in the configuration, but {orthanc.named} may have another one'
                else:
                    continue
                yield (
                    f"lock {lock.key} ({lock.name}) was lost, and {orthanc.named} goes on without it: {why}; "
                    "restart that Orthanc, only a start takes the lock"
                )


def look(conn: Connection, schema: str, *, lock: bool | None = None) -> Found:
    """Who works on a database; the arguments and errors are those of `Watcher`."""
    return Watcher(conn, schema, lock=lock).look()


def until_free(watcher: Watcher, wait_s: float) -> Iterator[Found]:
    """Look until the database is free, or `wait_s` seconds are over; yields each state that is new."""
    deadline = time.monotonic() + wait_s
    shown = None
    while True:
        found = watcher.look()
        if found != shown:
            shown = found
            yield found
        if found.free or time.monotonic() >= deadline:
            return
        time.sleep(_POLL_S)


def _goes_on(conn: Connection, schema: str, layout: catalog.Layout | None) -> bool:
    """Whether somebody does the housekeeping, asked of the server's statistics, which everybody may read."""
    if layout is None or layout.revision < HOUSEKEEPING_SINCE:
        return False
    deadline = time.monotonic() + _HOUSEKEEPING_S
    counts: set[int] = set()
    with conn.cursor() as cur:
        while len(counts) <= _TWICE and time.monotonic() < deadline:
            cur.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")  # a transaction may be open
            cur.execute(_SCANS, (schema,))
            counts |= {int(count) for (count,) in cur.fetchall()}
            time.sleep(_POLL_S)
    return len(counts) > _TWICE


def _layout(conn: Connection, schema: str) -> catalog.Layout | None:
    with conn.cursor() as cur:
        cur.execute(_LAYOUT, (schema,))
        return catalog.layout({name: "" for (name,) in cur.fetchall()}, schema)


def _lock(key: int, sessions: Sequence[Observed]) -> Lock:
    for holder in sessions:
        if key in holder.locks:
            return Lock(
                key=key,
                name=db.LOCK_NAMES[key],
                held=True,
                pid=holder.pid,
                role=holder.role,
                application=holder.application,
                address=holder.address,
                since=second(holder.since),
                state=holder.state,
                idle_since=second(holder.idle_since),
                last_statement=statements.read(holder.query).kind,
            )
    return Lock(key, db.LOCK_NAMES[key], held=False)


def _place(seen: Lock | Orthanc) -> tuple[str | None, ...]:
    return seen.role, seen.address, seen.application


def _shared(seen: Sequence[Group]) -> Iterator[str]:
    """Orthancs beside one that means to be alone."""
    found = [group.orthanc for group in seen]
    for alone in (orthanc for orthanc in found if orthanc.certain and orthanc.locked):
        for other in (orthanc for orthanc in found if not orthanc.locked):
            if not other.certain and _place(alone) != _place(other):
                continue
            doubt = "; or both are one, which has connected again" if _place(alone) == _place(other) else ""
            yield (
                f"{other.named} works without a lock on a database that {alone.named} has locked for itself: stop one "
                f'of them, or set "Lock" to false for both if their plugin allows several writers{doubt}'
            )


def _errors(locks: Sequence[Lock]) -> Iterator[str]:
    """What an Orthanc would log that starts now, by its own words."""
    *start, setup = locks
    if holders := _holders(start):
        yield (
            f'"The PostgreSQL database is locked by another instance of Orthanc": {holders}; stop that Orthanc; if its '
            "machine is gone, and the server has not noticed: pgorthanc check-lock --terminate PID, for each of them"
        )
    if holders := _holders([setup]):
        yield (
            f'"Cannot acquire a transient advisory lock": {holders}, because it makes or upgrades tables; an Orthanc '
            "that starts meanwhile gives up after 5 s; let it finish: pgorthanc wait --unlocked"
        )


def _holders(locks: Sequence[Lock]) -> str:
    held = [
        f"pid {lock.pid} ({lock.application or 'no name'}) holds lock {lock.key}"
        for lock in locks
        if lock.held
    ]
    return " and ".join(held)


def notes(seen: Sequence[Group]) -> Iterator[str]:
    """What else to know of the Orthancs that are seen."""
    locked = [group for group in seen if group.orthanc.locked]
    for group in locked:
        if group.starts >= _SEVERAL_STARTS:
            yield (
                f"{group.orthanc.named} opens connections as it needs them (UseDynamicConnectionPool): it loses its "
                f"lock as soon as it closes the connection of pid {group.orthanc.pid}, idle for 60 s or 1 h old"
            )
    for orthanc in (group.orthanc for group in seen if group.orthanc.certain and not locked):
        yield (
            f'{orthanc.named} holds no lock: its "Lock" is false, as in the official container image, or it lost the '
            "lock with its connection"
        )
    nameless = [str(group.orthanc.pid) for group in seen if not group.orthanc.application]
    if nameless:
        yield (
            f"no application name: pid {', '.join(nameless)}; name each Orthanc by ApplicationName (plugin 10.0 or "
            "later) or application_name in ConnectionUri"
        )


def unseen(conn: Connection, sessions: Sequence[Observed]) -> Iterator[str]:
    """Say what the role may not see."""
    hidden = sum(session.query is None for session in sessions)
    with conn.cursor() as cur:
        cur.execute("SELECT quote_ident(current_user), pg_is_in_recovery()")
        [(role, standby)] = cur.fetchall()
    if hidden:
        yield (
            f"{hidden} of {len(sessions)} other sessions show no statements and addresses to role {role}, so that an "
            f"Orthanc without a lock may be missed: GRANT pg_read_all_stats TO {role}; or switch track_activities on"
        )
    if standby:
        yield "this server is a standby: Orthanc's locks are on the primary, ask there"
