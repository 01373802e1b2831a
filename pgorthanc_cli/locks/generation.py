"""Which release of the plugin a session looks like, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pgorthanc_cli.locks import statements
from pgorthanc_cli.locks.statements import Statement
from pgorthanc_cli.schema import catalog

# Before plugin 6.0 (revision 2) a plugin refused any other revision than its own; since then it upgrades older ones
# and does not look at newer ones (SCHEMA.md 10). TransactionMode is as old (SCHEMA.md 11).
_UPGRADES_SINCE = 2
# It sets search_path after connecting (SCHEMA.md 9).
_SCHEMA_SINCE = 10
HOUSEKEEPING_SINCE = 3  # plugin 7.0 (SCHEMA.md 10)
_POOL = 20  # nearer to the 50 connections that are the default since 7.0 than to the one before


@dataclass(frozen=True)
class Generation:
    """The releases that fit, such as `7.2 to 9.0`, and the reasons."""

    releases: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Bound:
    """Revisions that fit, both included."""

    reason: str
    first: int = 0
    last: int = 1000


def judge(
    seen: Sequence[Statement], layout: catalog.Layout | None, *, housekeeping: bool = False
) -> Generation:
    """The releases that fit the statements of an Orthanc's sessions, the layout of the index and its housekeeping."""
    bounds = [*_of_index(layout), *_of_statements(seen)]
    if housekeeping:
        bounds.append(
            _Bound("it does housekeeping every second, as plugins do since 7.0", HOUSEKEEPING_SINCE)
        )
    first = max((bound.first for bound in bounds), default=0)
    last = min((bound.last for bound in bounds), default=catalog.revisions()[-1])
    reasons = tuple(dict.fromkeys([*(bound.reason for bound in bounds), *_hints(seen)]))
    return Generation(_releases(first, last, layout), reasons)


def _of_index(layout: catalog.Layout | None) -> Iterator[_Bound]:
    if layout is None:
        return
    made_for = f"the index is at revision {layout.name}, that of plugin {layout.plugins}"
    if layout.revision < _UPGRADES_SINCE:
        yield _Bound(f"{made_for}; from 6.0 on a plugin would have upgraded it", last=layout.revision)
        return
    yield _Bound(
        f"{made_for}; a newer one would have upgraded it, one before 6.0 would have refused it",
        first=_UPGRADES_SINCE,
        last=layout.revision,
    )


def _of_statements(seen: Iterable[Statement]) -> Iterator[_Bound]:
    newest = catalog.revisions()[-1]
    for statement in seen:
        if statement.sets_schema:
            yield _Bound("it sets search_path, as plugins do since 10.0", first=_SCHEMA_SINCE)
        if statement.isolation == "READ COMMITTED":
            yield _Bound("its transactions are READ COMMITTED, which came with 6.0", first=_UPGRADES_SINCE)
        for name in sorted(statement.names):
            first, last = statements.history()[name]
            if first > 1:
                yield _Bound(f"it uses {name}, there since plugin {_numbers(first)[0]}", first=first)
            if last < newest:
                yield _Bound(f"it uses {name}, there until plugin {_numbers(last)[-1]}", last=last)


def _hints(seen: Sequence[Statement]) -> Iterator[str]:
    """What speaks for some releases, but rules none out, because it can be configured."""
    if any(statement.isolation == "SERIALIZABLE" for statement in seen):
        yield "its transactions are SERIALIZABLE, the default before 7.0"
    if len(seen) >= _POOL:
        yield f"it has {len(seen)} connections; 50 is the default since 7.0, 1 before"


def _releases(first: int, last: int, layout: catalog.Layout | None) -> str:
    newest = catalog.revisions()[-1]
    if first > last:
        return "unknown: the reasons contradict each other"
    if first < _UPGRADES_SINCE:
        if last >= newest:
            return "unknown"
        known = (
            re.findall(r"\d+\.\d+", layout.made_by) if layout and layout.revision == last else _numbers(last)
        )
        return f"{known[-1]} or earlier"
    oldest = _numbers(first)[0]
    if last >= newest:
        return f"{oldest} or later"
    return oldest if oldest == _numbers(last)[-1] else f"{oldest} to {_numbers(last)[-1]}"


def _numbers(revision: int) -> list[str]:
    """The releases that a revision is described by, the oldest first."""
    return re.findall(r"\d+\.\d+", catalog.plugins(revision))
