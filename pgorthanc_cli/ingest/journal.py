"""Which attachments of the filesystem area are in flight, so that no interruption leaves a file without a row.

Before a file is written to its final place, its UUID stands in a journal in `<storage>/.pgorthanc`; after the
transaction that names it, the journal is removed. A journal that a dead run left behind is settled by the next
import (see `recover`): an attachment stays if and only if a row of the index names it.

    .pgorthanc/RUN.lock          who the run is (see `runs.Marker`); locked and touched while it lives
    .pgorthanc/RUN/workers       process ids of its workers, who share a lock on it
    .pgorthanc/RUN/BATCH.json    {"database": ..., "uuids": [...]}
    .pgorthanc/set-aside/        journals that could not be read
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pgorthanc_cli import files, storage
from pgorthanc_cli.ingest import runs

FOLDER = ".pgorthanc"
WORKERS = "workers"
SET_ASIDE = "set-aside"
_TRIES = 10
_NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Journal:
    """The journals of one run; picklable, so that workers can write theirs.

    Attributes:
        area: The filesystem area that the attachments are in.
        database: Identifies the index that they belong to, across renames and hosts.
        run: The name of this run.
        locks: Whether locks of files work in the area, as far as this machine can tell.
    """

    area: storage.FilesystemArea
    database: str
    run: str
    locks: bool = True

    @property
    def folder(self) -> Path:
        """Where the journals of this run are, for messages."""
        return self.area.root / FOLDER / self.run

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of that folder, and the rights to work in it."""
        with self.area.rights, top(self.area) as above, folder_of(self.run, above) as folder:
            yield folder

    def join(self) -> None:
        """A worker process takes part in the run for as long as it lives."""
        with self._opened() as folder:
            descriptor = os.open(WORKERS, _NEW | os.O_APPEND, 0o644, dir_fd=folder)
        os.write(descriptor, runs.process(os.getpid()).encode() + b"\n")
        runs.take(descriptor, fcntl.LOCK_SH)  # stays open as long as the process lives

    def record(self, name: str, uuids: Sequence[str]) -> None:
        """Write a journal down, durably, before its attachments are touched."""
        content = json.dumps({"database": self.database, "uuids": list(uuids)}).encode()
        with self._opened() as folder:
            descriptor = os.open(f"{name}.new", _NEW | os.O_TRUNC, files.PRIVATE, dir_fd=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.rename(f"{name}.new", f"{name}.json", src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def forget(self, name: str) -> None:
        """The batch is settled: its rows are committed, and files without a row are gone.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        with self._translated(), suppress(FileNotFoundError), self._opened() as folder:
            os.unlink(f"{name}.json", dir_fd=folder)

    def discard(self, uuids: Iterable[str]) -> None:
        """Remove files that no row names.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        with self._translated():
            for each in uuids:
                self.area.delete(each)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage.write_error(self.area.root, error) from error

    def spool(self) -> IO[bytes]:
        """A new file without a name, for content that is too large for memory."""
        with self._opened() as folder:
            try:
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(".", flags, files.PRIVATE, dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                    raise
                name = f"spool-{uuid.uuid4().hex}"
                descriptor = os.open(name, _NEW | os.O_EXCL, files.PRIVATE, dir_fd=folder)
                os.unlink(name, dir_fd=folder)
        return os.fdopen(descriptor, "w+b")


@contextmanager
def opened(
    area: storage.FilesystemArea, database: str, session: runs.Session | None = None
) -> Iterator[Journal]:
    """A journal for one run: locked, touched now and then, and known to the database while the run lives.

    Raises:
        PgOrthancError: The storage folder cannot be written to.
    """
    run = uuid.uuid4().hex
    if session:
        session.hold(run)
    try:
        _take_over(area)
        with area.rights:
            lock = _made(area, run, session=session is not None)
            with top(area) as above:
                made = Journal(area, database, run, runs.excludes(f"{run}.lock", above))
    except OSError as error:
        raise storage.write_error(area.root, error) from error
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(area, lock, ended), daemon=True)
    heart.start()
    try:
        yield made
    finally:
        ended.set()
        heart.join(1)
        with area.rights, suppress(OSError), top(area) as above:
            with folder_of(run, above) as folder:
                settled = not any(name.endswith(".json") for name in os.listdir(folder))
            if settled:
                remove(run, above, area)
        os.close(lock)
        area.close()
        if session:
            session.release(run)


def _take_over(area: storage.FilesystemArea) -> None:
    """Give what earlier versions have made as root to the owner of the area, whose rights root uses now.

    From the inside out: as long as a folder is root's, nobody else can put something into it. Links are not
    followed, and files with a second name are left alone.
    """
    if os.geteuid() or not area.rights.uid:
        return
    with suppress(FileNotFoundError), top(area) as above:
        _give(above, area.rights)


def _give(folder: int, rights: files.OwnerRights) -> None:
    if os.fstat(folder).st_uid:
        return
    os.fchmod(folder, 0o700)
    for name in os.listdir(folder):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if status.st_uid == 0 and stat.S_ISDIR(status.st_mode):
            with folder_of(name, folder) as inner:
                _give(inner, rights)
        elif status.st_uid == 0 and stat.S_ISREG(status.st_mode):
            descriptor = files.open_regular(name, os.O_NOFOLLOW, folder=folder)
            if os.fstat(descriptor).st_nlink == 1:
                os.fchown(descriptor, rights.uid, rights.gid)
            os.close(descriptor)
    os.fchown(folder, rights.uid, rights.gid)


def _made(area: storage.FilesystemArea, run: str, *, session: bool) -> int:
    """Make the lock and the folder of a run; the lock gets its name when it is held, and says whose it is."""
    for attempt in range(_TRIES):  # another run may remove the folder of all runs as empty
        try:
            with _all_runs(area) as above:
                lock = os.open(f"{run}.new", _NEW | os.O_EXCL, 0o644, dir_fd=above)
                runs.take(lock, fcntl.LOCK_EX)
                os.write(lock, runs.Marker.ours(session=session).written())
                os.fsync(lock)
                os.rename(f"{run}.new", f"{run}.lock", src_dir_fd=above, dst_dir_fd=above)
                os.mkdir(run, 0o700, dir_fd=above)
                os.fsync(above)
            return lock
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def _beat(area: storage.FilesystemArea, lock: int, ended: threading.Event) -> None:
    """Show other machines that the run lives, by the clock of the storage."""
    while not ended.wait(runs.HEARTBEAT_S):
        with area.rights, suppress(OSError):
            os.utime(lock)


@contextmanager
def _all_runs(area: storage.FilesystemArea) -> Iterator[int]:
    """As `top`; the folder is made if it is missing."""
    with suppress(FileExistsError):
        os.mkdir(FOLDER, dir_fd=area.descriptor)
    with top(area) as above:
        yield above


@contextmanager
def top(area: storage.FilesystemArea) -> Iterator[int]:
    """A descriptor of the folder of all runs.

    Raises:
        FileNotFoundError: There is none.
        OSError: It is no folder.
    """
    descriptor = os.open(FOLDER, _FOLDER_FLAGS, dir_fd=area.descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def folder_of(run: str, above: int) -> Iterator[int]:
    """A descriptor of the folder of one run.

    Raises:
        FileNotFoundError: There is none.
        OSError: It is no folder.
    """
    descriptor = os.open(run, _FOLDER_FLAGS, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(run: str, above: int, area: storage.FilesystemArea) -> None:
    """Remove a settled run: its folder, its lock, and the folder of all runs if it was the last."""
    with suppress(FileNotFoundError, NotADirectoryError):
        with folder_of(run, above) as folder:
            for name in os.listdir(folder):
                if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=folder)
        os.rmdir(run, dir_fd=above)
    with suppress(OSError):
        os.unlink(f"{run}.lock", dir_fd=above)
        os.rmdir(FOLDER, dir_fd=area.descriptor)  # fails while another run is at work


def make_token(area: storage.FilesystemArea, name: str) -> None:
    """Make an empty file in the folder of all runs, by which other machines see that they share it.

    Raises:
        PgOrthancError: The storage folder cannot be written to.
    """
    try:
        with area.rights, _all_runs(area) as above:
            os.close(os.open(name, _NEW | os.O_EXCL, 0o644, dir_fd=above))
    except OSError as error:
        raise storage.write_error(area.root, error) from error


def remove_token(area: storage.FilesystemArea, name: str) -> None:
    """Remove it, and the folder of all runs if there are none."""
    with area.rights, suppress(OSError), top(area) as above:
        os.unlink(name, dir_fd=above)
        os.rmdir(FOLDER, dir_fd=area.descriptor)
