"""Which releases of the plugin fit the sessions of an Orthanc, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pgorthanc_cli.locks import statements
from pgorthanc_cli.locks.statements import Statement
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.features import first_revision_of_plugin

# Nearer to 50 connections, the default since 7.0, than to 1, the default before.
_LARGE_POOL = 20


class _Bound(NamedTuple):
    """The revisions that fit, both ends included, and the reason."""

    reason: str
    first: int = 0
    last: int = 1000


def fitting(
    observed: Sequence[Statement], layout: catalog.Layout | None, *, housekeeping: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Return the releases of the plugin that fit, such as `7.2 to 9.0`, and the reasons.

    Args:
        observed: The last statements of the sessions of one Orthanc.
        layout: The layout of the index.
        housekeeping: Whether this Orthanc does the housekeeping of the index.
    """
    bounds = [*_of_index(layout), *_of_statements(observed)]
    if housekeeping:
        reason = "it does housekeeping every second, as plugins do since 7.0"
        bounds.append(_Bound(reason, first_revision_of_plugin("housekeeping")))
    first = max((bound.first for bound in bounds), default=0)
    last = min((bound.last for bound in bounds), default=catalog.revisions()[-1])
    reasons = [bound.reason for bound in bounds]
    # Configurable, so these speak for some releases, but rule none out.
    if any(statement.isolation == "SERIALIZABLE" for statement in observed):
        reasons.append("its transactions are SERIALIZABLE, the default before 7.0")
    if len(observed) >= _LARGE_POOL:
        reasons.append(f"it has {len(observed)} connections; 50 is the default since 7.0, 1 before")
    return _releases(first, last, layout), tuple(dict.fromkeys(reasons))


def _of_index(layout: catalog.Layout | None) -> Iterator[_Bound]:
    if layout is None:
        return
    made_for = f"the index is at revision {layout.name}, that of plugin {layout.plugins}"
    if layout.revision < first_revision_of_plugin("upgrades_older_revisions"):
        yield _Bound(f"{made_for}; from 6.0 on a plugin would have upgraded it", last=layout.revision)
        return
    yield _Bound(
        f"{made_for}; a newer one would have upgraded it, one before 6.0 would have refused it",
        first=first_revision_of_plugin("upgrades_older_revisions"),
        last=layout.revision,
    )


def _of_statements(observed: Iterable[Statement]) -> Iterator[_Bound]:
    newest = catalog.revisions()[-1]
    for statement in observed:
        if statement.sets_schema:
            yield _Bound(
                "it sets search_path, as plugins do since 10.0",
                first=first_revision_of_plugin("sets_search_path"),
            )
        if statement.isolation == "READ COMMITTED":
            yield _Bound(
                "its transactions are READ COMMITTED, which came with 6.0",
                first=first_revision_of_plugin("upgrades_older_revisions"),
            )
        for name in sorted(statement.names):
            first, last = statements.history()[name]
            if first > 1:
                yield _Bound(f"it uses {name}, there since plugin {_plugin_releases(first)[0]}", first=first)
            if last < newest:
                yield _Bound(f"it uses {name}, there until plugin {_plugin_releases(last)[-1]}", last=last)


def _releases(first: int, last: int, layout: catalog.Layout | None) -> str:
    newest = catalog.revisions()[-1]
    if first > last:
        return "unknown: the reasons contradict each other"
    if first < first_revision_of_plugin("upgrades_older_revisions"):
        if last >= newest:
            return "unknown"
        if layout and layout.revision == last:
            releases = re.findall(r"\d+\.\d+", layout.made_by)
        else:
            releases = _plugin_releases(last)
        return f"{releases[-1]} or earlier"
    oldest = _plugin_releases(first)[0]
    if last >= newest:
        return f"{oldest} or later"
    latest = _plugin_releases(last)[-1]
    return oldest if oldest == latest else f"{oldest} to {latest}"


def _plugin_releases(revision: int) -> list[str]:
    """Return the releases that use a revision, the oldest first."""
    return re.findall(r"\d+\.\d+", catalog.plugins(revision))
