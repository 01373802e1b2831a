"""Files that must survive a power failure: synced one by one, or many together."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType

_FEW = 8  # files; more are synced together with their whole file system
_LARGE_BYTES = 256 << 10  # of a file whose writing is started before the others are complete
_SYNC_FILE_RANGE_WRITE = 2  # fcntl.h
# linux/magic.h: ext4, XFS, Btrfs. Of others it is not known that syncfs makes data
# durable: FUSE does not.
_TRUSTED = {0xEF53, 0x58465342, 0x9123683E}


class SyncGroup:
    """Makes new files below a folder durable, together with their names."""

    def __init__(self, root: Path | int) -> None:
        """Open the folder (a path, or a descriptor to copy) before the files are written.

        `sync` reports the errors since then.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._descriptor = os.open(".", flags, dir_fd=root) if isinstance(root, int) else os.open(root, flags)

    def __enter__(self) -> SyncGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def sync(self, names: Sequence[str]) -> None:
        """Wait until these files (relative to the root) and their folders are on disk.

        Raises:
            OSError: Something could not be written.
        """
        if len(names) > _FEW and _can_sync_file_system(self._descriptor):
            if _libc.syncfs(self._descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return
        for name in names:
            sync_file(name, self._descriptor)
        folders = {str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."}
        for folder in sorted(folders):
            sync_file(folder, self._descriptor, os.fsync)
        if names:
            os.fsync(self._descriptor)


def sync_file(name: str, folder: int, how: Callable[[int], None] = os.fdatasync) -> None:
    """Make a file or folder durable; never wait for a FIFO, never follow a link."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        how(descriptor)
    finally:
        os.close(descriptor)


def start_writing(descriptor: int) -> None:
    """Have the disk begin to write a file that will be synced with others, if it is large.

    By itself, the kernel begins when they are synced, or after five seconds. Without Linux, this does nothing.
    """
    if os.fstat(descriptor).st_size >= _LARGE_BYTES:
        with suppress(AttributeError):
            _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


_libc = ctypes.CDLL(None, use_errno=True)


def _can_sync_file_system(descriptor: int) -> bool:
    """Return whether syncfs reports write errors (Linux 5.8) on this file system."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if platform.system() != "Linux" or not version or (int(version[1]), int(version[2])) < (5, 8):
        return False
    status = (ctypes.c_long * 32)()  # struct statfs: the type comes first
    return _libc.fstatfs(descriptor, status) == 0 and status[0] in _TRUSTED
