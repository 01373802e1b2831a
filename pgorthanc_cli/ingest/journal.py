"""The write-ahead journal of the filesystem area: no interruption leaves an orphan.

Before a file is written to its final place, its UUID is recorded in a journal in
`<storage>/.pgorthanc`; after the transaction that inserts its row, the journal is
removed. The next import cleans up after a dead run (see `recovery`): an attachment stays
if and only if a row of the index names it.

    .pgorthanc/RUN.lock          the run's `runs.Marker`; locked and touched while it lives
    .pgorthanc/RUN/workers       process ids of its workers, which share a lock on it
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
from typing import IO

from pgorthanc_cli import files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import runs

FOLDER = storage.JOURNAL_FOLDER
WORKERS = "workers"
SET_ASIDE = "set-aside"
HEARTBEAT_S = 15.0
_TRIES = 10
# Of open(2) with O_TMPFILE, where the kernel or the file system (NFS) has no such files.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
# O_NONBLOCK: a FIFO planted under the name must not block the import.
_NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Journal:
    """The journal of one run, a file for each batch; workers get it pickled.

    Attributes:
        area: The filesystem area of the attachments.
        database: Identifies the index that they belong to, across renames and hosts.
        run: The name of this run.
        locks: Whether file locks work in the area, as far as this machine can tell.
    """

    area: storage.FilesystemArea
    database: str
    run: str
    locks: bool = True

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """Yield a descriptor of the run's folder, with the rights to work in it."""
        with (
            self.area.rights,
            open_top_folder(self.area) as top,
            open_run_folder(self.run, top) as folder,
        ):
            yield folder

    def join(self) -> None:
        """Register this worker process with the run, for as long as it lives."""
        with self._folder() as folder:
            descriptor = os.open(WORKERS, _NEW | os.O_APPEND, 0o644, dir_fd=folder)
        os.write(descriptor, runs.process_identity(os.getpid()).encode() + b"\n")
        # Never closed: the lock shows to `recovery` that this process is alive.
        runs.try_lock(descriptor, fcntl.LOCK_SH)

    @contextmanager
    def new_files(self, name: str, most: int) -> Iterator[Iterator[str]]:
        """Yield the UUIDs for up to so many new files of a batch, recorded before the first is used.

        The files are durable at the end. If the block fails, they are removed.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        uuids: list[str] = []

        def recorded() -> Iterator[str]:
            uuids.extend(storage.new_uuids(most))
            self.record(name, uuids)
            yield from uuids

        try:
            with self.area.batch():
                yield recorded()
        except BaseException as error:  # a checkpoint may raise anything
            with suppress(PgOrthancError):  # then the next import does it
                self.discard(uuids)
                self.forget(name)
            if isinstance(error, OSError):
                raise storage.write_error(self.area.root, error) from error
            raise

    def record(self, name: str, uuids: Sequence[str]) -> None:
        """Record the attachments of a batch, durably, before they are touched."""
        content = json.dumps({"database": self.database, "uuids": list(uuids)}).encode()
        with self._folder() as folder:
            flags = _NEW | os.O_TRUNC
            descriptor = os.open(f"{name}.new", flags, files.PRIVATE, dir_fd=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            # Recovery reads *.json only, so it never meets half a journal.
            os.rename(f"{name}.new", f"{name}.json", src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)  # the rename itself

    def forget(self, name: str) -> None:
        """Remove a batch whose rows are committed and whose orphans are gone.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        with self._translated(), suppress(FileNotFoundError), self._folder() as folder:
            os.unlink(f"{name}.json", dir_fd=folder)

    def discard(self, uuids: Iterable[str]) -> None:
        """Remove attachments that no row names.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        with self._translated():
            for name in uuids:
                self.area.delete(name)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage.write_error(self.area.root, error) from error

    def spool(self) -> IO[bytes]:
        """Create a file without a name, for content that is too large for memory."""
        with self._folder() as folder:
            try:
                # Without a name, nothing is left of it if this process is killed.
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(".", flags, files.PRIVATE, dir_fd=folder)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                name = f"spool-{uuid.uuid4().hex}"
                descriptor = os.open(name, _NEW | os.O_EXCL, files.PRIVATE, dir_fd=folder)
                os.unlink(name, dir_fd=folder)
        return os.fdopen(descriptor, "w+b")


@contextmanager
def open_journal(
    area: storage.FilesystemArea,
    database: str,
    session: runs.Session | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> Iterator[Journal]:
    """Yield the journal of a new run.

    While the block runs, a lock, a heartbeat and the session show that the run is alive.

    Raises:
        PgOrthancError: The storage folder cannot be written to.
    """
    run = uuid.uuid4().hex
    # Before the lock file exists: who sees that file must find the session's lock taken.
    if session:
        session.hold(run)
    try:
        _give_to_owner(area)
        with area.rights:
            lock = _create_run(area, run, session=session is not None)
            with open_top_folder(area) as top:
                locks = runs.locks_exclude(f"{run}.lock", top)
        journal = Journal(area, database, run, locks)
    except OSError as error:
        raise storage.write_error(area.root, error) from error
    ended = threading.Event()
    arguments = (area, lock, heartbeat_s, ended)
    heart = threading.Thread(target=_heartbeat, args=arguments, daemon=True)
    heart.start()
    try:
        yield journal
    finally:
        ended.set()
        # It may hang in utime(2) if a network file system does; it is a daemon thread.
        heart.join(1)
        # While the lock is held, no other import takes this run for dead.
        _remove_if_finished(area, run)
        os.close(lock)
        area.close()
        if session:
            session.release(run)


def _remove_if_finished(area: storage.FilesystemArea, run: str) -> None:
    """Remove a run, unless it leaves a batch for the next import to clean up."""
    with area.rights, suppress(OSError), open_top_folder(area) as top:
        with open_run_folder(run, top) as folder:
            unfinished = any(name.endswith(".json") for name in os.listdir(folder))
        if not unfinished:
            remove_run(run, top, area)


def _give_to_owner(area: storage.FilesystemArea) -> None:
    """Give what earlier versions created as root to the owner of the area.

    Root works with the owner's rights now, and could not write to it any more. From the
    inside out: while root owns a folder, no other user can put anything into it. Links
    are not followed, and files with a second name are left alone.
    """
    if os.geteuid() or not area.rights.uid:
        return
    with suppress(FileNotFoundError), open_top_folder(area) as top:
        _chown_tree(top, area.rights)


def _chown_tree(folder: int, rights: files.OwnerRights) -> None:
    if os.fstat(folder).st_uid:
        return
    # From here on no other user can exchange what is in the folder.
    os.fchmod(folder, 0o700)
    for name in os.listdir(folder):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if status.st_uid == 0 and stat.S_ISDIR(status.st_mode):
            with open_run_folder(name, folder) as inner:
                _chown_tree(inner, rights)
        elif status.st_uid == 0 and stat.S_ISREG(status.st_mode):
            descriptor = files.open_regular(name, os.O_NOFOLLOW, folder=folder)
            # A second name may be a hard link that was planted to get another file.
            if os.fstat(descriptor).st_nlink == 1:
                os.fchown(descriptor, rights.uid, rights.gid)
            os.close(descriptor)
    os.fchown(folder, rights.uid, rights.gid)


def _create_run(area: storage.FilesystemArea, run: str, *, session: bool) -> int:
    """Create the lock file and the folder of a run; return the descriptor of the lock.

    The lock file gets its name once it is locked and has its marker, so that no other
    import sees it without.
    """
    # Another run may remove the top folder meanwhile, as empty.
    for attempt in range(_TRIES):
        lock = -1
        try:
            with _create_top_folder(area) as top:
                lock = os.open(f"{run}.new", _NEW | os.O_EXCL, 0o644, dir_fd=top)
                runs.try_lock(lock, fcntl.LOCK_EX)
                os.write(lock, runs.Marker.of_this_process(session=session).to_json())
                os.fsync(lock)
                os.rename(f"{run}.new", f"{run}.lock", src_dir_fd=top, dst_dir_fd=top)
                os.mkdir(run, 0o700, dir_fd=top)
                os.fsync(top)
            return lock
        except OSError as error:
            # On a full disk, too, nothing is left that looks like a run.
            if lock >= 0:
                os.close(lock)
            _remove_attempt(area, run)
            if not isinstance(error, FileNotFoundError) or attempt == _TRIES - 1:
                raise
    raise AssertionError


def _remove_attempt(area: storage.FilesystemArea, run: str) -> None:
    with suppress(OSError), open_top_folder(area) as top:
        for name in (f"{run}.new", f"{run}.lock"):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=top)
        os.rmdir(FOLDER, dir_fd=area.descriptor)  # fails while another run is active


def _heartbeat(area: storage.FilesystemArea, lock: int, every_s: float, ended: threading.Event) -> None:
    """Show other machines that the run is alive, by the clock of the storage."""
    while not ended.wait(every_s):
        with area.rights, suppress(OSError):
            os.utime(lock)


@contextmanager
def _create_top_folder(area: storage.FilesystemArea) -> Iterator[int]:
    """As `open_top_folder`, but create the folder if it is missing."""
    with suppress(FileExistsError):
        os.mkdir(FOLDER, dir_fd=area.descriptor)
    with open_top_folder(area) as top:
        yield top


@contextmanager
def open_top_folder(area: storage.FilesystemArea) -> Iterator[int]:
    """Yield a descriptor of the folder of all runs.

    Raises:
        FileNotFoundError: There is none.
        OSError: It is not a folder.
    """
    with open_run_folder(FOLDER, area.descriptor) as top:
        yield top


@contextmanager
def open_run_folder(name: str, top: int) -> Iterator[int]:
    """Yield a descriptor of the folder of one run, in the folder of all runs.

    Raises:
        FileNotFoundError: There is none.
        OSError: It is not a folder.
    """
    descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=top)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_run(run: str, top: int, area: storage.FilesystemArea) -> None:
    """Remove the folder and the lock of a run, and after the last one the top folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        with open_run_folder(run, top) as folder:
            for name in os.listdir(folder):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    os.unlink(name, dir_fd=folder)
        os.rmdir(run, dir_fd=top)
    with suppress(OSError):
        os.unlink(f"{run}.lock", dir_fd=top)
        os.rmdir(FOLDER, dir_fd=area.descriptor)  # fails while another run is active


def create_token(area: storage.FilesystemArea, name: str) -> None:
    """Create an empty file by which other machines recognize that they share the folder.

    Raises:
        PgOrthancError: The storage folder cannot be written to.
    """
    try:
        with area.rights, _create_top_folder(area) as top:
            os.close(os.open(name, _NEW | os.O_EXCL, 0o644, dir_fd=top))
    except OSError as error:
        raise storage.write_error(area.root, error) from error


def remove_token(area: storage.FilesystemArea, name: str) -> None:
    """Remove a token, and the folder of all runs if there are none."""
    with area.rights, suppress(OSError), open_top_folder(area) as top:
        os.unlink(name, dir_fd=top)
        os.rmdir(FOLDER, dir_fd=area.descriptor)
