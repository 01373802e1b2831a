"""The mark of a fenced primary: it names the one standby that may replace it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server.cluster import Cluster
from pgorthanc_cli.text import printable

MARK = "pgorthanc.fenced"
_LOCK = "pgorthanc.fencing"
_MARK_MAX_BYTES = 10_000


@dataclass(frozen=True)
class Mark:
    """The standby for which a folder was fenced.

    Attributes:
        server: Its host and port.
        machine: Where it runs.
        folder: Its data folder there.
        timeline: The one that it followed.
        at: When the folder was fenced, in UTC.
        promoting: Whether its promotion had begun; while False it is certain that none
            has.
    """

    server: str
    machine: str
    folder: str
    slot: str
    system_identifier: str
    timeline: int
    at: str
    promoting: bool = False

    def __str__(self) -> str:
        """Return the standby as messages name it."""
        return f"the standby {self.server} ({self.folder} on {self.machine}, timeline {self.timeline})"

    def is_for_same(self, other: Mark) -> bool:
        """Return whether both name the same standby, by SQL or by folder."""
        same_port = self.server.rpartition(":")[2] == other.server.rpartition(":")[2]
        names = ("system_identifier", "machine", "folder", "slot")
        return same_port and all(getattr(self, name) == getattr(other, name) for name in names)


def parse(content: str) -> Mark | None:
    """Return the mark that a file holds; None if it is damaged."""
    try:
        mark = Mark(**json.loads(content))
    except (ValueError, TypeError):
        return None
    texts = (mark.server, mark.machine, mark.folder, mark.slot, mark.system_identifier, mark.at)
    return mark if all(isinstance(text, str) for text in texts) else None


def read(folder: Path) -> str:
    """Return the content of a folder's mark, empty if there is none."""
    try:  # a link or a device is a damaged mark
        handle = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError:
        return "unreadable"
    with os.fdopen(handle, "rb") as file:
        return file.read(_MARK_MAX_BYTES).decode("utf-8", "replace") or "empty"


def clear(cluster: Cluster) -> None:
    """Remove the mark: the server now follows the new primary."""
    for name in (MARK, _LOCK):
        (cluster.path / name).unlink(missing_ok=True)


# The claim: one promotion at a time, for one standby


class Claim:
    """The right to promote the one standby that a folder is fenced for."""

    def __init__(self, old: Cluster, mark: Mark, before: Mark | None) -> None:
        self.again = before is not None
        self._old = old
        self._mark = mark
        self._promoting = before is not None and before.promoting

    def promoting(self) -> None:
        """Record that the promotion begins: from now on the mark stays."""
        self._promoting = True
        self._old.write(MARK, _content(replace(self._mark, promoting=True)))

    def release(self) -> None:
        """Remove the mark, unless a promotion has begun, now or earlier."""
        if not self._promoting:
            (self._old.path / MARK).unlink(missing_ok=True)


@contextmanager
def claimed(old: Cluster, mark: Mark) -> Iterator[Claim]:
    """Mark a folder for one standby, and refuse any other, at the same time or later.

    Raises:
        PgOrthancError: It is fenced for another standby, or another command is fencing
            it.
    """
    with _locked(old, mark):
        content = read(old.path)
        before = parse(content)
        if content and (before is None or not before.is_for_same(mark)):
            raise refusal(str(old.path), old.path, content)
        # Linked, not renamed: on a file system whose locks do not work, the second one
        # fails here.
        if not content and not old.write_new(MARK, _content(mark)):
            raise refusal(str(old.path), old.path, read(old.path))
        claim = Claim(old, mark, before)
        try:
            yield claim
        except BaseException:
            claim.release()
            raise


@contextmanager
def _locked(old: Cluster, mark: Mark) -> Iterator[None]:
    handle = os.open(old.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        old.account.own(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = parse(read(old.path))
            raise PgOrthancError(
                f"another promotion is fencing {old.path}{f' for {other}' if other else ''}, and only one of its "
                f"standbys may be promoted, not {mark.server} as well",
                "wait until that command has ended; then see which server is the primary: pgorthanc replication status",
            ) from None
        yield
    finally:
        os.close(handle)


def _content(mark: Mark) -> str:
    return json.dumps(asdict(mark), indent=2) + "\n"


def refusal(subject: str, folder: str | Path, content: str) -> PgOrthancError:
    """Return the error for a second promotion."""
    mark = parse(content)
    remove = f"rm {shlex.quote(str(Path(folder) / MARK))}"
    if mark is None:
        return PgOrthancError(
            f"{subject} is fenced, and its mark {MARK} is damaged: it does not say for which standby",
            "look at all its standbys with pgorthanc replication status; if every one of them is still a standby, "
            f"run: {remove}",
        )
    host, _, port = mark.server.rpartition(":")
    began = "its promotion has begun" if mark.promoting else "its promotion had not begun"
    return PgOrthancError(
        printable(
            f"{subject} was fenced at {mark.at} for {mark}, and {began}: a second promotion makes two primaries"
        ),
        printable(
            f"see whether it takes writes: pgorthanc replication status --host {shlex.quote(host)} --port {port}; "
        )
        + "if it does, make this one follow it (pgorthanc replication standby, or rejoin); if it is still a standby "
        f"and never to be promoted: {remove}",
    )
