"""Orthancs among the sessions of a database, whether they hold a lock or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from pgorthanc_cli import db
from pgorthanc_cli.locks import generation, statements
from pgorthanc_cli.locks.sessions import Observed
from pgorthanc_cli.schema import catalog

# An Orthanc opens its connections one after the other when it starts.
_START = timedelta(seconds=2)
# More starts than that, or of very different size: one pool that closes and opens connections as it needs them.
_MOST_STARTS = 3
# The one connection of the storage area ends its set-up outside of a transaction; those of the index do not. Seen with
# the plugins 4.0 and 5.0.
_SEEN_UP_TO = 1
_LOCKS = (db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP)


@dataclass(frozen=True)
class Orthanc:
    """An Orthanc that works on the database, as far as its sessions tell.

    Attributes:
        pid: Process of the server that serves the session with its lock, else its oldest one.
        address: Where it comes from; None: the local socket, or hidden.
        role: The role it has logged in with.
        application: Its application_name; empty unless its configuration gives one.
        since: When the first of its sessions connected.
        sessions: How many it has.
        locked: It holds lock 42 or 43.
        certain: False: it looks like an Orthanc, but so might another program.
        plugin: The releases of the plugin that fit, such as `6.0 to 9.0`.
        reasons: Why these releases.
        evidence: Why it is an Orthanc.
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

    @property
    def named(self) -> str:
        """As messages name it."""
        place = self.address or ("the local socket" if self.since else "an address that is hidden")
        return f"the Orthanc at {place} (pid {self.pid})"

    def __str__(self) -> str:
        """A line for people."""
        since = f" since {self.since}" if self.since else ""
        name = self.application or "without a name"
        doubt = "" if self.certain else ", perhaps"
        return (
            f"{self.named}{doubt}, application {name}, role {self.role}, {self.sessions} sessions{since}, "
            f"{'locked' if self.locked else 'no lock'}; it {', '.join(self.evidence)}; "
            f"plugin {self.plugin}: {'; '.join(self.reasons) or 'nothing tells'}"
        )


@dataclass(frozen=True)
class Group:
    """The sessions that are taken for one Orthanc; `starts` is how often some of them connected together."""

    orthanc: Orthanc
    members: tuple[Observed, ...]
    starts: int

    def uses(self, lock: int) -> bool:
        """Whether its statements show that it works with what a lock protects."""
        kind = {db.LOCK_INDEX: "index", db.LOCK_STORAGE: "storage area"}[lock]
        return any(statements.read(member.query).kind == kind for member in self.members)


def groups(
    sessions: Sequence[Observed],
    layout: catalog.Layout | None,
    *,
    housekeeping: bool = False,
    connections: int | None = None,
) -> list[Group]:
    """Return the Orthancs among the sessions. Those of one role, address and name are one, unless they started apart.

    Several that started together are told apart by what one Orthanc alone cannot have, see `_apart`.

    Args:
        sessions: The other sessions on the database.
        layout: That of the index.
        housekeeping: An Orthanc without other proof is the one that does the housekeeping.
        connections: IndexConnectionsCount of Orthanc's configuration, if it is known.
    """
    found = []
    for alike in _alike(session for session in sessions if not session.is_ours):
        members = _members(alike)
        starts = _starts(members)
        parts = starts if _are_several(starts) else [members]
        parts = [one for part in parts for one in _apart(part, layout, connections)]
        found += [
            Group(_orthanc(part, layout, housekeeping), tuple(part), len(_starts(part)))
            for part in parts
            if part
        ]
    return sorted(
        found, key=lambda group: (group.orthanc.since is None, group.orthanc.since, group.orthanc.pid)
    )


def _alike(sessions: Iterable[Observed]) -> Iterator[list[Observed]]:
    def key(session: Observed) -> tuple[str, str, str]:
        return session.role or "", session.address or "", session.application or ""

    for _, alike in groupby(sorted(sessions, key=key), key):
        yield list(alike)


def _evidence(session: Observed) -> tuple[str, ...]:
    """Why a session is Orthanc's; empty if nothing proves it."""
    held = [f"holds lock {lock} ({db.LOCK_NAMES[lock]})" for lock in session.locks if lock in _LOCKS]
    named = [f"is named {session.application}"] if "orthanc" in (session.application or "").lower() else []
    temporary = ["has the temporary tables of the plugin"] if session.temporary else []
    said = statements.read(session.query).evidence
    return (*held, *named, *temporary, *([said] if said and not session.is_tool else []))


def _members(alike: Sequence[Observed]) -> list[Observed]:
    """The sessions of one role, address and name that an Orthanc may have; empty if nothing speaks for one."""
    fitting = [s for s in alike if _evidence(s) or statements.read(s.query).fits]
    if any(map(_evidence, fitting)):
        return fitting
    worked = any(session.query for session in fitting)  # not hidden, and more than connected
    return fitting if worked and not alike[0].application else []


def _starts(sessions: Sequence[Observed]) -> list[list[Observed]]:
    """The sessions that connected one right after the other."""
    starts: list[list[Observed]] = []
    for session in sorted(sessions, key=lambda s: (s.since is not None, s.since, s.pid)):
        last = starts[-1][-1].since if starts else None
        if starts and (session.since is None or (last is not None and session.since - last <= _START)):
            starts[-1].append(session)
        else:
            starts.append([session])
    return starts


def _apart(
    members: Sequence[Observed], layout: catalog.Layout | None, connections: int | None
) -> list[list[Observed]]:
    """Return the sessions of each Orthanc among some that connected within seconds.

    An Orthanc connects first for the storage area, takes lock 43 and sets up its table; then for the index, takes lock
    42 and sets up its tables; then come the other connections of its pool. So none of one that has locks is older than
    those that hold them, and none has two connections for the storage area, or more than its configuration says.
    """
    ordered = sorted(members, key=lambda s: (s.since is not None, s.since, s.pid))
    locked = [number for number, session in enumerate(ordered) if set(_LOCKS) & set(session.locks)]
    if len(_starts(members)) > 1:  # a pool that closes and opens connections has no order
        return [list(members)]
    if not locked or ordered[0].since is None:
        most = None if connections is None or locked else connections + 1
        return _pools(ordered, most)
    first, last = locked[0], locked[-1]
    storage = any(db.LOCK_STORAGE in session.locks for session in ordered)
    ends = [len(ordered)]
    if storage and layout and layout.revision <= _SEEN_UP_TO:
        ends += [number for number in range(last + 1, len(ordered)) if _sets_up_storage(ordered[number])]
    if connections is not None:
        ends.append(max(first + connections + storage, last + 1))
    end = min(ends)
    return [part for part in (ordered[:first], ordered[first:end], ordered[end:]) if part]


def _pools(ordered: list[Observed], most: int | None) -> list[list[Observed]]:
    """Cut sessions into pools that are no larger than the configuration allows."""
    size = most or max(len(ordered), 1)
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def _sets_up_storage(session: Observed) -> bool:
    """Whether a session has done nothing yet but the set-up of the storage area."""
    return statements.read(session.query).kind == "prepared statement released"


def _are_several(starts: Sequence[Sequence[Observed]]) -> bool:
    """Whether these are several Orthancs: few starts of about the same size."""
    sizes = [len(start) for start in starts]
    return 1 < len(sizes) <= _MOST_STARTS and max(sizes) <= 2 * min(sizes)


def _orthanc(members: Sequence[Observed], layout: catalog.Layout | None, housekeeping: bool) -> Orthanc:
    seen = [statements.read(member.query) for member in members]
    kinds = ", ".join(dict.fromkeys(statement.kind for statement in seen))
    proofs = tuple(dict.fromkeys(proof for member in members for proof in _evidence(member)))
    keeps_house = housekeeping and not proofs
    if keeps_house:
        proofs = ("is the only one here that can do the housekeeping of the index, which goes on",)
    guess = f"has no name, and did last what an Orthanc does, but not it alone: {kinds}"
    first = min(members, key=lambda member: (not set(_LOCKS) & set(member.locks), members.index(member)))
    fitting = generation.judge(seen, layout, housekeeping=keeps_house)
    return Orthanc(
        pid=first.pid,
        address=first.address,
        role=first.role,
        application=first.application,
        since=second(members[0].since),
        sessions=len(members),
        locked=any({db.LOCK_INDEX, db.LOCK_STORAGE} & set(member.locks) for member in members),
        certain=bool(proofs),
        plugin=fitting.releases,
        reasons=fitting.reasons,
        evidence=proofs or (guess,),
    )


def second(moment: datetime | None) -> datetime | None:
    """Without fractions, for people."""
    return moment and moment.replace(microsecond=0)
