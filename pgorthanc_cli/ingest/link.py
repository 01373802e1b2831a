"""Storing a file without copying its bytes, where the file system can.

A reflink (FICLONE: XFS, Btrfs, ZFS, some NFS servers) shares blocks until one of the two
files is written to: as good as a copy. A hard link is the same file under a second name:
a later change of the source changes the archive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from pgorthanc_cli import files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest.settings import Link
from pgorthanc_cli.ingest.walk import Source

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


class Linker:
    """Links files into an area; AUTO becomes COPY once the file system has refused."""

    def __init__(self, area: storage.FilesystemArea, link: Link) -> None:
        self.area = area
        self.link = link

    def place(self, uuid: str, source: Source, head: bytes) -> bool:
        """Link a source into the area; return False if its bytes have to be copied.

        Only a file that has not changed since it was read is linked: it begins with
        `head` (a gzip file does not), and has the size and the modification time of the
        walk.

        Raises:
            PgOrthancError: REFLINK or HARDLINK is required, and the file systems cannot
                do it.
        """
        if self.link is Link.COPY or source.member is not None:
            return False
        try:
            descriptor = files.open_regular(source.path)
        except OSError:
            return False  # gone, or replaced, since it was read
        try:
            return self._place(uuid, source, descriptor, head)
        except OSError as error:
            # EPERM also comes from fs.protected_hardlinks, for a file of another user
            # (proc(5)).
            if error.errno not in (*_UNSUPPORTED, errno.EPERM, errno.EMLINK):
                raise
            return self._fall_back(uuid, source, error)
        finally:
            os.close(descriptor)

    def _place(self, uuid: str, source: Source, descriptor: int, head: bytes) -> bool:
        if not _unchanged(descriptor, source, head):
            return False
        if self.link is Link.HARDLINK:
            self._require_readable(source, os.fstat(descriptor))
            self.area.link(uuid, descriptor)
        else:

            def clone(new: int) -> None:
                fcntl.ioctl(new, _FICLONE, descriptor)

            self.area.create(uuid, clone)
        # Again, as the program that writes the source may have begun meanwhile.
        if _unchanged(descriptor, source, head):
            return True
        self.area.delete(uuid)  # another program wrote to it meanwhile
        return False

    def _require_readable(self, source: Source, status: os.stat_result) -> None:
        """Refuse a hard link that Orthanc could not read.

        It keeps the owner and the mode of the source.
        """
        owner = os.fstat(self.area.descriptor)
        if not (
            status.st_mode & stat.S_IROTH
            or (status.st_uid == owner.st_uid and status.st_mode & stat.S_IRUSR)
            or (status.st_gid == owner.st_gid and status.st_mode & stat.S_IRGRP)
        ):
            raise PgOrthancError(
                f"{source.display_name} may not be read by the owner of "
                f"{self.area.root}: Orthanc could not read a hard link",
                "change the mode of the files, or import with --link auto",
            )

    def _fall_back(self, uuid: str, source: Source, error: OSError) -> bool:
        self.area.delete(uuid)  # the new file that was to be filled
        if self.link is Link.HARDLINK and error.errno == errno.EMLINK:
            return False  # this file has the maximal number of links
        # The area and most sources are on the same two file systems: do not try again.
        if self.link is Link.AUTO:
            self.link = Link.COPY
            return False
        raise PgOrthancError(
            f"no {self.link.value} of {source.display_name} in {self.area.root}: {error.strerror}",
            "both must be on one file system that can do it (reflink: XFS, Btrfs); or "
            "import with --link auto",
        ) from error


def _unchanged(descriptor: int, source: Source, head: bytes) -> bool:
    """Whether an open file is still the one of the walk, and begins with `head`."""
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns):
        return False
    return os.pread(descriptor, len(head), 0) == head
