"""Which files to import, in which order: arguments, folders, lists, archives, shards."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import IO, BinaryIO, NamedTuple

from pgorthanc_cli import dicom, files
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.text import printable


class Source(NamedTuple):
    """A file to import, or a member of a ZIP archive.

    Attributes:
        path: The file, as the operating system knows it (any bytes, by `os.fsdecode`).
        member: The position of the member in the archive, if the source is one.
        member_name: Its name there.
        size: Its bytes, as far as known: for batches and progress.
        mtime_ns: Its modification time.
        problem: Why it cannot be read at all, noticed while walking.
        replaces: The UUID under which an earlier version of this file was stored, if
            known.
        known: The index has this content already: the file is counted, and not read.
    """

    path: str
    member: int | None = None
    member_name: str = ""
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None
    replaces: str = ""
    known: bool = False

    @property
    def name(self) -> str:
        """The path, or `archive.zip!member`, whatever bytes it has."""
        return self.path if self.member is None else f"{self.path}!{self.member_name}"

    @property
    def display_name(self) -> str:
        """The name to print, on one line."""
        return printable(self.name)


def walk(paths: Iterable[str], own_folders: Iterable[str | os.PathLike[str]] = ()) -> Iterator[Source]:
    """Yield the files named, and those in the folders named, sorted within each folder.

    Names are sorted as bytes. Symbolic links are followed. A link to a folder above
    itself, the storage areas (`own_folders`), and everything that cannot be read come as
    sources with a `problem`. Memory: the names of one folder at each depth.
    """
    storage_ids = {_identity(os.stat(folder)) for folder in own_folders if os.path.isdir(folder)}
    for path in paths:
        yield from _walk(path, (), storage_ids)


def _walk(
    path: str, ancestors: tuple[tuple[int, int], ...], storage_ids: set[tuple[int, int]]
) -> Iterator[Source]:
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            problem = None if stat.S_ISREG(status.st_mode) else "not a regular file"
            size, mtime_ns = status.st_size, status.st_mtime_ns
            yield Source(path, size=size, mtime_ns=mtime_ns, problem=problem)
            return
        folder_id = _identity(status)
        # Importing what is being written would never end.
        if folder_id in storage_ids:
            yield Source(path, problem="the storage area itself")
            return
        if folder_id in ancestors:
            yield Source(path, problem="symbolic link to a folder above it")
            return
        # As bytes, names take half the memory, and sort in the order of their bytes.
        names = os.listdir(os.fsencode(path))
        names.sort()
        for name in names:
            child = os.path.join(path, os.fsdecode(name))
            yield from _walk(child, (*ancestors, folder_id), storage_ids)
    except OSError as error:
        yield Source(path, problem=error.strerror or str(error))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def listed(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list, one a line or separated by NUL (`find -print0`)."""
    rest = b""
    separator = b"\n"
    # Unlike read(), it returns what a pipe has: `find | pgorthanc import` starts
    # immediately.
    while block := os.read(stream.fileno(), 1 << 16):
        # No path has a NUL, so one decides what the list is.
        if b"\0" in block:
            separator = b"\0"
        *lines, rest = (rest + block).split(separator)
        yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip())
    if rest.strip():
        yield os.fsdecode(rest)


class ZipArchive(zipfile.ZipFile):
    """A ZIP archive in a regular file; never waits for a FIFO that has taken its place.

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
    """Yield the files in a ZIP archive, in the order of its directory."""
    with ZipArchive(path) as archive:
        for position, info in enumerate(archive.infolist()):
            if not info.is_dir():
                yield Source(path, position, info.filename, info.file_size)


# --- shards -----------------------------------------------------------------------------


class ShardBy(Enum):
    """What is never split between two shards."""

    # By its path below the one that was named: no file is read.
    FOLDER = "folder"
    # By PatientID: every machine reads the first bytes of every file.
    PATIENT = "patient"


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`, for machines that import the same folders.

    A file alone decides which shard it belongs to: the machines need not know of each
    other, and the shard of a machine that was lost can be imported anywhere.
    """

    number: int
    count: int
    by: ShardBy = ShardBy.FOLDER

    @classmethod
    def parse(cls, text: str, by: ShardBy = ShardBy.FOLDER) -> Shard:
        """Return the shard written as `2/8`.

        Raises:
            UsageError: It is not written so, or there is no such shard.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"the shard is {text!r}, expected one of 1/N to N/N, such as 2/8")
        return cls(int(match[1]), int(match[2]), by)

    def walk(
        self, paths: Iterable[str], own_folders: Iterable[str | os.PathLike[str]] = ()
    ) -> Iterator[Source]:
        """Yield the sources of `walk` that belong to this shard."""
        own_folders = tuple(own_folders)
        for path in paths:
            for source in walk([path], own_folders):
                if self.contains(source, path):
                    yield source

    def contains(self, source: Source, root: str) -> bool:
        """Whether a file below `root` belongs to this shard."""
        key = patient_key(source) if self.by is ShardBy.PATIENT else None
        if key is None:
            key = os.fsencode(os.path.relpath(os.path.dirname(source.path) or ".", root))
        return bucket(key, self.count) == self.number - 1


def patient_key(source: Source) -> bytes | None:
    """Return what all files of a patient have in common; None if that is unknown."""
    return None if source.problem else dicom.patient_key(source.path)


def bucket(key: bytes, count: int) -> int:
    """Return a number below `count`, the same on every machine for the same key."""
    # hash() is salted, and differs from process to process.
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % count
