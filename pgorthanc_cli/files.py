"""Create and replace files safely: whole or not at all, and unreadable for others where they hold names or secrets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.text import printable

PRIVATE = 0o600


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
