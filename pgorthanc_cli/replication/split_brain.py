"""Two primaries of one database: where they parted, and which of them was written to last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import psycopg2

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.schema.status import status as index_status
from pgorthanc_cli.server.wal import format_lsn, parse_lsn

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Only superusers have it by default.
_MAY_READ = "SELECT has_function_privilege('pg_read_file(text)', 'EXECUTE')"

# The timelines of a server, each with the position at which it ended; None: it has not.
Ancestry = tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class Branch:
    """What one of several primaries has done by itself.

    Attributes:
        place: Host and port.
        newest: When the newest instance of its index was stored, in local time; None: no
            instance, or the login may not read the index.
        written_bytes: WAL since the servers parted; None if that is not known.
    """

    place: str
    newest: datetime | None
    written_bytes: int | None = None


@dataclass(frozen=True)
class Split:
    """Several primaries of one database.

    Attributes:
        branches: Each of them.
        timeline: The last timeline that they have in common; None if it is not known.
        lsn: The position in the WAL at which they parted; empty if it is not known.
    """

    branches: tuple[Branch, ...]
    timeline: int | None = None
    lsn: str = ""


def inspect(primaries: Sequence[tuple[db.Target, str, int, int]]) -> Split | None:
    """Return how primaries of one database differ.

    Args:
        primaries: The login, the place, the timeline and the position in the WAL of each.

    Returns:
        None if a connection is lost meanwhile: the status is shown without it.
    """
    ancestries, branches = [], []
    try:
        for target, place, timeline, _ in primaries:
            with db.session(target, autocommit=True, readonly=True, need_schema=False) as conn:
                ancestries.append(_ancestry(conn, timeline))
                branches.append(Branch(place, _newest(conn, target.schema)))
    except (PgOrthancError, psycopg2.Error):
        return None
    fork = _fork(ancestries)
    if fork is None:
        return Split(tuple(branches))
    timeline, parted = fork
    written = [max(lsn - parted, 0) for *_, lsn in primaries]
    return Split(
        tuple(Branch(b.place, b.newest, count) for b, count in zip(branches, written, strict=True)),
        timeline,
        format_lsn(parted),
    )


def _newest(conn: Connection, schema: str) -> datetime | None:
    try:
        return index_status(conn, schema).newest
    except PgOrthancError:  # no index, or no privilege
        return None


def _ancestry(conn: Connection, timeline: int) -> Ancestry | None:
    """Return the timelines of a server, the newest last; None if the login may not see them."""
    if timeline == 1:  # which has no history file
        return ((1, None),)
    if not db.value(conn, _MAY_READ):
        return None
    history = db.value(conn, "SELECT pg_read_file(%s)", f"pg_wal/{timeline:08X}.history")
    # A line for each timeline before: number, LSN, reason (PostgreSQL, "Timelines").
    lines = [line.split() for line in str(history).splitlines() if line[:1].isdigit()]
    return (*((int(number), parse_lsn(lsn)) for number, lsn, *_ in lines), (timeline, None))


def _fork(ancestries: Sequence[Ancestry | None]) -> tuple[int, int] | None:
    """Return the last common timeline of all, and the position at which the first one left it."""
    known = [ancestry for ancestry in ancestries if ancestry is not None]
    if len(known) < len(ancestries):
        return None
    fork = None
    for entries in zip(*known, strict=False):
        numbers = {number for number, _ in entries}
        ends = {end for _, end in entries if end is not None}
        if len(numbers) > 1 or not ends:  # the same number after a fork is not the same timeline
            break
        fork = numbers.pop(), min(ends)
        if len({end for _, end in entries}) > 1:
            break
    return fork
