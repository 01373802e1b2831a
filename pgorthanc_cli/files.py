"""Create and replace files safely: whole or not at all, and unreadable for others where they hold names or secrets."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.text import printable

PRIVATE = 0o600
LARGEST = 64_000_000  # bytes of a file that is read whole: no configuration, list or password comes near it
# What a shell hands over (`<(pass show orthanc)`, `/dev/stdin`): a pipe, but one that already has a writer.
_HANDED_OVER = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def opened(path: str | Path) -> int:
    """Open a file for reading, and never wait for a writer; return the descriptor.

    Raises:
        OSError: It cannot be opened.
        UsageError: It is not a regular file, and no pipe that a shell has handed over.
    """
    handed = str(path).startswith(_HANDED_OVER)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if handed else os.O_NONBLOCK))
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG and not (handed and kind != stat.S_IFDIR):
        os.close(descriptor)
        said = f"{printable(str(path))} is {_KINDS.get(kind, 'something else')}, not a regular file"
        raise UsageError(said, "name a regular file")
    return descriptor


def read(path: str | Path, *, limit: int = LARGEST) -> bytes:
    """Return the content of a file that an option or a configuration names.

    Raises:
        OSError: It cannot be read.
        UsageError: As `opened`; also more than `limit` bytes.
    """
    with os.fdopen(opened(path), "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        said = (
            f"{printable(str(path))} is larger than {limit / 1e6:g} MB, so it is not what this option reads"
        )
        raise UsageError(said, "name the right file")
    return content


@contextmanager
def replacing(path: str | Path, *, mode: int = PRIVATE) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` when the block ends without an error.

    The content is synced before the rename; a reader sees the old file or the new one, whole. A device or a pipe
    (`/dev/stdout`) is written directly, because replacing it would be wrong.

    Args:
        path: The file to create or replace; its folder must exist.
        mode: Permissions of the new file, independent of the umask.

    Raises:
        PgOrthancError: The file cannot be written; the message names it, and nothing of the new one is left.
    """
    final = Path(path)
    try:
        if final.exists() and not final.is_file() and not final.is_dir():
            with final.open("wb") as stream:
                yield stream
            return
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
