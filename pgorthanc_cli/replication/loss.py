"""What an old primary has committed that its standby never got, read from its WAL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgorthanc_cli import db, programs
from pgorthanc_cli.datafolder import why_it_failed
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.replication import walsender
from pgorthanc_cli.replication.cluster import Cluster
from pgorthanc_cli.replication.source import Source
from pgorthanc_cli.replication.walsender import parse_lsn, show_lsn

_END = "error in WAL record at"
_COMMIT = re.compile(r"desc: COMMIT\b")
_PLACE = re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b")


@dataclass(frozen=True)
class Loss:
    """WAL beyond a place: bytes, and how many transactions were committed in it."""

    bytes: int
    commits: int


def after(cluster: Cluster, timeline: int, lsn: int) -> Loss:
    """What a stopped server has written after a place in its log, whether it was stopped or killed.

    pg_waldump reads to the last record that is whole, and its complaint then tells where that is.

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
    places = [parse_lsn(text) - lsn for text in _PLACE.findall(done.stderr)]
    if _END not in done.stderr or not places:
        raise PgOrthancError(
            f"cannot tell what {cluster.path} has committed since {show_lsn(lsn)}: {why_it_failed(done.stderr)}",
            "keep the folder, and make a new standby in another one: pgorthanc replication standby",
        )
    return Loss(max(0, *places), len(_COMMIT.findall(done.stdout)))


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
