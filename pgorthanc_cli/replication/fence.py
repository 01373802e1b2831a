"""The old primary of a standby that is to be promoted: proof that it is dead, and a mark that names its one successor.

A port that refuses connections proves nothing: a tunnel, a proxy or a firewall in front of a living primary looks the
same. Proof is its data folder: its processes have ended, and whoever starts it again gets a standby.
"""

from __future__ import annotations

import os
import shlex
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import cluster as clusters
from pgorthanc_cli.replication import loss, probe
from pgorthanc_cli.replication.cluster import Cluster, Control
from pgorthanc_cli.replication.mark import Claim, Mark, claimed, refusal

_END_WITHIN_S = 10.0
_ARRIVES_WITHIN_S = 10.0
_AT_REST_S = 1.0
_TORN_BYTES = (
    16 * 2**20
)  # a primary that was killed may have sent a part of a record; the whole one is not there


@dataclass(frozen=True)
class Fence:
    """How the old primary is kept from taking writes.

    Attributes:
        folder: Its data folder on this machine: it is stopped, and marked to start as a standby only.
        gone: The operator confirms that it is off and stays off, and that no other standby of it is promoted.
        accept_loss: Promote even if the folder shows commits that the standby never got.
    """

    folder: Path | None = None
    gone: bool = False
    accept_loss: bool = False


@dataclass(frozen=True)
class Before:
    """A standby before its promotion.

    Attributes:
        timeline: The one that it follows.
        received: Where its log ends.
        upstream: The connection string of its primary; empty if it follows none.
        slot: Its slot there.
        folder: Its data folder, on the machine that `machine` names.
        fenced: The content of the mark in its own folder, empty if there is none: it is a fenced old primary.
    """

    system_identifier: str
    timeline: int
    received: int
    upstream: str
    slot: str
    folder: str = ""
    machine: str = ""
    fenced: str = ""


def mark_for(before: Before, place: tuple[str, int]) -> Mark:
    """The mark that names a standby."""
    return Mark(
        server=f"{place[0]}:{place[1]}",
        machine=before.machine,
        folder=before.folder,
        slot=before.slot,
        system_identifier=before.system_identifier,
        timeline=before.timeline,
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def refuse_fenced(before: Before) -> None:
    """Make sure that the server to be promoted is not itself an old primary that was fenced for another one.

    Raises:
        PgOrthancError: It is.
    """
    if before.fenced:
        raise refusal(f"{before.folder}, the folder of this server,", before.folder, before.fenced)


# The folder


@contextmanager
def fenced(
    folder: Path,
    fence: Fence,
    before: Before,
    place: tuple[str, int],
    now: Callable[[], Before],
    left_s: Callable[[], float],
) -> Iterator[tuple[Claim, loss.Loss]]:
    """Stop the old primary for good; yields the claim, and what it has committed that the standby will not get.

    Args:
        folder: Its data folder.
        fence: What else the operator has said.
        before: The standby.
        place: Its host and port.
        now: The standby as it is in that moment.
        left_s: How many seconds are left for all of it.

    Raises:
        UsageError: The folder is that of another server, of a copy, or of a standby.
        PgOrthancError: It is fenced for another standby, it does not end, or there are such commits.
    """
    old = Cluster(folder)
    control = old.control()
    if control.system_identifier != before.system_identifier:
        raise UsageError(
            f"{old.path} is the folder of another server: its system identifier is {control.system_identifier}, "
            f"the standby's is {before.system_identifier}"
        )
    if str(old.path) == before.folder:
        raise UsageError(f"{old.path} is the folder of a standby: the one to promote", _NAME_OLD)
    with claimed(old, mark_for(before, place)) as claim:
        if control.is_standby and not (claim.again and old.is_fenced):
            raise UsageError(f"{old.path} is the folder of a standby ({control.state})", _NAME_OLD)
        _refuse_other_timeline(old, control, before)
        _refuse_copy(old, before)
        old.fence(left_s())
        _wait_until_dead(old)
        if not fence.gone:
            _refuse_older(old, now())
        lost = _wait_for_the_rest(old, now)
        if lost.commits and not fence.accept_loss:
            raise PgOrthancError(
                f"the old primary is stopped, and has {lost.commits} commits ({lost.bytes:,} bytes of WAL) that the "
                "standby never got",
                f"start it again if you can: remove {old.path / clusters.STANDBY_SIGNAL}, pg_ctl -D {old.path} start; "
                "to give these commits up: --accept-loss",
            )
        yield claim, lost


_NAME_OLD = "name the folder of the old primary"


def _refuse_other_timeline(old: Cluster, control: Control, before: Before) -> None:
    """An older timeline: a primary before the last promotion. A newer one: the standby missed a promotion."""
    history = old.path / "pg_wal" / f"{before.timeline:08X}.history"
    if control.timeline < before.timeline and not history.exists():
        raise UsageError(
            f"{old.path} is on timeline {control.timeline}, and the standby on {before.timeline}: it is not the "
            "primary that the standby follows, but one before it",
            "name the folder of the primary that was promoted last",
        )
    if control.timeline > before.timeline:
        raise UsageError(
            f"{old.path} is on timeline {control.timeline}, and the standby on {before.timeline}: the standby has "
            "not followed its promotion, and would lose all commits since",
            "start it, and let the standby follow it first; or copy the standby again: pgorthanc replication standby",
        )


def _refuse_copy(old: Cluster, before: Before) -> None:
    ports = {port for _, port in probe.places(before.upstream)} if before.upstream else set()
    if old.pid() is not None and ports and old.port() not in ports:
        raise UsageError(
            f"the server in {old.path} listens on port {old.port()}, and the standby follows port "
            f"{' or '.join(map(str, sorted(ports)))}: it is a copy of the old primary, or the standby reaches it "
            "through a forwarder",
            "name the folder of the old primary; behind a forwarder, stop it first: "
            f"pg_ctl -D {shlex.quote(str(old.path))} stop",
        )


def _wait_until_dead(old: Cluster) -> None:
    """Wait until none of its processes is left: one that outlives the postmaster can still commit.

    Raises:
        PgOrthancError: One stays, or the server runs where this process cannot see it.
    """
    if _socket_peer(old) == 0:
        raise PgOrthancError(
            f"the server in {old.path} runs in another container",
            "stop it there, then run the same command again",
        )
    deadline = time.monotonic() + _END_WITHIN_S
    while living := clusters.processes(old.path):
        if time.monotonic() > deadline:
            raise PgOrthancError(
                f"processes of the old primary in {old.path} are still alive: {', '.join(map(str, living))}",
                f"end them: kill -QUIT {' '.join(map(str, living))}; then run the same command again",
            )
        time.sleep(0.05)


def _socket_peer(old: Cluster) -> int | None:
    """The process that listens on the socket that the pid file names: 0 in another container, None for none."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, ValueError, IndexError), socket.socket(socket.AF_UNIX) as sock:
        port, folder = old.endpoint()
        sock.settimeout(5)
        sock.connect(f"{folder}/.s.PGSQL.{port}")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])
    return None


def _refuse_older(old: Cluster, standby: Before) -> None:
    """The log of the real old primary reaches at least as far as what it has sent.

    Raises:
        UsageError: The folder's does not: it is a backup, or a copy that was started once.
    """
    control = old.control()
    if control.timeline != standby.timeline:
        return  # killed before the first checkpoint after its promotion
    end = control.checkpoint + loss.after(old, control.timeline, control.checkpoint).bytes
    ahead = standby.received - end
    if ahead > (0 if control.state.startswith("shut down") else _TORN_BYTES):
        raise UsageError(
            f"the log of {old.path} ends {ahead:,} bytes before what the standby has received: it is not the old "
            "primary, but an older copy of it",
            "name the folder of the old primary; if that is lost, make sure that its server is off and stays off, "
            "then: --old-primary-is-down",
        )


def _wait_for_the_rest(old: Cluster, now: Callable[[], Before]) -> loss.Loss:
    """What is missing once the standby has all that is on its way."""
    deadline = time.monotonic() + _ARRIVES_WITHIN_S
    last, since = -1, time.monotonic()
    while True:
        standby = now()
        found = loss.after(old, standby.timeline, standby.received)
        if standby.received != last:
            last, since = standby.received, time.monotonic()
        rested = time.monotonic() - since > _AT_REST_S
        if not found.commits or rested or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


# Without a folder


def proof(places: list[tuple[str, int]], fence: Fence, before: Before, command: str) -> str:
    """How the old primary is known to be dead.

    Args:
        places: Host and port of each server that the standby may follow.
        fence: What the operator has said, and done.
        before: The standby.
        command: The command line that promotes it, to which options may be added.

    Raises:
        PgOrthancError: It is not known, or it lives.
    """
    found = {place: probe.probe(*place) for place in places}
    for place, state in found.items():
        if state == probe.ANSWERS:
            raise PgOrthancError(
                f"the old primary {_shown(place)} still answers: two primaries would take different writes",
                "stop it first, and every Orthanc that uses it; on its machine this stops it, and all it has committed "
                f"arrives before the promotion: {command} --fence FOLDER-OF-THE-OLD-PRIMARY",
            )
    _refuse_primary_here(fence, before)
    how = "fenced, " if fence.folder else "confirmed to be down, " if fence.gone else ""
    if not how:
        raise _unproven(found, command)
    said = [f"{_shown(place)}: {how}{_STATES[state]}" for place, state in found.items()]
    return "; ".join(said) or f"{how}the standby followed none"


_STATES = {probe.REFUSES: "its port is closed", probe.SILENT: "it is silent"}


def _unproven(found: dict[tuple[str, int], str], command: str) -> PgOrthancError:
    why = {
        probe.REFUSES: "its port is closed, but a tunnel, proxy or firewall before a living server refuses as well",
        probe.SILENT: "it is silent, but it may be alive behind a broken network",
    }
    said = "; ".join(f"{_shown(place)}: {why[state]}" for place, state in found.items())
    return PgOrthancError(
        f"nothing proves that the old primary is dead: {said or 'the standby names no server that it follows'}",
        f"where its data folder is, prove it (this stops it, and fences the folder): {command} "
        "--fence FOLDER-OF-THE-OLD-PRIMARY; or, once you have made sure that it is off and stays off, and that no "
        f"other standby of it is promoted: {command} --old-primary-is-down",
    )


def _refuse_primary_here(fence: Fence, before: Before) -> None:
    """Whatever the ports and the operator say: a primary of the same database that runs on this machine is alive."""
    fenced_folder = Path(os.path.realpath(fence.folder)) if fence.folder else None
    for folder in clusters.running():
        if folder == fenced_folder or clusters.is_standby_folder(folder):
            continue
        if clusters.system_identifier(folder) != before.system_identifier:
            continue
        try:
            control = Cluster(folder).control()
        except PgOrthancError:
            continue  # of an account that we are not
        if control.timeline == before.timeline:
            raise UsageError(
                f"the server in {folder} on this machine is a primary of the same database, and alive",
                f"add --fence {shlex.quote(str(folder))}: that stops it, and all it has committed arrives first; "
                "if it is only a copy, stop it",
            )


def _shown(place: tuple[str, int]) -> str:
    return f"{place[0]}:{place[1]}"
