"""`storage move`, struck at a random moment of a phase: nothing is lost, and a rerun completes.

The suite runs a few strikes, bench/storage_move.py as many as it is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli import config, db, placement, storage
from pgorthanc_cli.index import customdata
from pgorthanc_cli.storage import FilesystemArea
from tests.faults.site import disk
from tests.support.real_servers import Server, wait_until
from tests.support.schemas import rows
from tests.support.schemas import run as execute

PHASES = ("copy", "switch", "clean")
# Of the command: kill -9 and SIGTERM. Of its sessions: ended, one of their processes killed, all processes of the
# server killed. A full disk: of the folder, and of the server.
STRIKES = ("kill", "terminate", "sessions", "backend", "postmaster", "disk", "space")
_SERVER_STRIKES = {"backend", "postmaster", "space"}
_STORAGE = "1"  # of the advanced-storage plugin
_CUSTOMDATA = customdata.written(storage=_STORAGE)
_SIZE = 20_000  # bytes of an attachment
_FAILED = (1, 3, 0)
_CODES = {"kill": (-9, 0), "terminate": (130, 0, -2, -15), "disk": (1, 0)}
_SETTINGS = "shared_buffers = 16MB\nmax_wal_size = 32MB\nmin_wal_size = 32MB\nmax_connections = 20\n"


@contextmanager
def own_server() -> Iterator[Server]:
    """A server that may be killed, on a small disk of its own where this user may make one."""
    server = Server("local all all trust\n", _SETTINGS)
    with disk(server.folder, 400) as is_small:
        if is_small:
            server.account.own(server.folder)
        try:
            yield server.create().start()
        finally:
            server.stop()
    server.remove()


@dataclass
class Scene:
    """An index of many attachments, in a folder or in large objects, and the other area.

    Attributes:
        target: The index.
        folder: Of the files, in a folder of its own.
        to_objects: Whether the move leads out of the folder, or into it.
        server: Of the index, if it may be killed.
        compress: Whether the move compresses.
        advanced: Whether the folder is a storage of the advanced-storage plugin.
        expected: UUID -> size and MD5.
    """

    target: db.Target
    folder: Path
    to_objects: bool
    server: Server | None = None
    compress: bool = False
    advanced: bool = False
    expected: dict[str, tuple[int, str]] = field(default_factory=dict)

    def fill(self, count: int) -> None:
        """Write attachments and their rows directly."""
        self.folder.mkdir()
        if self.advanced:
            self.folder.with_name("core").mkdir()
        data = f"'{_CUSTOMDATA.decode()}'" if self.advanced and self.to_objects else "NULL"
        uuids = storage.new_uuids(count)
        contents = {uuid: os.urandom(_SIZE) for uuid in uuids}
        self.expected = {
            uuid: (_SIZE, hashlib.md5(content, usedforsecurity=False).hexdigest())
            for uuid, content in contents.items()
        }
        values = ", ".join(
            f"({number}, 1, '{uuid}', {size}, {size}, 1, '{md5}', '{md5}', 0, {data})"
            for number, (uuid, (size, md5)) in enumerate(self.expected.items(), 4)
        )
        execute(
            self.target,
            f"""SET session_replication_role = replica;
                INSERT INTO resources (internalid, resourcetype, publicid, parentid)
                    SELECT n, least(n - 1, 3), 'r' || n, CASE WHEN n > 1 THEN least(n - 1, 3) END
                    FROM generate_series(1, {count + 3}) n;
                INSERT INTO attachedfiles VALUES {values}""",
        )
        if self.to_objects:
            area = FilesystemArea(self.folder, sync=False)
            for uuid, content in contents.items():
                area.put(uuid, 1, [content])
            return
        with db.session(self.target) as conn:
            objects = storage.LargeObjectArea(conn)
            objects.put_many((uuid, 1, [content]) for uuid, content in contents.items())
            conn.commit()

    def _configuration(self, phase: str) -> Path:
        """Write what Orthanc's configuration is in a phase, with the advanced-storage plugin at one end."""
        is_plugin_used = self.to_objects == (phase != "clean")
        storages = {"Storages": {_STORAGE: str(self.folder)}, "CurrentWriteStorage": _STORAGE}
        options = {
            "StorageDirectory": str(self.folder.with_name("core")),
            "AdvancedStorage": {"Enable": is_plugin_used, "MultipleStorages": storages},
            "PostgreSQL": {"EnableStorage": not is_plugin_used},
        }
        path = self.folder.with_name("orthanc.json")
        path.write_text(json.dumps(options))
        path.chmod(0o600)
        return path

    def _ends(self) -> dict[str, str]:
        """The options that name both ends."""
        if not self.advanced:
            return {"to": "postgresql" if self.to_objects else "filesystem"}
        if self.to_objects:
            return {"to": "postgresql", "from": "advanced-storage"}
        return {"to": "advanced-storage", "from": "postgresql", "storage-id": _STORAGE}

    def command(self, phase: str) -> list[str]:
        words = [word for name, value in self._ends().items() for word in (f"--{name}", value)]
        if self.advanced:
            words += ["--config", str(self._configuration(phase))]
        else:
            words += ["--storage-dir", str(self.folder)]
        words += ["--phase", phase, "--json"]
        words += ["--compression", "zlib"] if self.compress else []
        return [sys.executable, "-m", "pgorthanc_cli", "storage", "move", *words, "--uri", self.target.dsn]

    def run(self, phase: str) -> None:
        """Do a phase, which must complete; in this process, which is faster."""
        ends = self._ends()
        settings = placement.from_options(
            config.load(self._configuration(phase)) if self.advanced else None,
            to=ends["to"],
            source_kind=ends.get("from"),
            storage_id=ends.get("storage-id"),
            storage_dir=None if self.advanced else self.folder,
            compression="zlib" if self.compress else None,
            phase=phase,
            jobs=1,
        )
        moved = placement.move(self.target, settings)
        assert moved.complete, moved.failed[:3]

    def files(self) -> dict[str, tuple[int, str]]:
        """What is in the folder; no temporary file counts."""
        found = {}
        for path in self.folder.rglob("????????-*"):
            found[path.name] = self._described(path.read_bytes(), is_target=not self.to_objects)
        return found

    def objects(self) -> dict[str, tuple[int, str]]:
        """What is in the large objects; none is without a row."""
        stored = rows(self.target, "SELECT uuid, lo_get(content) FROM storagearea")
        found = {uuid: self._described(bytes(content), is_target=self.to_objects) for uuid, content in stored}
        assert rows(self.target, "SELECT count(*) FROM pg_largeobject_metadata") == [(len(found),)]
        return found

    def _described(self, content: bytes, *, is_target: bool) -> tuple[int, str]:
        """Size and MD5 of what is stored, without the compression of the target."""
        if self.compress and is_target:
            content = storage.decode(content)
        return len(content), hashlib.md5(content, usedforsecurity=False).hexdigest()

    def check(self, phase: str) -> None:
        """Raise an error if anything is lost, or if what has a name is not complete."""
        source, to = (self.files(), self.objects()) if self.to_objects else (self.objects(), self.files())
        assert to.items() <= self.expected.items()
        assert source.items() <= self.expected.items()
        # All rows fit the source, or all of them the target.
        query = "SELECT DISTINCT compressiontype, COALESCE(customdata, '') FROM attachedfiles"
        ((_, data),) = rows(self.target, query)
        assert bytes(data) in ((b"", _CUSTOMDATA) if self.advanced else (b"",))
        if phase == "clean":
            assert to == self.expected
        else:
            assert source == self.expected

    def finish(self, phase: str) -> None:
        """Repeat the phase, do those after it, and check the end."""
        for following in PHASES[PHASES.index(phase) :]:
            self.run(following)
        assert (self.files(), self.objects()) == (
            ({}, self.expected) if self.to_objects else (self.expected, {})
        )
        data = _CUSTOMDATA if self.advanced and not self.to_objects else b""
        found = rows(self.target, "SELECT DISTINCT COALESCE(customdata, '') FROM attachedfiles")
        assert [bytes(each) for (each,) in found] == [data]
        assert not list(self.folder.rglob(".*.pgorthanc"))
        self.run("clean")


def strike(scene: Scene, phase: str, kind: str, chance: random.Random, duration_s: float) -> str:
    """Do the phases before, strike this one at a random moment, check, and finish the move.

    Args:
        scene: With its attachments in the source.
        phase: Which phase is struck.
        kind: One of STRIKES.
        chance: Decides about the moment.
        duration_s: How long the phase takes.

    Returns:
        How the command ended.
    """
    for before in PHASES[: PHASES.index(phase)]:
        # Of a switch without a copy there is more to interrupt.
        if not (before == "copy" and phase == "switch"):
            scene.run(before)
    moment_s = chance.uniform(0.0, duration_s)
    with _full(scene, kind, chance):
        with subprocess.Popen(
            scene.command(phase), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            if kind not in ("disk", "space"):
                wait_until(lambda: process.poll() is not None or _backends(scene.target) > 0, timeout_s=60)
                time.sleep(moment_s)
                _blow(scene, process, kind)
            code = process.wait(timeout=120)
    assert code in _CODES.get(kind, _FAILED), code
    if kind in _SERVER_STRIKES and scene.server:
        scene.server.revive()
    wait_until(lambda: not _backends(scene.target), timeout_s=30)
    scene.check(phase)
    scene.finish(phase)
    return f"{kind} during {phase} after {moment_s:.2f} s: exit {code}"


def _blow(scene: Scene, process: subprocess.Popen[bytes], kind: str) -> None:
    if kind == "kill":
        process.kill()
    elif kind == "terminate":
        process.send_signal(signal.SIGTERM)
    elif kind == "sessions":
        execute(scene.target, f"SELECT pg_terminate_backend(pid) {_BACKENDS}")
    elif kind == "backend" and scene.server:
        for (pid,) in rows(scene.target, f"SELECT pid {_BACKENDS} ORDER BY random() LIMIT 1"):
            scene.server.kill(session=pid)
    elif kind == "postmaster" and scene.server:
        scene.server.kill()


_BACKENDS = "FROM pg_stat_activity WHERE application_name LIKE 'pgorthanc storage%'"


def _backends(target: db.Target) -> int:
    ((count,),) = rows(target, f"SELECT count(*) {_BACKENDS} AND datname = current_database()")
    return int(count)


@contextmanager
def _full(scene: Scene, kind: str, chance: random.Random) -> Iterator[None]:
    """Leave little room on the disk of the folder, or of the server, which must be a small one."""
    if kind not in ("disk", "space"):
        yield
        return
    if kind == "space":
        # Never the disk of this machine.
        assert scene.server is not None
        assert scene.server.folder.is_mount()
        folder, left = scene.server.folder, chance.randrange(400 * _SIZE)
    else:
        folder, left = scene.folder.parent, chance.randrange(50 * _SIZE)
    ballast = folder / "ballast"
    with ballast.open("wb") as stream:
        # The server writes meanwhile: what was free a moment ago may be less by now.
        def fits() -> bool:
            with suppress(OSError):
                os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(folder).free - left))
                return True
            return False

        wait_until(fits)
    try:
        yield
    finally:
        ballast.unlink()
