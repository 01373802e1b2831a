"""What an old primary has committed that its standby never got, read from its WAL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.replication import walsender
from pgorthanc_cli.replication.cluster import Cluster
from pgorthanc_cli.replication.source import Source
from pgorthanc_cli.replication.walsender import parse_lsn, show_lsn
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.datafolder import why_it_failed

_END = "error in WAL record at"
_COMMIT = re.compile(r"desc: COMMIT\b")
_PLACE = re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b")
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_MISSING = re.compile(rf'could not find file "({_SEGMENT.pattern})"')


@dataclass(frozen=True)
class Loss:
    """WAL beyond a place: bytes, and how many transactions were committed in it."""

    bytes: int
    commits: int


def after(cluster: Cluster, timeline: int, lsn: int) -> Loss:
    """Return what a stopped server has written after a position in its WAL, whether it was stopped or killed.

    pg_waldump reads to the last record that is whole, and its error message then names the position. If that
    record is the last one of a segment, and the server was killed before it created the next segment, the message
    names the missing file instead.

    Raises:
        PgOrthancError: The WAL after that place is not there any more, or cannot be read.
    """
    words = ["-t", str(timeline), "-s", show_lsn(lsn), "--rmgr=Transaction"]
    done = programs.run(
        cluster.programs,
        "pg_waldump",
        lambda path: ["-p", f"{path}/pg_wal", *words],
        cluster.path,
        cluster.account,
    )
    if f"could not find a valid record after {show_lsn(lsn)}" in done.stderr:
        return Loss(0, 0)
    if missing := _MISSING.search(done.stderr):
        end = _end_of_segments(cluster, missing[1])
        if end is not None and end >= lsn:
            return Loss(end - lsn, len(_COMMIT.findall(done.stdout)))
    places = [parse_lsn(text) - lsn for text in _PLACE.findall(done.stderr)]
    if _END not in done.stderr or not places:
        raise PgOrthancError(
            f"cannot tell what {cluster.path} has committed since {show_lsn(lsn)}: {why_it_failed(done.stderr)}",
            "keep the folder, and make a new standby in another one: pgorthanc replication standby",
        )
    return Loss(max(0, *places), len(_COMMIT.findall(done.stdout)))


def _end_of_segments(cluster: Cluster, missing: str) -> int | None:
    """Return where the WAL ends, if the missing segment follows the newest one; None if it was removed.

    A segment's name is timeline, high and low part of its number, 8 hexadecimal digits each (PostgreSQL,
    "WAL Internals").
    """
    segments = [path for path in (cluster.path / "pg_wal").iterdir() if _SEGMENT.fullmatch(path.name)]
    newest = max(segments, key=lambda path: path.name[8:], default=None)
    if newest is None or missing[8:] <= newest.name[8:]:
        return None
    high, low = int(missing[8:16], 16), int(missing[16:], 16)
    return (high << 32) + low * newest.stat().st_size


def fork(found: Source, timeline: int) -> int | None:
    """Where the log of a promoted server left an older timeline; None if it never was on it.

    The history file has a line for each timeline before: number, place, reason (PostgreSQL, "Timelines").
    """
    with db.replication_session(found.target) as conn:
        for line in walsender.history(conn, found.identity.timeline).splitlines():
            number, place, *_ = [*line.split(), "", ""]
            if number == str(timeline):
                return parse_lsn(place)
    return None
