"""What the last statement of a session reveals; it may hold patient data and never leaves this module.

Observed with the plugin of Debian: statements are prepared under a UUID and deallocated by that
name, transactions begin with their mode and end with COMMIT or ABORT; a connection of the pool that
was never used has no statement.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from pgorthanc_cli.schema import catalog

_RELEASE = re.compile(r'DEALLOCATE "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"', re.IGNORECASE)
_MODE = re.compile(r"ISOLATION LEVEL (SERIALIZABLE|READ COMMITTED)", re.IGNORECASE)
_SEARCH_PATH = re.compile(r"SET search_path\b", re.IGNORECASE)
_ADVISORY = re.compile(r"SELECT pg_(?:try_)?advisory_(?:un)?lock", re.IGNORECASE)
_SETUP = re.compile(r"(?:CREATE|ALTER|DROP) ", re.IGNORECASE)
_TRANSACTION = re.compile(
    r"(?:BEGIN|START TRANSACTION|SET TRANSACTION|COMMIT|END|ABORT|ROLLBACK)\b", re.IGNORECASE
)
_LARGE_OBJECTS = re.compile(r"\bstoragearea\b|\blo_(?:open|close|creat|create|unlink|lseek|lseek64)\b")


class Statement(NamedTuple):
    """Properties of a statement.

    Attributes:
        kind: Its kind, to show: `COMMIT`, `index`, `storage area`, `hidden`, ...
        evidence: Why only Orthanc's plugin sends it; None: others may.
        fits: Whether the plugin sends such statements, too.
        isolation: The isolation level that it sets, in capitals.
        sets_schema: Whether it sets search_path.
        names: Tables and functions of the index in it.
    """

    kind: str
    evidence: str | None = None
    fits: bool = False
    isolation: str | None = None
    sets_schema: bool = False
    names: frozenset[str] = frozenset()


def read(query: str | None) -> Statement:
    """Return what a statement of pg_stat_activity reveals; None: the server does not show it."""
    if query is None:
        return Statement("hidden", fits=True)
    text = query.strip()
    names = frozenset(re.findall(r"\w+", text.lower())) & history().keys()
    mode = _MODE.search(text)
    if not text:
        return Statement("none yet", fits=True)
    if _RELEASE.match(text):
        return Statement("prepared statement released", "prepares its statements under UUIDs", fits=True)
    if _SEARCH_PATH.match(text):
        return Statement("SET search_path", fits=True, sets_schema=True)
    if mode or _TRANSACTION.match(text):
        fits = not text.upper().startswith("ROLLBACK")
        return Statement(
            text.split(None, 1)[0].upper().rstrip(";"), fits=fits, isolation=mode and mode[1].upper()
        )
    if _ADVISORY.match(text):
        return Statement("advisory lock", fits=True)
    if _SETUP.match(text):
        return Statement("set-up", fits=bool(names), names=names)
    if _LARGE_OBJECTS.search(text.lower()):
        return Statement("storage area", _prepared("storagearea", text), fits=True)
    if names:
        return Statement("index", _prepared(min(names), text) or _called(names), fits=True, names=names)
    return Statement("other")


def _prepared(name: str, text: str) -> str | None:
    """Return evidence if values are passed as parameters: the plugin does that, people do not."""
    return f"works with {name} by prepared statements" if "$1" in text else None


def _called(names: frozenset[str]) -> str | None:
    called = sorted(names & _functions())
    return f"calls {called[0]}" if called else None


@cache
def _functions() -> frozenset[str]:
    """Return the functions of the newest revision."""
    entries = catalog.expected(catalog.newest(), with_storage=False)
    functions = (entry.removeprefix("function ") for entry in entries if entry.startswith("function "))
    return frozenset(function.partition("(")[0] for function in functions)


@cache
def history() -> dict[str, tuple[int, int]]:
    """Return the first and the last revision of each table and function of the index."""
    revisions: dict[str, tuple[int, int]] = {}
    for revision in catalog.revisions():
        for entry in catalog.expected(revision, with_storage=False):
            kind, _, rest = entry.partition(" ")
            if kind in ("table", "function"):
                name = rest.partition("(")[0]
                first, _ = revisions.get(name, (revision, revision))
                revisions[name] = (first, revision)
    return revisions
