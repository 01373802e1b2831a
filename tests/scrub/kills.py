"""Changes of `verify storage`, killed at a random moment: nothing is lost, nothing twice, and a rerun completes.

The suite kills a few, bench/scrub_kills.py as many as it is told.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli import db
from tests.scrub.injected import Store
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.real_servers import wait_until
from tests.support.schemas import rows

CHANGES = ("repair", "index", "quarantine", "quarantine elsewhere", "restore elsewhere")
_PAUSE_S = 0.005  # between two looks at how far it has come
_SESSIONS = """SELECT count(*) FROM pg_stat_activity
    WHERE application_name LIKE 'pgorthanc verify%' AND datname = current_database()"""


@dataclass
class Scene:
    """An area with damages and orphans, and what it has to look like in the end.

    Attributes:
        store: The index and its area.
        folder: Of the mirror or the quarantine.
        change: One of CHANGES.
        before: Content by UUID, before the change.
        after: The same after it.
        orphans: UUIDs.
    """

    store: Store
    folder: Path
    change: str
    before: dict[str, bytes] = field(default_factory=dict)
    after: dict[str, bytes] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, target: db.Target, folder: Path, change: str, count: int, size: int) -> Scene:
        """Fill an empty index, and damage it.

        Args:
            target: An empty index.
            folder: An empty one; the quarantine "elsewhere" is on another file system.
            change: One of CHANGES.
            count: Attachments that are damaged, or orphans.
            size: Of one of these, in bytes.
        """
        paths = [folder / f"{number}.dcm" for number in range(count if change == "repair" else 2)]
        for number, path in enumerate(paths):
            path.write_bytes(content(f"1.8.{number}", size))
        import_files(target, paths, folder / "area")
        store = Store(target, folder / "area", compress=False)
        aside = folder / "aside"
        if "elsewhere" in change:
            aside = Path(tempfile.mkdtemp(prefix="pgorthanc-kills-", dir=_other_file_system(folder)))
        scene = cls(store, aside, change)
        if change == "repair":
            scene._damage()
        else:
            for number in range(count):
                scene.orphans.add(store.add(content(f"1.9.{number}", size)))
        scene.before = store.contents()
        if change == "repair":
            scene.after = {path.name: path.read_bytes() for path in aside.rglob("*") if path.is_file()}
        elif change != "index":
            scene.after = {k: v for k, v in scene.before.items() if k not in scene.orphans}
        if change.startswith("restore"):
            assert scene.run() == 0
            scene.before, scene.after = scene.after, scene.before
        return scene

    def _damage(self) -> None:
        """Copy everything to the mirror; then every other file is missing, or altered."""
        self.store.copy_to(self.folder)
        for number, uuid in enumerate(sorted(self.store.contents())):
            path = self.store.path(uuid)
            if number % 2:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-1] + b"x")

    def command(self, *, restore: bool = False) -> list[str]:
        """The command that makes the change."""
        options = {"repair": ["--repair-from", str(self.folder)], "index": ["--index-orphans"]}
        words = options.get(self.change, ["--quarantine", str(self.folder)])
        words += ["--restore"] if restore else ["--yes"]
        words += ["--storage-dir", str(self.store.area), "--grace", "0", "--jobs", "1", "--json"]
        return [
            sys.executable,
            "-m",
            "pgorthanc_cli",
            "verify",
            "storage",
            *words,
            "--uri",
            self.store.target.dsn,
        ]

    def environment(self) -> dict[str, str]:
        """With a folder of its own for temporary files."""
        return {**os.environ, "TMPDIR": str(self.copies().parent)}

    def copies(self) -> Path:
        """The pattern of folders with copies of orphans."""
        assert self.store.area
        folder = self.store.area.with_name("temporary")
        folder.mkdir(exist_ok=True)
        return folder / "pgorthanc-orphans-*"

    def run(self, *, restore: bool = False) -> int:
        """Make the change; return the exit code."""
        command, folder = self.command(restore=restore), self.environment()
        while True:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=folder)
            self.output = done.stdout[-1500:] + done.stderr
            # While a transaction is open elsewhere, such as autovacuum's, nothing is an orphan yet.
            undecided = json.loads(done.stdout or "{}").get("undecided")
            if not undecided:
                return done.returncode

    def has_begun(self) -> bool:
        """Whether the change itself has begun: something has moved, or been written."""
        area = self.store.area
        assert area
        if self.change == "repair":
            return any(area.rglob(".*.pgorthanc")) or self.store.contents() != self.before
        if self.change == "index":
            return (area / ".pgorthanc").exists() or any(_matching(self.copies()))
        if self.change.startswith("restore"):
            return self.store.contents().keys() != self.before.keys()
        return any(path.is_file() for path in self.folder.rglob("*"))

    def check(self) -> None:
        """Raise an error if a content exists nowhere, or half under a final name."""
        now = _named(self.store.contents())
        aside = {} if self.change in ("repair", "index") else _files(self.folder)
        if self.change == "repair":
            for uuid, content in self.after.items():
                assert now.get(uuid, content) in (content, self.before.get(uuid)), uuid
            return
        everything = self.before | self.after
        assert (now | aside).keys() >= everything.keys() - self.orphans
        contents = {**aside, **now}
        if self.change == "index":
            kept = set(contents.values())
            assert all(content in kept for content in self.before.values())
            return
        assert contents == everything
        assert all(content == everything[uuid] for each in (now, aside) for uuid, content in each.items())

    def finish(self) -> None:
        """Run it again, and check the end."""
        code = self.run(restore=self.change.startswith("restore"))
        assert code in (0, 6), self.output
        now = _named(self.store.contents())
        assert self.store.area
        leftovers = [
            *self.store.area.rglob(".*.pgorthanc"),
            *self.folder.rglob(".*.pgorthanc"),
            *_matching(self.copies()),
        ]
        assert not leftovers, leftovers
        if self.change == "index":
            self._check_indexed(now)
            return
        assert code == 0, self.output
        assert now == self.after
        if self.change.startswith("quarantine"):
            assert _files(self.folder).keys() == self.orphans
        elif self.change.startswith("restore"):
            assert not _files(self.folder)

    def _check_indexed(self, now: dict[str, bytes]) -> None:
        """Each orphan's content has one row, whose file is there; the orphan may have stayed as a second copy."""
        uuids = {uuid for (uuid,) in rows(self.store.target, "SELECT uuid FROM attachedfiles")}
        assert len(uuids) == 2 + len(self.orphans)
        contents = [now[uuid] for uuid in uuids]
        assert sorted(contents) == sorted(self.before.values())
        assert now.keys() <= uuids | self.orphans

    def halves(self) -> list[Path]:
        """The files that have a temporary name."""
        assert self.store.area
        return [path for folder in (self.store.area, self.folder) for path in folder.rglob(".*.pgorthanc")]

    def close(self) -> None:
        """Remove what lies on another file system."""
        if "elsewhere" in self.change:
            shutil.rmtree(self.folder)


def content(study: str, size: int) -> bytes:
    """A DICOM file of about this size, of a study of its own."""
    return samples.instance(study, study, f"{study}.1", PixelData=os.urandom(size // 2 * 2))


def kill(scene: Scene, chance: random.Random, longest_s: float) -> str:
    """Kill a change within a time after it has begun, check, and finish it; return how it ended."""
    moment_s = chance.uniform(0.0, longest_s)
    command = scene.command(restore=scene.change.startswith("restore"))
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, env=scene.environment(), stdout=nowhere, stderr=nowhere) as process:
        while process.poll() is None and not scene.has_begun():
            time.sleep(_PAUSE_S)
        time.sleep(moment_s)
        process.kill()
        code = process.wait(timeout=60)
    wait_until(lambda: rows(scene.store.target, _SESSIONS) == [(0,)], timeout_s=30)
    scene.check()
    halves = scene.halves()
    scene.finish()
    scene.close()
    return f"{'killed' if code == -9 else 'too late'}{', a temporary file was left' if halves else ''}"


def _files(folder: Path) -> dict[str, bytes]:
    """Files of attachments by UUID, in a folder laid out as an area."""
    return {path.name: path.read_bytes() for path in folder.rglob("????????-*") if path.is_file()}


def _named(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in contents.items() if name.count("-") == 4 and name[0] != "."}


def _matching(pattern: Path) -> list[Path]:
    return list(pattern.parent.glob(pattern.name))


def _other_file_system(folder: Path) -> Path:
    device = os.stat(folder).st_dev
    return next(path for path in map(Path, ("/dev/shm", "/tmp", "/var/tmp")) if path.stat().st_dev != device)
