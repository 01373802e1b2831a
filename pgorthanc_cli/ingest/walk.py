"""Which files to import, in which order: arguments, folders, lists of files, members of archives."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO, NamedTuple

from pgorthanc_cli import files
from pgorthanc_cli.text import printable


class Source(NamedTuple):
    """One thing to import: a file, or a member of a ZIP archive.

    Attributes:
        path: The file, as the operating system knows it (any bytes, by `os.fsdecode`).
        member: The position of the member in the archive, if the file is one.
        member_name: Its name there.
        size: Its bytes, as far as known: for batches and progress.
        mtime_ns: When it was last changed, by the file system.
        problem: Why it cannot be read at all, found while walking.
        replaces: The uuid of the stored file that an earlier version of this file has become, if that is known.
    """

    path: str
    member: int | None = None
    member_name: str = ""
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None
    replaces: str = ""


def walk(paths: Iterable[str], storage_dir: str | os.PathLike[str] | None = None) -> Iterator[Source]:
    """The files named, and those in folders named, in sorted order of path components within each folder.

    Symbolic links are followed; a link back to a folder above itself is reported as a problem, as is everything
    that cannot be read, and the storage area that is written to. Memory: the names of one folder at each depth.
    """
    area = None
    if storage_dir is not None and os.path.isdir(storage_dir):
        area = _identity(os.stat(storage_dir))
    for path in paths:
        yield from _walk(path, (), area)


def _walk(path: str, above: tuple[tuple[int, int], ...], area: tuple[int, int] | None) -> Iterator[Source]:
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            problem = None if stat.S_ISREG(status.st_mode) else "not a regular file"
            yield Source(path, size=status.st_size, mtime_ns=status.st_mtime_ns, problem=problem)
            return
        here = _identity(status)
        if here in (*above, area):
            yield Source(
                path,
                problem="the storage area itself" if here == area else "symbolic link to a folder above it",
            )
            return
        names = os.listdir(os.fsencode(path))  # bytes: half the memory, and the order of their bytes
        names.sort()
        for name in names:
            yield from _walk(os.path.join(path, os.fsdecode(name)), (*above, here), area)
    except OSError as error:
        yield Source(path, problem=error.strerror or str(error))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def listed(stream: BinaryIO) -> Iterator[str]:
    """The paths of a list: one on each line, any bytes, or separated by NUL as `find -print0` writes them."""
    rest = b""
    separator = b"\n"
    while block := os.read(stream.fileno(), 1 << 16):
        if b"\0" in block:
            separator = b"\0"
        *lines, rest = (rest + block).split(separator)
        yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip())
    if rest.strip():
        yield os.fsdecode(rest)


class ZipArchive(zipfile.ZipFile):
    """A ZIP archive in a regular file; a FIFO that has taken its place is not waited for.

    Raises:
        OSError: It cannot be opened.
        zipfile.BadZipFile: It is damaged.
    """

    _stream: IO[bytes] | None = None

    def __init__(self, path: str) -> None:
        self._stream = os.fdopen(files.open_regular(path), "rb")
        try:
            super().__init__(self._stream)
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Close the archive and its file."""
        super().close()
        if self._stream:
            self._stream.close()


def members(path: str) -> Iterator[Source]:
    """The files in a ZIP archive, in the order of its directory."""
    with ZipArchive(path) as archive:
        for position, info in enumerate(archive.infolist()):
            if not info.is_dir():
                yield Source(path, position, info.filename, info.file_size)


def shown(source: Source) -> str:
    """The name of a source for people, on one line, whatever it contains; `archive.zip!member`."""
    name = source.path if source.member is None else f"{source.path}!{source.member_name}"
    return printable(name)
