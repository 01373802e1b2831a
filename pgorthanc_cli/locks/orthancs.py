"""Orthancs among the sessions of a database, whether they hold a lock or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from pgorthanc_cli import db
from pgorthanc_cli.locks import releases, statements
from pgorthanc_cli.locks.sessions import Observed
from pgorthanc_cli.schema import catalog

# When it starts, an Orthanc opens its connections one right after the other.
_START_GAP = timedelta(seconds=2)
# More starts, or starts of very different size, are one pool that opens and closes connections on demand.
_MOST_STARTS = 3
# The connection of the storage area ends its set-up outside of a transaction, those of the index do not: observed with
# the plugins 4.0 and 5.0 only.
_STORAGE_SETUP_UP_TO = 1
_LOCKS = (db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)


@dataclass(frozen=True)
class Orthanc:
    """An Orthanc that uses the database, as far as its sessions tell.

    Attributes:
        pid: Server process of the session with its lock, else of its oldest session.
        address: Client address; None: the local socket, or hidden.
        role: Its role.
        application: Its application_name; empty unless its configuration sets one.
        since: When the first of its sessions connected.
        sessions: How many it has.
        locked: Whether it holds lock 42 or 43.
        certain: False if another program might look the same.
        plugin: The releases of the plugin that fit, such as `6.0 to 9.0`.
        reasons: Why these releases.
        evidence: Why it is an Orthanc.
        locks: The advisory locks that it holds: 42, 43, 44.
    """

    pid: int
    address: str | None
    role: str | None
    application: str | None
    since: datetime | None
    sessions: int
    locked: bool
    certain: bool
    plugin: str
    reasons: tuple[str, ...]
    evidence: tuple[str, ...]
    locks: tuple[int, ...] = ()

    @property
    def named(self) -> str:
        """The name in messages."""
        address = self.address or ("the local socket" if self.since else "an address that is hidden")
        return f"the Orthanc at {address} (pid {self.pid})"


class Group(NamedTuple):
    """The sessions taken for one Orthanc; `starts` counts how often some of them connected together."""

    orthanc: Orthanc
    members: tuple[Observed, ...]
    starts: int

    def uses(self, lock: int) -> bool:
        """Return whether its last statements used what a lock protects."""
        kind = {db.LOCK_INDEX: "index", db.LOCK_STORAGE: "storage area"}[lock]
        return any(statements.read(member.query).kind == kind for member in self.members)


def group_sessions(
    sessions: Sequence[Observed],
    layout: catalog.Layout | None,
    *,
    housekeeping: bool = False,
    connections: int | None = None,
    storage: bool = True,
) -> list[Group]:
    """Return the Orthancs among the sessions.

    Sessions of one role, address and name are one Orthanc, unless they started apart. Orthancs
    that started together are distinguished by what one alone cannot have, see `_split_start`.

    Args:
        sessions: The other sessions on the database.
        layout: That of the index.
        housekeeping: Whether an Orthanc without other evidence is the one that does the housekeeping.
        connections: IndexConnectionsCount of Orthanc's configuration, if it is known.
        storage: Whether an Orthanc may have one more connection, for the storage area.
    """

    def client(session: Observed) -> tuple[str, str, str]:
        return session.role or "", session.address or "", session.application or ""

    groups = []
    foreign = sorted((session for session in sessions if not session.is_ours), key=client)
    for _, same_client in groupby(foreign, client):
        members = _sessions_of_orthanc(list(same_client))
        starts = _starts(members)
        for start in starts if _are_several(starts) else [members]:
            for part in _split_start(start, layout, connections, storage=storage):
                if part:
                    orthanc = _orthanc(part, layout, housekeeping)
                    groups.append(Group(orthanc, tuple(part), len(_starts(part))))
    return sorted(
        groups, key=lambda group: (group.orthanc.since is None, group.orthanc.since, group.orthanc.pid)
    )


def _evidence(session: Observed) -> tuple[str, ...]:
    """Return why a session is Orthanc's; empty if nothing proves it."""
    evidence = [f"holds lock {key} ({db.LOCK_NAMES[key]})" for key in session.locks if key in _LOCKS]
    if "orthanc" in (session.application or "").lower():
        evidence.append(f"is named {session.application}")
    if session.temporary:
        evidence.append("has the temporary tables of the plugin")
    statement_evidence = statements.read(session.query).evidence
    if statement_evidence and not session.is_tool:
        evidence.append(statement_evidence)
    return tuple(evidence)


def _sessions_of_orthanc(same_client: Sequence[Observed]) -> list[Observed]:
    """Return the sessions of one client that an Orthanc may have; empty if nothing suggests one."""
    fitting = [s for s in same_client if _evidence(s) or statements.read(s.query).fits]
    if any(map(_evidence, fitting)):
        return fitting
    # The text is not hidden, and the session did more than connect.
    ran_statements = any(session.query for session in fitting)
    return fitting if ran_statements and not same_client[0].application else []


def _by_age(sessions: Sequence[Observed]) -> list[Observed]:
    return sorted(sessions, key=lambda s: (s.since is not None, s.since, s.pid))


def _starts(sessions: Sequence[Observed]) -> list[list[Observed]]:
    """Return the sessions in groups that connected one right after the other."""
    starts: list[list[Observed]] = []
    for session in _by_age(sessions):
        last = starts[-1][-1].since if starts else None
        follows = session.since is None or (last is not None and session.since - last <= _START_GAP)
        if starts and follows:
            starts[-1].append(session)
        else:
            starts.append([session])
    return starts


def _split_start(
    members: Sequence[Observed],
    layout: catalog.Layout | None,
    connections: int | None,
    *,
    storage: bool,
) -> list[list[Observed]]:
    """Return the sessions of each Orthanc among some that connected within seconds.

    An Orthanc connects first for the storage area, takes lock 43 and sets up its table; then for
    the index, takes lock 42 and sets up its tables; then come the other connections of its pool.
    So no session of an Orthanc with locks is older than those that hold them, and no Orthanc has
    two connections for the storage area, or more than its configuration says.
    """
    ordered = _by_age(members)
    locked = [number for number, session in enumerate(ordered) if set(_LOCKS) & set(session.locks)]
    # A pool that opens and closes connections has no order.
    if len(_starts(members)) > 1:
        return [list(members)]
    if not locked or ordered[0].since is None:
        size = len(ordered) if connections is None or locked else connections + storage
        size = max(size, 1)
        return [ordered[first : first + size] for first in range(0, len(ordered), size)]
    first, last = locked[0], locked[-1]
    has_storage = any(db.LOCK_STORAGE in session.locks for session in ordered)
    ends = [len(ordered)]
    if has_storage and layout and layout.revision <= _STORAGE_SETUP_UP_TO:
        # A session that has only set up the storage area is the first one of the next Orthanc.
        kinds = [statements.read(session.query).kind for session in ordered]
        later = range(last + 1, len(ordered))
        ends += [number for number in later if kinds[number] == "prepared statement released"]
    if connections is not None:
        ends.append(max(first + connections + has_storage, last + 1))
    end = min(ends)
    return [part for part in (ordered[:first], ordered[first:end], ordered[end:]) if part]


def _are_several(starts: Sequence[Sequence[Observed]]) -> bool:
    """Return whether these are several Orthancs: few starts of about the same size."""
    sizes = [len(start) for start in starts]
    return 1 < len(sizes) <= _MOST_STARTS and max(sizes) <= 2 * min(sizes)


def _orthanc(members: Sequence[Observed], layout: catalog.Layout | None, housekeeping: bool) -> Orthanc:
    last_statements = [statements.read(member.query) for member in members]
    evidence = tuple(dict.fromkeys(proof for member in members for proof in _evidence(member)))
    certain = bool(evidence)
    does_housekeeping = housekeeping and not evidence
    if does_housekeeping:
        certain = True
        evidence = ("is the only one here that can do the housekeeping of the index, which goes on",)
    if not certain:
        kinds = ", ".join(dict.fromkeys(statement.kind for statement in last_statements))
        evidence = (
            f"has no name, and its last statement ({kinds}) fits an Orthanc, but other programs, too",
        )
    holder = next((m for m in members if set(_LOCKS) & set(m.locks)), members[0])
    plugin, reasons = releases.fitting(last_statements, layout, housekeeping=does_housekeeping)
    return Orthanc(
        pid=holder.pid,
        address=holder.address,
        role=holder.role,
        application=holder.application,
        since=without_fraction(members[0].since),
        sessions=len(members),
        locked=any({db.LOCK_INDEX, db.LOCK_STORAGE} & set(member.locks) for member in members),
        certain=certain,
        plugin=plugin,
        reasons=reasons,
        evidence=evidence,
        locks=tuple(key for key in _LOCKS if any(key in member.locks for member in members)),
    )


def without_fraction(time: datetime | None) -> datetime | None:
    """Return a time without fractions of a second."""
    return time and time.replace(microsecond=0)
