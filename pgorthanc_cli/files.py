"""Reading, creating and replacing files safely: never half a file, never readable for others by accident."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.text import printable

PRIVATE = 0o600
_LEASE_S, _LEASE_POLL_S = 5.0, 0.05
# The number of setgroups(2) by machine: unlike libc's function, the system call changes one thread only.
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "ppc64le": 81, "s390x": 206}
_libc = ctypes.PyDLL(None)
LARGEST = 64_000_000  # bytes; far more than any configuration, list or password
# Pipes that already have a writer: `<(pass show orthanc)`, `/dev/stdin`.
_OPEN_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


class NotRegularFile(OSError):
    """The path is a folder, a pipe, a device or a socket."""


def open_to_read(path: str | Path) -> int:
    """Open a file for reading without waiting for a writer; return the descriptor.

    Raises:
        OSError: It cannot be opened.
        UsageError: It is neither a regular file nor a pipe that the shell has opened.
    """
    if str(path).startswith(_OPEN_PIPES):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return open_regular(path)
    except NotRegularFile as error:
        raise UsageError(f"{printable(str(path))} is {error.strerror}", "name a regular file") from None


def read(path: str | Path, *, limit: int = LARGEST) -> bytes:
    """Return the content of a file that an option or a configuration names.

    Raises:
        OSError: It cannot be read.
        UsageError: As `open_to_read`; also more than `limit` bytes.
    """
    with os.fdopen(open_to_read(path), "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UsageError(
            f"{printable(str(path))} is larger than {limit / 1e6:g} MB, so it is not what this option reads",
            "name the right file",
        )
    return content


@contextmanager
def replacing(path: str | Path, *, mode: int = PRIVATE) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` when the block ends without an error.

    The content is synced before the rename, so a reader sees either the old file or the new one. A device or a pipe
    (`/dev/stdout`) is written directly instead of being replaced.

    Args:
        path: The file to create or replace; its folder must exist.
        mode: Permissions of the new file, independent of the umask.

    Raises:
        PgOrthancError: The file cannot be written; the temporary file is removed.
    """
    final = Path(path)
    try:
        if final.exists() and not final.is_file() and not final.is_dir():
            with final.open("wb") as stream:
                yield stream
            return
        import tempfile  # whose own imports take as long as a connection

        descriptor, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".new", dir=final.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(descriptor, mode)
                yield stream
                stream.flush()
                os.fsync(descriptor)
            os.replace(name, final)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise PgOrthancError(
            f"cannot write {printable(str(final))}: {error.strerror or error}",
            "choose a file in an existing folder that you may write to, on a disk with free space",
        ) from None


def replace(path: str | Path, content: str | bytes, *, mode: int = PRIVATE) -> None:
    """Replace a file, or create it, with this content (text as UTF-8).

    Raises:
        PgOrthancError: As `replacing`.
    """
    with replacing(path, mode=mode) as stream:
        stream.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def create(path: str | Path, content: str) -> None:
    """Create a file that only its owner can read; never replace one, and never follow a link.

    Raises:
        PgOrthancError: Something with that name exists, or the file cannot be written.
    """
    name = printable(str(path))
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, PRIVATE), "wb") as stream:
            stream.write(content.encode("utf-8", "surrogateescape"))
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        raise PgOrthancError(
            f"{name} exists already and was not changed", "choose another name, or move that file away"
        ) from None
    except OSError as error:
        raise PgOrthancError(
            f"cannot write {name}: {error.strerror or error}",
            "choose a new file in an existing folder that you may write to, on a disk with free space",
        ) from None


def open_regular(path: str | os.PathLike[str], flags: int = 0, *, folder: int | None = None) -> int:
    """Open a regular file for reading without blocking; return its descriptor.

    Opening a FIFO in place of a file would block for ever, and opening a device can have side effects.

    Args:
        path: The file; relative to `folder` if that is given.
        flags: More flags for open(2), such as O_NOFOLLOW.
        folder: Descriptor of a folder.

    Raises:
        NotRegularFile: It is not a regular file.
        OSError: It cannot be opened, or another program does not release its lease.
    """
    flags |= os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    deadline = time.monotonic() + _LEASE_S
    while True:
        try:
            descriptor = os.open(path, flags, dir_fd=folder)
            break
        except BlockingIOError:
            # Samba or an NFS server holds a lease, and releases it now.
            if time.monotonic() >= deadline:
                raise OSError(errno.EBUSY, "another program is writing to it") from None
            time.sleep(_LEASE_POLL_S)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return descriptor
    os.close(descriptor)
    raise NotRegularFile(errno.EINVAL, f"{_KINDS.get(kind, 'something else')}, not a regular file")


class OwnerRights:
    """A context in which root has no more rights to files than the owner of a folder; a no-op for other users.

    Only file systems see it (setfsuid(2)), and only in this thread: connections and other files stay root's. New files
    belong to the owner from the start, so their owner never has to be changed, and a link or a name that the owner has
    planted gives access to nothing that the owner could not access alone. Blocks may be nested.
    """

    def __init__(self, uid: int, gid: int) -> None:
        """Take the ids of the folder's owner and group."""
        self.uid = uid
        self.gid = gid
        self._local = threading.local()
        self._needed = os.geteuid() == 0 and (uid, gid) != (0, os.getegid())

    def __enter__(self) -> None:
        if self._needed:
            depth = getattr(self._local, "depth", 0)
            if depth == 0:
                self._local.groups = _become(self.uid, self.gid, [] if self.uid else None)
            self._local.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        if self._needed:
            self._local.depth -= 1
            if self._local.depth == 0:
                _become(os.geteuid(), os.getegid(), self._local.groups)


def _become(uid: int, gid: int, groups: list[int] | None) -> list[int] | None:
    """Set the file system ids and the groups of this thread (None: keep the groups); return its former groups.

    Raises:
        PgOrthancError: This system or this container does not allow it.
    """
    before = None if groups is None else os.getgroups()
    try:
        done = before == groups or (groups is not None and _set_groups(groups))
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        # setfsuid(2) reports no failure; with -1 it changes nothing, and returns the
        # present id.
        done = done and (_libc.setfsgid(-1), _libc.setfsuid(-1)) == (gid, uid)
    except (AttributeError, OSError):  # not Linux; not in this container
        done = False
    if not done:
        raise PgOrthancError(
            f"root cannot take on the rights of the storage folder's owner (user id {uid}) here",
            f"run it as that user: sudo -u '#{uid}' pgorthanc ...; "
            "in a container, add the capabilities SETUID and SETGID",
        )
    return before


def _set_groups(groups: list[int]) -> bool:
    """Set the supplementary groups of this thread, False if that fails."""
    number = _SETGROUPS.get(platform.machine())
    if number is None:
        os.setgroups(groups)
        return True
    ids = (ctypes.c_uint * len(groups))(*groups)
    return bool(_libc.syscall(number, len(groups), ids) == 0)


def read_password(path: str | Path, origin: str) -> str:
    """Return the first line of a file; `origin` is the option that names it.

    Raises:
        UsageError: It cannot be read, is not a regular file, or holds no password.
    """
    try:
        content = read(path).decode("utf-8")
    except OSError as error:
        raise UsageError(f"{origin}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{origin}: {path} is not UTF-8 text") from None
    except UsageError as error:
        raise UsageError(f"{origin}: {error.message}", error.hint) from None
    password = content.partition("\n")[0].rstrip("\r")
    if not password:
        raise UsageError(f"{origin}: the first line of {path} is empty", "put the password there")
    if "\0" in password:
        raise UsageError(
            f"{origin}: the password in {path} contains a NUL character", "write it as plain text"
        )
    return password
