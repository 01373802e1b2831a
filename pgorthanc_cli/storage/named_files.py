"""Files at any paths below a folder, as the advanced-storage plugin keeps them (STORAGE.md H1)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pgorthanc_cli import files
from pgorthanc_cli.storage.filesystem import FilesystemArea, open_folder, temporary_name

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Orthanc removes empty folders, so one may vanish between its creation and its use.
_MAX_ATTEMPTS = 6


class NamedFiles:
    """Files by their paths relative to a folder; as root, with the rights of its owner.

    A new file has a temporary name until it is published, which contains the UUID of its
    attachment: what a killed process has left is found by it.
    """

    def __init__(self, root: Path) -> None:
        """Open nothing yet."""
        self.area = FilesystemArea(root)
        self.root = root

    def stat(self, name: str) -> os.stat_result:
        """Return the status of a file; no link is followed.

        Raises:
            OSError: There is none.
        """
        with self.area.rights, self._folder(name) as (folder, last):
            return os.stat(last, dir_fd=folder, follow_symlinks=False)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            OSError: There is none, or it is not a regular file.
        """
        with self.area.rights, self._folder(name) as (folder, last):
            return os.fdopen(files.open_regular(last, os.O_NOFOLLOW, folder=folder), "rb")

    def stage(self, name: str, uuid: str, chunks: Iterable[bytes | memoryview]) -> str:
        """Write a file under its temporary name, not synced; replace what an interrupted run has left.

        Returns:
            That name, relative to the root.
        """
        temporary = temporary_name(uuid)
        with self.area.rights:
            descriptor = self._create(name, temporary)
            try:
                for chunk in chunks:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
            finally:
                os.close(descriptor)
        return os.path.join(os.path.dirname(name), temporary)

    def publish(self, name: str, uuid: str) -> str:
        """Give a staged file its name, in place of any other; return it."""
        with self.area.rights, self._folder(name) as (folder, last):
            os.rename(temporary_name(uuid), last, src_dir_fd=folder, dst_dir_fd=folder)
        return name

    def discard(self, name: str, uuid: str) -> None:
        """Remove a staged file, if there is one."""
        with suppress(FileNotFoundError), self.area.rights, self._folder(name) as (folder, _):
            os.unlink(temporary_name(uuid), dir_fd=folder)

    def delete(self, name: str, uuid: str) -> None:
        """Delete a file and what is staged for it, then its folders if they are empty, as Orthanc does."""
        with suppress(FileNotFoundError), self.area.rights, self._folder(name) as (folder, last):
            for each in (temporary_name(uuid), last):
                with suppress(FileNotFoundError):
                    os.unlink(each, dir_fd=folder)
        parts = _parts(name)[:-1]
        with suppress(OSError), self.area.rights:
            while parts:
                with self._folder("/".join(parts)) as (folder, last):
                    os.rmdir(last, dir_fd=folder)
                parts.pop()

    @contextmanager
    def _folder(self, name: str) -> Iterator[tuple[int, str]]:
        """Open the folder of a file, one folder through the other; yield it and the last part."""
        *folders, last = _parts(name)
        descriptor = os.dup(self.area.descriptor)
        try:
            for part in folders:
                following = open_folder(part, descriptor)
                os.close(descriptor)
                descriptor = following
            yield descriptor, last
        finally:
            os.close(descriptor)

    def _create(self, name: str, temporary: str) -> int:
        """Return the descriptor of a new file in the folder of another one; create missing folders."""
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                with self._folder(name) as (folder, _):
                    with suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=folder)
                    return os.open(temporary, _NEW_FILE, 0o666, dir_fd=folder)
            except FileNotFoundError:
                if attempt == _MAX_ATTEMPTS:
                    raise
            parts = _parts(name)[:-1]
            with suppress(FileNotFoundError):
                for depth in range(1, len(parts) + 1):
                    with self._folder("/".join(parts[:depth])) as (folder, last), suppress(FileExistsError):
                        os.mkdir(last, dir_fd=folder)
        raise AssertionError


def _parts(name: str) -> list[str]:
    """Return the parts of a relative path.

    Raises:
        OSError: It is empty, or leads out of the folder.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in name:
        raise OSError(errno.EINVAL, "its path leads out of the storage folder")
    return parts
