"""Storing a file without copying its bytes, where the file system can.

A reflink (FICLONE: XFS, Btrfs, ZFS, some NFS servers) shares blocks until one of the two is written to: as good as
a copy. A hard link is the same file under a second name: whoever changes the source later changes the archive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from enum import Enum

from pgorthanc_cli import files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest.walk import Source, shown

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


class Link(Enum):
    """How files come into the filesystem area; AUTO is a reflink where that is possible, else a copy."""

    AUTO = "auto"
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    COPY = "copy"


class Linker:
    """Places files in an area; remembers when a file system cannot, and asks no more."""

    def __init__(self, area: storage.FilesystemArea, how: Link) -> None:
        """For one worker."""
        self.area = area
        self.how = how

    def place(self, uuid: str, source: Source, head: bytes) -> bool:
        """Make the stored file out of the source itself; False: its bytes are to be copied.

        Only a plain file that is still what was read is linked: `head` is how its content begins (a gzip file
        begins otherwise), and its size and time of change must be those of the walk.

        Raises:
            PgOrthancError: REFLINK or HARDLINK was asked for, and the file systems cannot.
        """
        if self.how is Link.COPY or source.member is not None:
            return False
        try:
            descriptor = files.open_regular(source.path)
        except OSError:
            return False  # gone, or replaced, since it was read
        try:
            return self._place(uuid, source, descriptor, head)
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.EPERM, errno.EMLINK):
                raise
            return self._cannot(uuid, source, error)
        finally:
            os.close(descriptor)

    def _place(self, uuid: str, source: Source, descriptor: int, head: bytes) -> bool:
        if not _is(descriptor, source, head):
            return False
        if self.how is Link.HARDLINK:
            self._readable(source, os.fstat(descriptor))
            self.area.link(uuid, descriptor)
        else:
            self.area.create(uuid, lambda new: _clone(descriptor, new))
        if _is(descriptor, source, head):
            return True
        self.area.delete(uuid)  # somebody wrote to it meanwhile
        return False

    def _readable(self, source: Source, status: os.stat_result) -> None:
        """A hard link keeps owner and mode of the source, and Orthanc has to read it."""
        owner = os.fstat(self.area.descriptor)
        if not (
            status.st_mode & stat.S_IROTH
            or (status.st_uid == owner.st_uid and status.st_mode & stat.S_IRUSR)
            or (status.st_gid == owner.st_gid and status.st_mode & stat.S_IRGRP)
        ):
            raise PgOrthancError(
                f"{shown(source)} may not be read by the owner of {self.area.root}: Orthanc could not read a hard link",
                "change the mode of the files, or import with --link auto",
            )

    def _cannot(self, uuid: str, source: Source, error: OSError) -> bool:
        self.area.delete(uuid)  # what was made to be filled
        if self.how is Link.HARDLINK and error.errno == errno.EMLINK:
            return False  # this file has all the names that it can have
        if self.how is Link.AUTO:
            self.how = Link.COPY
            return False
        raise PgOrthancError(
            f"no {self.how.value} of {shown(source)} in {self.area.root}: {error.strerror}",
            "both must be on one file system that can do it (reflink: XFS, Btrfs); or import with --link auto",
        ) from error


def _clone(source: int, new: int) -> None:
    fcntl.ioctl(new, _FICLONE, source)


def _is(descriptor: int, source: Source, head: bytes) -> bool:
    """Whether the open file is what the walk found and what begins like this."""
    status = os.fstat(descriptor)
    return (status.st_size, status.st_mtime_ns) == (source.size, source.mtime_ns) and os.pread(
        descriptor, len(head), 0
    ) == head
