"""Orthanc's filesystem storage area: `ab/cd/abcd...` below a root (INGEST.md 12.1)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pgorthanc_cli import files
from pgorthanc_cli.constants import file_path
from pgorthanc_cli.storage import durable
from pgorthanc_cli.storage.area import is_uuid, write_error

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Orthanc removes empty folders, so one may vanish between its creation and its use.
_MAX_ATTEMPTS = 6
JOURNAL_FOLDER = ".pgorthanc"  # of imports, in the area

_Created = TypeVar("_Created")


class FilesystemArea:
    """Attachments as files.

    As root, works with the rights of the folder's owner (see `files.OwnerRights`),
    through descriptors of folders, and follows no symbolic link: the owner of the area
    must not decide where root writes. Picklable; not thread-safe.
    """

    def __init__(self, root: Path, *, sync: bool = True) -> None:
        """Open nothing yet; `sync=False` omits fsync (Orthanc's SyncStorageArea)."""
        self.root = root
        self.sync = sync
        self._identity: tuple[int, int] | None = None  # device and inode of the root folder
        self._unsynced: list[str] | None = None  # files of a `batch`, relative to the root
        self._descriptor = -1
        self._folder = ("", -1)  # the folder of the last new file: its four digits, its descriptor
        self._rights: files.OwnerRights | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the descriptors: another process opens the folder again."""
        return {"root": self.root, "sync": self.sync, "_identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], sync=state["sync"])  # type: ignore[misc]
        self._identity = state["_identity"]

    def close(self) -> None:
        """Close the folder; the next use opens it again."""
        for descriptor in (self._folder[1], self._descriptor):
            if descriptor != -1:
                os.close(descriptor)
        self._folder, self._descriptor = ("", -1), -1

    def __del__(self) -> None:
        self.close()

    def path(self, uuid: str) -> Path:
        """Return the path of an attachment's file."""
        return self.root / file_path(uuid)

    def prepare(self) -> None:
        """Create the root folder if it is missing, and check that it is writable.

        Raises:
            PgOrthancError: The folder cannot be created or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self.rights:
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.descriptor, effective_ids=True):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise write_error(self.root, error) from error

    @property
    def descriptor(self) -> int:
        """An open descriptor of the root folder.

        Raises:
            OSError: It cannot be opened, or it is not the folder that was opened first.
        """
        if self._descriptor == -1:
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            identity = status.st_dev, status.st_ino
            if self._identity not in (None, identity):
                os.close(descriptor)
                raise OSError(errno.ESTALE, "another folder has taken its place meanwhile")
            self._descriptor, self._identity = descriptor, identity
            self._rights = files.OwnerRights(status.st_uid, status.st_gid)
        return self._descriptor

    @property
    def rights(self) -> files.OwnerRights:
        """The rights of the folder's owner, with which all work in the folder is done."""
        if self._rights is None:
            _ = self.descriptor
        assert self._rights is not None  # noqa: S101 - set together with the descriptor
        return self._rights

    # --- writing ------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Sync everything stored within the block together, which is much cheaper.

        The files have their final names from the start. If the block fails, some of them
        exist and some do not: the caller must have recorded their UUIDs before.

        Raises:
            OSError: Something could not be made durable.
        """
        with durable.SyncGroup(self.descriptor) as group:
            self._unsynced = []
            try:
                yield
                if self.sync:
                    with self.rights:
                        group.sync(self._unsynced)
            finally:
                self._unsynced = None

    @contextmanager
    def each_alone(self) -> Iterator[None]:
        """Within a `batch`: make each file of the block durable by itself, and name it only then."""
        unsynced, self._unsynced = self._unsynced, None
        try:
            yield
        finally:
            self._unsynced = unsynced

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the chunks to a new file."""

        def write(descriptor: int) -> None:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]

        self.create(uuid, write)

    def create(self, uuid: str, write: Callable[[int], None]) -> None:
        """Create a file, calling `write` with its descriptor.

        Outside a `batch` the file is written under a temporary name, synced and renamed,
        so that a file with its final name is always complete.
        """
        in_batch = self._unsynced is not None
        name = _checked(uuid) if in_batch else temporary_name(uuid)
        with self.rights:
            folder, descriptor = self._in_folder(
                uuid, lambda folder: (folder, os.open(name, _NEW_FILE, 0o666, dir_fd=folder))
            )
            try:
                try:
                    write(descriptor)
                    if self.sync and not in_batch:
                        os.fdatasync(descriptor)
                    elif self.sync:
                        durable.start_writing(descriptor)
                finally:
                    os.close(descriptor)
                if not in_batch:
                    os.rename(name, uuid, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                raise
            self._sync_name(uuid, folder)

    def link(self, uuid: str, descriptor: int) -> None:
        """Give an open file its name in the area as well; its owner and mode stay.

        The link itself is created with the rights of the caller: the owner of the area
        may not link files of others (fs.protected_hardlinks).
        """
        source = f"/proc/self/fd/{descriptor}"
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            with self.rights:
                folder = self._in_folder(uuid, lambda folder: folder)
            try:
                os.link(source, uuid, dst_dir_fd=folder, follow_symlinks=True)
                break
            except FileNotFoundError:  # the folder was removed as empty
                self._forget_folder()
                if attempt == _MAX_ATTEMPTS:
                    raise
        with self.rights:
            self._sync_name(uuid, folder)

    def _sync_name(self, uuid: str, folder: int) -> None:
        """Make the name of a new file durable, now or with the batch."""
        if self._unsynced is not None:
            self._unsynced.append(file_path(uuid))
        elif self.sync:
            os.fsync(folder)

    # --- reading and deleting -----------------------------------------------------------

    def open(self, uuid: str, file_type: int = 0) -> BinaryIO:
        """Open the file of an attachment for reading.

        Raises:
            OSError: There is none, or it is not a regular file.
        """
        with self.rights, self._open_folders(uuid) as (_, lower):
            return os.fdopen(files.open_regular(uuid, os.O_NOFOLLOW, folder=lower), "rb")

    def open_file(self, uuid: str, path: str = "") -> int:
        """Open the file of an attachment for reading; return its descriptor.

        One system call, where `open` takes one for each folder.

        Args:
            uuid: Of the attachment.
            path: Where it is, relative to the area or absolute; empty: in the usual place.

        Raises:
            OSError: There is none, or it is not a regular file.
        """
        place = path or file_path(_checked(uuid))
        with self.rights:
            return files.open_regular(place, os.O_NOFOLLOW, folder=self.descriptor)

    def stat(self, path: str) -> os.stat_result:
        """Return the status of a file by its path, relative to the area; no link is followed.

        Raises:
            OSError: There is none.
        """
        with self.rights:
            return os.stat(path, dir_fd=self.descriptor, follow_symlinks=False)

    def delete(self, uuid: str, file_type: int = 0) -> None:
        """Delete the file, then its two folders if they are empty, as Orthanc does."""
        if not is_uuid(uuid):
            return  # no attachment has such a name
        with suppress(FileNotFoundError), self.rights, self._open_folders(uuid) as (upper, lower):
            for name in (temporary_name(uuid), uuid):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=lower)
            with suppress(OSError):
                os.rmdir(uuid[2:4], dir_fd=upper)
                os.rmdir(uuid[:2], dir_fd=self.descriptor)

    def discard_temporary(self, uuid: str) -> bool:
        """Delete what a killed process has left of a file that it was writing; return whether it had.

        Only for a caller that knows that no other one writes this attachment.
        """
        with suppress(FileNotFoundError), self.rights, self._open_folders(uuid) as (_, lower):
            os.unlink(temporary_name(uuid), dir_fd=lower)
            return True
        return False

    def sync_file(self, uuid: str) -> None:
        """Make a file durable that another process has created, and its name."""
        with self.rights, self._open_folders(uuid) as (upper, lower):
            durable.sync_file(uuid, lower, os.fsync)
            for folder in (lower, upper, self.descriptor):
                os.fsync(folder)

    # --- folders ------------------------------------------------------------------------

    @contextmanager
    def _open_folders(self, uuid: str) -> Iterator[tuple[int, int]]:
        """Open the two folders of an attachment, one through the other."""
        upper = open_folder(_checked(uuid)[:2], self.descriptor)
        try:
            lower = open_folder(uuid[2:4], upper)
            try:
                yield upper, lower
            finally:
                os.close(lower)
        finally:
            os.close(upper)

    def _in_folder(self, uuid: str, create: Callable[[int], _Created]) -> _Created:
        """Call `create` with the folder of an attachment; create missing folders.

        The folder stays open for the next attachment.
        """
        digits = _checked(uuid)[:4]
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                if self._folder[0] != digits:
                    self._forget_folder()
                    with self._open_folders(uuid) as (_, lower):
                        self._folder = digits, os.dup(lower)
                return create(self._folder[1])
            except FileNotFoundError:  # missing, or removed as empty while it was open here
                self._forget_folder()
                if attempt == _MAX_ATTEMPTS:
                    raise
            # If the upper folder is removed in between, the next attempt creates both
            # again.
            with suppress(FileNotFoundError):
                self._create_folder(digits[:2], self.descriptor)
                upper = open_folder(digits[:2], self.descriptor)
                try:
                    self._create_folder(digits[2:], upper)
                finally:
                    os.close(upper)
        raise AssertionError

    def _forget_folder(self) -> None:
        if self._folder[1] != -1:
            os.close(self._folder[1])
        self._folder = ("", -1)

    def _create_folder(self, name: str, parent: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            if self.sync and self._unsynced is None:
                os.fsync(parent)


def temporary_name(uuid: str) -> str:
    """Return the name that a file has while it is written."""
    return f".{_checked(uuid)}.pgorthanc"


def _checked(uuid: str) -> str:
    """Return a UUID; any other name, such as `../x`, could lead out of the area."""
    if not is_uuid(uuid):
        raise OSError(errno.EINVAL, "its name is not a UUID")
    return uuid


def open_folder(name: str, parent: int) -> int:
    """Open a folder within another one; as root never through a symbolic link.

    Raises:
        OSError: There is none, or it is a link.
    """
    no_follow = os.O_NOFOLLOW if os.geteuid() == 0 else 0
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_follow, dir_fd=parent)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise NotADirectoryError(
                errno.ENOTDIR, f"{name} in it is a symbolic link, which root does not follow"
            ) from None
        raise
