"""What goes wrong: each a context that begins with the blow, and ends with its repair."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults.importer import INSTANCES, Archive, workers
from tests.faults.site import Network, Site
from tests.support.real_servers import wait_until
from tests.support.servers import fill

NEVER_MIND = 6  # the import came through; some of the sources are refused


@dataclass(frozen=True)
class Scene:
    """Where it happens, and to whom; `disk` and `network` are those that this fault is about."""

    site: Site
    archive: Archive
    process: subprocess.Popen[str]
    random: Random
    disk: Path | None = None
    network: Network | None = None

    def ended(self) -> bool:
        return self.process.poll() is not None

    def one_of(self, find: Callable[[], list[int]]) -> list[int]:
        """One of the processes that `find` returns, as soon as there are any; none if the import has ended."""
        pids: list[int] = []

        def there() -> bool:
            pids[:] = find()
            return bool(pids) or self.ended()

        wait_until(there, timeout_s=60)
        return pids and [self.random.choice(pids)]

    def await_moment(self) -> None:
        """A random one: after so many instances, and then a little later, to meet every part of a batch."""
        before = min(self.archive.stored(), INSTANCES - 1)
        target = self.random.randrange(before, INSTANCES)
        wait_until(lambda: self.ended() or self.archive.stored() >= target, timeout_s=120)
        time.sleep(self.random.uniform(0, 0.05 if target > before else 1.0))
        assert self.process.poll() in (None, NEVER_MIND), "it ended before it was struck"

    def await_work(self) -> None:
        """A random moment of an import that adds no instances."""
        wait_until(lambda: self.ended() or bool(self.archive.backends()), timeout_s=60)
        time.sleep(self.random.uniform(0, 2.0))


Strike = Callable[[Scene], AbstractContextManager[None]]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def worker_killed(scene: Scene) -> Iterator[None]:
    _kill(scene.one_of(lambda: [] if scene.ended() else workers(scene.process)))
    yield


@contextmanager
def parent_killed(scene: Scene) -> Iterator[None]:
    scene.process.kill()
    yield


@contextmanager
def backend_killed(scene: Scene) -> Iterator[None]:
    """PostgreSQL then ends all its processes, and recovers."""
    _kill(scene.one_of(scene.archive.backends))
    yield
    wait_until(scene.site.answers, timeout_s=60)


@contextmanager
def server_stopped(scene: Scene) -> Iterator[None]:
    scene.site.server.stop()
    try:
        yield
    finally:
        scene.site.server.start()


@contextmanager
def disk_full(scene: Scene) -> Iterator[None]:
    """That of the storage area, or that of the database's tablespace."""
    assert scene.disk
    ballast = scene.disk / "ballast"
    fill(ballast)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def cable_pulled(scene: Scene) -> Iterator[None]:
    assert scene.network
    scene.network.pull()
    try:
        yield
    finally:
        scene.network.plug_in()


@dataclass(frozen=True)
class Fault:
    """A blow, and the exit code of an import that it ends."""

    strike: Strike
    exit_code: int


FAULTS = {
    "worker": Fault(worker_killed, 1),
    "parent": Fault(parent_killed, -signal.SIGKILL),
    "backend": Fault(backend_killed, 3),
    "server": Fault(server_stopped, 3),
    "storage": Fault(disk_full, 1),
    "database": Fault(disk_full, 1),
    "network": Fault(cable_pulled, 3),
}
