"""Proof that the old primary is down before a standby is promoted: never two.

A port that refuses connections proves nothing: a tunnel, a proxy or a firewall in front
of a running primary looks the same. Proof is its data folder: its processes have ended,
and whoever starts it again gets a standby.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication.mark import Claim, Mark, claimed
from pgorthanc_cli.replication.probe import (
    ANSWERS,
    REFUSES,
    SILENT,
    Endpoint,
    endpoints,
    format_endpoint,
    probe,
)
from pgorthanc_cli.server import cluster as clusters
from pgorthanc_cli.server.cluster import STANDBY_SIGNAL, Cluster, Control
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.processes import running_folders, server_processes, socket_peer
from pgorthanc_cli.server.wal import Loss, written_after

END_TIMEOUT_S = 10.0
_ARRIVAL_TIMEOUT_S = 10.0
_QUIET_S = 1.0
# A primary that was killed may have sent the first part of a record that its own WAL does
# not hold completely.
_TORN_RECORD_BYTES = 16 * 2**20
_NAME_OLD_PRIMARY = "name the folder of the old primary"
_STATES = {REFUSES: "its port is closed", SILENT: "it is silent"}


@dataclass(frozen=True)
class Fence:
    """How the old primary is kept from taking writes.

    Attributes:
        folder: Its data folder on this machine: it is stopped, and marked to start as a
            standby only.
        gone: The operator confirms that it is off and stays off, and that no other
            standby of it is promoted.
        accept_loss: Promote even if the folder shows commits that the standby never
            received.
    """

    folder: Path | None = None
    gone: bool = False
    accept_loss: bool = False


class NotProved(PgOrthancError):
    """Nothing proves that the old primary is down; its operator may know.

    Attributes:
        servers: Host and port of each server that the standby may follow.
    """

    servers: tuple[str, ...] = ()


@dataclass(frozen=True)
class StandbyState:
    """A standby before its promotion.

    Attributes:
        timeline: The one that it follows.
        received: Where its WAL ends.
        conninfo: The connection string of its primary; empty if it follows none.
        slot: Its slot there.
        folder: Its data folder, on the machine that `machine` names.
        mark: The content of the mark in its own folder: it is a fenced old primary. Empty
            if there is none.
    """

    system_identifier: str
    timeline: int
    received: int
    conninfo: str
    slot: str
    folder: str = ""
    machine: str = ""
    mark: str = ""


# The folder


@contextmanager
def fenced(
    folder: Path,
    fence: Fence,
    standby: StandbyState,
    endpoint: Endpoint,
    refresh: Callable[[], StandbyState],
    remaining_s: Callable[[], float],
) -> Iterator[tuple[Claim, Loss]]:
    """Stop the old primary for good; yield the claim, and the commits that will be lost.

    Args:
        folder: Its data folder.
        fence: What else the operator has confirmed.
        standby: The standby.
        endpoint: Its host and port.
        refresh: Returns the current state of the standby.
        remaining_s: Returns how many seconds are left.

    Raises:
        UsageError: The folder is that of another server, of a copy, or of a standby.
        PgOrthancError: It is fenced for another standby, it does not end, or there are
            such commits.
    """
    old = open_cluster(folder)
    control = old.control()
    if control.system_identifier != standby.system_identifier:
        raise UsageError(
            f"{old.path} is the folder of another server: its system identifier is {control.system_identifier}, "
            f"the standby's is {standby.system_identifier}"
        )
    if str(old.path) == standby.folder:
        raise UsageError(f"{old.path} is the folder of a standby: the one to promote", _NAME_OLD_PRIMARY)
    with claimed(old, _mark_for(standby, endpoint)) as claim:
        if control.is_standby and not (claim.again and old.starts_as_standby):
            raise UsageError(f"{old.path} is the folder of a standby ({control.state})", _NAME_OLD_PRIMARY)
        _refuse_other_timeline(old, control, standby)
        _refuse_copy(old, standby)
        # First the signal file: whoever starts it again gets a standby that takes no
        # writes.
        old.write(STANDBY_SIGNAL, "")
        old.stop(remaining_s())
        _wait_until_dead(old)
        # Now that it has stopped: before, its WAL was still growing.
        if not fence.gone:
            _refuse_older(old, refresh())
        loss = _wait_for_the_rest(old, refresh)
        if loss.commits and not fence.accept_loss:
            raise PgOrthancError(
                f"the old primary is stopped, and has {loss.commits} commits ({loss.bytes:,} bytes of WAL) that the "
                "standby never got",
                f"start it again if you can: rm {shlex.quote(str(old.path / STANDBY_SIGNAL))}; "
                f"{old.command_line('start')}; once the standby streams from it, which "
                "pgorthanc replication status shows, run the same command again; "
                "to give these commits up: --accept-loss",
            )
        yield claim, loss


def _mark_for(standby: StandbyState, endpoint: Endpoint) -> Mark:
    return Mark(
        server=format_endpoint(endpoint),
        machine=standby.machine,
        folder=standby.folder,
        slot=standby.slot,
        system_identifier=standby.system_identifier,
        timeline=standby.timeline,
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _refuse_other_timeline(old: Cluster, control: Control, standby: StandbyState) -> None:
    # An older timeline: a primary before the last promotion. A newer one: the standby
    # missed a promotion.
    history = old.path / "pg_wal" / f"{standby.timeline:08X}.history"
    if control.timeline < standby.timeline and not history.exists():
        raise UsageError(
            f"{old.path} is on timeline {control.timeline}, and the standby on {standby.timeline}: it is not the "
            "primary that the standby follows, but one before it",
            "name the folder of the primary that was promoted last",
        )
    if control.timeline > standby.timeline:
        raise UsageError(
            f"{old.path} is on timeline {control.timeline}, and the standby on {standby.timeline}: the standby has "
            "not followed its promotion, and would lose all commits since",
            "start it, and let the standby follow it first; or copy the standby again: pgorthanc replication standby",
        )


def _refuse_copy(old: Cluster, standby: StandbyState) -> None:
    ports = {port for _, port in endpoints(standby.conninfo)} if standby.conninfo else set()
    if old.pid() is None or not ports:
        return
    # Only a running server has a port to compare; a stopped copy is recognized by its
    # WAL, see `_refuse_older`.
    port, _ = old.endpoint()
    if port not in ports:
        raise UsageError(
            f"the server in {old.path} listens on port {port}, and the standby follows port "
            f"{' or '.join(map(str, sorted(ports)))}: it is a copy of the old primary, or the standby reaches it "
            "through a forwarder",
            "name the folder of the old primary; behind a forwarder, stop it first: "
            f"{old.command_line('stop')}",
        )


def _wait_until_dead(old: Cluster) -> None:
    """Wait until no process is left: one that outlives the postmaster can still commit.

    Raises:
        PgOrthancError: One is left, or the server runs where this process cannot see it.
    """
    # There may be no pid file, or no process that listens.
    with suppress(OSError, ValueError, IndexError):
        port, socket_folder = old.endpoint()
        if socket_peer(socket_folder, port) == 0:
            raise PgOrthancError(
                f"the server in {old.path} runs in another container",
                "stop it there, then run the same command again",
            )
    deadline = time.monotonic() + END_TIMEOUT_S
    while pids := server_processes(old.path):
        if time.monotonic() > deadline:
            raise PgOrthancError(
                f"processes of the old primary in {old.path} are still alive: {', '.join(map(str, pids))}",
                f"end them: kill -QUIT {' '.join(map(str, pids))}; then run the same command again",
            )
        time.sleep(0.05)


def _refuse_older(old: Cluster, standby: StandbyState) -> None:
    """Raise UsageError if the folder's WAL ends before what the primary has sent."""
    control = old.control()
    if control.timeline != standby.timeline:
        return  # killed before the first checkpoint after its promotion
    end = control.checkpoint + written_after(old, control.timeline, control.checkpoint).bytes
    ahead = standby.received - end
    if ahead > (0 if control.state.startswith("shut down") else _TORN_RECORD_BYTES):
        raise UsageError(
            f"the log of {old.path} ends {ahead:,} bytes before what the standby has received: it is not the old "
            "primary, but an older copy of it",
            "name the folder of the old primary; if that is lost, make sure that its server is off and stays off, "
            "then: --old-primary-is-down",
        )


def _wait_for_the_rest(old: Cluster, refresh: Callable[[], StandbyState]) -> Loss:
    """Wait for WAL that is in transit; return what the standby still lacks."""
    deadline = time.monotonic() + _ARRIVAL_TIMEOUT_S
    last, since = -1, time.monotonic()
    while True:
        standby = refresh()
        loss = written_after(old, standby.timeline, standby.received)
        if standby.received != last:
            last, since = standby.received, time.monotonic()
        is_quiet = time.monotonic() - since > _QUIET_S
        if not loss.commits or is_quiet or time.monotonic() > deadline:
            return loss
        time.sleep(0.1)


# Without a folder


def proof(upstreams: list[Endpoint], fence: Fence, standby: StandbyState, command: str) -> str:
    """Return how the old primary is known to be down.

    Args:
        upstreams: Each server that the standby may follow.
        fence: What the operator has confirmed, and done.
        standby: The standby.
        command: The command line that promotes it, to which options may be added.

    Raises:
        NotProved: It is not known.
        PgOrthancError: It runs.
    """
    answers = {endpoint: probe(*endpoint) for endpoint in upstreams}
    for endpoint, answer in answers.items():
        if answer == ANSWERS:
            raise PgOrthancError(
                f"the old primary {format_endpoint(endpoint)} still answers: two primaries would take different writes",
                "stop it first, and every Orthanc that uses it; on its machine this stops it, and all it has committed "
                f"arrives before the promotion: {command} --fence FOLDER-OF-THE-OLD-PRIMARY",
            )
    _refuse_primary_here(fence, standby)
    reason = "fenced, " if fence.folder else "confirmed to be down, " if fence.gone else ""
    if not reason:
        raise _unproven(answers, command)
    texts = [
        f"{format_endpoint(endpoint)}: {reason}{_STATES[answer]}" for endpoint, answer in answers.items()
    ]
    return "; ".join(texts) or f"{reason}the standby followed none"


def _unproven(answers: dict[Endpoint, str], command: str) -> NotProved:
    meaning = {
        REFUSES: "its port is closed, but a tunnel, proxy or firewall before a living server refuses as well",
        SILENT: "it is silent, but it may be alive behind a broken network",
    }
    texts = "; ".join(
        f"{format_endpoint(endpoint)}: {meaning[answer]}" for endpoint, answer in answers.items()
    )
    error = NotProved(
        f"nothing proves that the old primary is dead: {texts or 'the standby names no server that it follows'}",
        f"where its data folder is, prove it (this stops it, and fences the folder): {command} "
        "--fence FOLDER-OF-THE-OLD-PRIMARY; or, once you have made sure that it is off and stays off, and that no "
        f"other standby of it is promoted: {command} --old-primary-is-down",
    )
    error.servers = tuple(map(format_endpoint, answers))
    return error


def _refuse_primary_here(fence: Fence, standby: StandbyState) -> None:
    """Raise UsageError if a primary of the same database runs on this machine."""
    fenced_folder = Path(os.path.realpath(fence.folder)) if fence.folder else None
    for folder in running_folders():
        if folder == fenced_folder or clusters.is_standby_folder(folder):
            continue
        if clusters.system_identifier(folder) != standby.system_identifier:
            continue
        try:
            control = open_cluster(folder).control()
        except PgOrthancError:
            continue  # it belongs to another account
        if control.timeline == standby.timeline:
            raise UsageError(
                f"the server in {folder} on this machine is a primary of the same database, and alive",
                f"add --fence {shlex.quote(str(folder))}: that stops it, and all it has committed arrives first; "
                "if it is only a copy, stop it",
            )
