"""Positions in the WAL, and what a stopped server has written after one of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import files
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import programs

if TYPE_CHECKING:
    from pathlib import Path

    from pgorthanc_cli.server.cluster import Cluster, Control

# PostgreSQL, "src/include/access/xlog_internal.h" and "xlogrecord.h": the header of a page within a segment, and the
# field with which a record begins, its length.
_PAGE_HEADER_BYTES, _LENGTH_BYTES = 24, 4
_READ_ERROR = "error in WAL record at"
_COMMIT = re.compile(r"desc: COMMIT\b")
_LSN = re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b")
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_BACKUP_START = re.compile(rf"START WAL LOCATION: ({_LSN.pattern}) \(file ({_SEGMENT.pattern})\)")
_NO_SEGMENT_SIZE = "WAL segment size must be"
_MISSING_SEGMENT = re.compile(rf'could not find file "({_SEGMENT.pattern})"')


@dataclass(frozen=True)
class Loss:
    """WAL after a position: bytes, and the number of transactions committed in it."""

    bytes: int
    commits: int


def written_after(cluster: Cluster, timeline: int, lsn: int) -> Loss:
    """Return what a server that was stopped or killed has written after a position.

    Raises:
        PgOrthancError: The WAL after that position was removed, or cannot be read.
    """
    arguments = ["-p", "./pg_wal", "-t", str(timeline), "-s", format_lsn(lsn), "--rmgr=Transaction"]
    dump = programs.run(cluster.programs, "pg_waldump", arguments, cluster.path, cluster.account)
    if _NO_SEGMENT_SIZE in dump.stderr:
        # It reads the size from any file, unless one is named. PostgreSQL fills files with
        # zeros before it uses them.
        arguments += _first_and_last_segment(cluster, timeline, lsn)
        dump = programs.run(cluster.programs, "pg_waldump", arguments, cluster.path, cluster.account)
    if f"could not find a valid record after {format_lsn(lsn)}" in dump.stderr:
        return Loss(0, 0)
    commits = len(_COMMIT.findall(dump.stdout))
    # pg_waldump reads to the last whole record, and its error message then names the
    # position. If that record is the last one of a segment, and the server was killed
    # before it created the next segment, the message names the missing file instead.
    if missing := _MISSING_SEGMENT.search(dump.stderr):
        end = _end_of_segments(cluster, missing[1])
        if end is not None and end >= lsn:
            return Loss(end - lsn, commits)
    distances = [parse_lsn(text) - lsn for text in _LSN.findall(dump.stderr)]
    if _READ_ERROR not in dump.stderr or not distances:
        raise PgOrthancError(
            f"cannot tell what {cluster.path} has committed since {format_lsn(lsn)}: "
            f"{programs.last_error_line(dump.stderr)}",
            "keep the folder, and make a new standby in another one: pgorthanc replication standby",
        )
    return Loss(max(0, *distances), commits)


def first_request(cluster: Cluster, control: Control, fork: int | None) -> int:
    """Return the LSN from which a stopped server will ask for WAL once it is a standby.

    It first reads what it has itself, then asks from the beginning of a segment on
    (PostgreSQL, "src/backend/replication/walreceiverfuncs.c").

    Args:
        cluster: The server.
        control: Its control file.
        fork: Where the server that it will follow has left its timeline; None if it has not.

    Raises:
        PgOrthancError: Its WAL cannot be read.
    """
    label = cluster.path / "backup_label"
    start = _BACKUP_START.search(label.read_text(errors="replace")) if label.exists() else None
    # It begins there, whatever its control file says. pg_rewind and a base backup leave such a file.
    if start and not any((cluster.path / "pg_wal").glob(f"????????{start[2][8:]}")):
        end = parse_lsn(start[1])
    else:
        end = control.checkpoint + written_after(cluster, control.timeline, control.checkpoint).bytes
        if fork is not None:
            end = min(end, fork)  # it will not read what it has written beyond
    return end - end % control.segment_bytes


def cut_incomplete_record(cluster: Cluster, control: Control, lsn: int) -> None:
    """Overwrite the beginning of a record that the server, killed meanwhile, has not written to its end.

    A standby that reads such a record at the end of a segment asks the new primary for the next
    segment, on the new timeline, and never gets this one of that timeline: "PANIC: could not
    open file" (seen with PostgreSQL 15 and 18). Where no record begins, it asks for this one.

    Args:
        cluster: It is stopped.
        control: Its control file.
        lsn: The end of its last whole record.

    Raises:
        PgOrthancError: The segment cannot be written to.
    """
    offset = lsn % control.segment_bytes
    if not offset:
        return  # the record begins in the next segment
    if not offset % control.page_bytes:
        offset += _PAGE_HEADER_BYTES
    wal, name = cluster.path / "pg_wal", _segment_name(control.timeline, lsn, control.segment_bytes)
    try:
        folder = os.open(wal, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Whoever owns the data folder must not decide where root writes.
            with files.OwnerRights(cluster.account.uid, cluster.account.gid):
                descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            os.pwrite(descriptor, bytes(_LENGTH_BYTES), offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return  # nothing of the record was written
    except OSError as error:
        raise PgOrthancError(
            f"{wal / name} cannot be written to: {error.strerror}",
            "correct its permissions; then run the same command again",
        ) from None


def _segment_name(timeline: int, lsn: int, segment_bytes: int) -> str:
    """Return the file of an LSN: timeline, high and low part of the segment's number, 8 hexadecimal digits each."""
    return f"{timeline:08X}{lsn >> 32:08X}{(lsn & 0xFFFFFFFF) // segment_bytes:08X}"


def _end_of_segments(cluster: Cluster, missing: str) -> int | None:
    """Return the end of the WAL if the missing segment follows the newest, else None.

    The name of a segment is timeline, high and low part of its number, 8 hexadecimal
    digits each (PostgreSQL, "WAL Internals").
    """
    # Without the timeline: the numbers go on when it changes.
    newest = max(_segments(cluster), key=lambda path: path.name[8:], default=None)
    if newest is None or missing[8:] <= newest.name[8:]:
        return None
    high, low = int(missing[8:16], 16), int(missing[16:], 16)
    return (high << 32) + low * newest.stat().st_size


def _first_and_last_segment(cluster: Cluster, timeline: int, lsn: int) -> list[str]:
    """Return the names of the segment of an LSN and of the newest one; empty if the first is missing."""
    segments = _segments(cluster)
    names = sorted(path.name for path in segments if path.name.startswith(f"{timeline:08X}"))
    first = _segment_name(timeline, lsn, segments[0].stat().st_size)
    return [first, names[-1]] if first in names else []


def _segments(cluster: Cluster) -> list[Path]:
    return [path for path in (cluster.path / "pg_wal").iterdir() if _SEGMENT.fullmatch(path.name)]


def parse_lsn(text: str) -> int:
    """Return an LSN such as `16/B374D848` as a number of bytes."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(lsn: int) -> str:
    """Return a number of bytes as PostgreSQL writes an LSN."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
