"""Which attachments of the filesystem area are in flight, so that no interruption leaves a file without a row.

Before a file is written to its final place, its UUID stands in a journal in `<storage>/.pgorthanc`; after the
transaction that names it, the journal is removed. A journal that a dead run left behind is settled at the next
import: an attachment stays if and only if a row of the index names it. A run is dead when nobody holds the lock
on its folder, whatever process ids say. Journals of an import into another database are left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli import durable, storage

FOLDER = ".pgorthanc"
_WORKERS = "workers"  # a lock in the folder of a run that its workers share


@dataclass(frozen=True)
class Journal:
    """The journals of one run; picklable, so that workers can write theirs.

    Attributes:
        area: The filesystem area that the attachments are in.
        database: Identifies the index that they belong to, across renames and hosts.
        folder: Where the journals of this run are.
    """

    area: storage.FilesystemArea
    database: str
    folder: Path

    def join(self) -> None:
        """A worker process takes part in the run for as long as it lives."""
        fcntl.flock(
            os.open(self.folder / _WORKERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), fcntl.LOCK_SH
        )

    def record(self, name: str, uuids: Sequence[str]) -> None:
        """Write a journal down, durably, before its attachments are touched."""
        final = self.folder / f"{name}.json"
        temporary = final.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"database": self.database, "uuids": uuids}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
        durable.sync_folder(self.folder)

    def forget(self, name: str) -> None:
        """The batch is settled: its rows are committed, and files without a row are gone."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def discard(self, uuids: Iterable[str]) -> None:
        """Remove files that no row names."""
        for each in uuids:
            self.area.delete(each)

    def settle_dead_runs(self, named: Callable[[list[str]], set[str]]) -> list[str]:
        """Settle what dead runs left: `named` says which UUIDs a row of the index names.

        Returns:
            Warnings about journals that belong to another database.
        """
        warnings = []
        for lock in sorted(self.folder.parent.glob("*.lock")):
            if lock == _lock_of(self.folder):
                continue
            descriptor = _take(lock)
            if descriptor != -1:
                warnings += self._settle_run(lock.with_suffix(""), named)
                os.close(descriptor)
        return warnings

    def _settle_run(self, folder: Path, named: Callable[[list[str]], set[str]]) -> list[str]:
        warnings = []
        _await_workers(folder)
        for entry in sorted(folder.glob("*.json")):
            content = json.loads(entry.read_text("utf-8"))
            if content["database"] != self.database:
                warnings.append(
                    f"{entry} belongs to an interrupted import into another database and is left alone; "
                    "run the import for that database again to settle it"
                )
                continue
            kept = named(content["uuids"])
            self.discard(u for u in content["uuids"] if u not in kept)
            entry.unlink()
        if not warnings:
            _remove(folder)
        return warnings


@contextmanager
def opened(area: storage.FilesystemArea, database: str) -> Iterator[Journal]:
    """A journal for one run, whose lock is held while the run lives."""
    folder = area.root / FOLDER / uuid.uuid4().hex
    lock = _lock_of(folder)
    descriptor = -1
    while not lock.exists():  # another run may take the new lock for a dead one's and clear it away
        if descriptor != -1:
            os.close(descriptor)
        folder.parent.mkdir(exist_ok=True)
        descriptor = _take(lock)
    folder.mkdir()
    try:
        yield Journal(area, database, folder)
    finally:
        if not any(folder.glob("*.json")):
            _remove(folder)
        os.close(descriptor)


def _await_workers(folder: Path) -> None:
    """Workers outlive a killed parent by an instant, in which they may still write a file."""
    try:
        descriptor = os.open(folder / _WORKERS, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.close(descriptor)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _take(lock: Path) -> int:
    """The descriptor of the locked file, or -1 while a living run holds it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return -1
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a settled run: its folder, its lock, and the folder of all runs if it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    _lock_of(folder).unlink(missing_ok=True)
    try:
        folder.parent.rmdir()
    except OSError:
        return  # another run is at work
