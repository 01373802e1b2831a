"""What lies in the folders of the filesystem area, part by part; nothing here writes.

A part is two or three hexadecimal digits: all files whose UUID begins with them. Names at
the top that are no folder of ours are left alone: the SQLite index, journals, and the
folders of a storage plugin are among them.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from pgorthanc_cli import files
from pgorthanc_cli.storage.area import UUID_PATTERN, is_uuid
from pgorthanc_cli.storage.filesystem import JOURNAL_FOLDER, FilesystemArea

_TWO_DIGITS = re.compile(r"[0-9a-f]{2}")
_TEMPORARY = re.compile(rf"\.({UUID_PATTERN})\.pgorthanc")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
STALE_S = 120.0  # an import without a heartbeat for so long is dead: eight were missed


class Odd(NamedTuple):
    """What is not the regular file of an attachment in its place.

    Attributes:
        path: Relative to the area.
        kind: `name` (not a UUID), `misplaced` (a UUID in another folder), `temporary` (of
            an import), `symlink`, `not-a-file`, or `unreadable` (a folder).
        detail: What it is, for people.
    """

    path: str
    kind: str
    detail: str = ""


class Listing(NamedTuple):
    """One part of the area.

    Attributes:
        sizes: UUID to bytes; -1 where sizes were not asked for.
        odd: Everything else, in order.
        unreadable: Beginnings of the UUIDs whose folder cannot be read.
    """

    sizes: dict[str, int]
    odd: list[Odd]
    unreadable: list[str]


def is_empty(area: FilesystemArea) -> bool:
    """Return whether no folder of attachments exists in the area.

    Raises:
        OSError: The area cannot be read.
    """
    with area.rights, os.scandir(area.descriptor) as entries:
        return not any(_TWO_DIGITS.fullmatch(entry.name) for entry in entries)


def top_level(area: FilesystemArea) -> list[Odd]:
    """Return files at the top of the area that have the name of an attachment.

    Raises:
        OSError: The area cannot be read.
    """
    with area.rights, os.scandir(area.descriptor) as entries:
        names = sorted(entry.name for entry in entries if is_uuid(entry.name))
    return [Odd(name, "misplaced") for name in names]


def list_part(area: FilesystemArea, digits: str, *, sizes: bool) -> Listing:
    """Return the files whose UUIDs begin with two or three digits.

    What vanishes meanwhile is left out. As root, works with the rights of the area's owner.

    Args:
        area: The area.
        digits: The beginning of the UUIDs. What lies beside the lower folders belongs to
            the part of two digits, or to the one that ends with 0.
        sizes: Whether to ask for the sizes, which takes a system call for each file.

    Raises:
        OSError: The area itself cannot be read.
    """
    listing = Listing({}, [], [])
    with area.rights:
        try:
            upper = os.open(digits[:2], _FOLDER, dir_fd=area.descriptor)
        except OSError as error:
            _note_folder(listing, digits[:2], digits, error)
            return listing
        try:
            _list_upper(listing, upper, digits, sizes=sizes)
        finally:
            os.close(upper)
    return listing


def _list_upper(listing: Listing, upper: int, digits: str, *, sizes: bool) -> None:
    """List the lower folders of one part."""
    try:
        names = sorted(os.listdir(upper))
    except OSError as error:
        _note_folder(listing, digits[:2], digits, error)
        return
    for name in names:
        is_folder = _TWO_DIGITS.fullmatch(name)
        # With three digits, a sixteenth of the lower folders belongs to this part.
        if is_folder and not name.startswith(digits[2:]):
            continue
        if not is_folder and digits[2:] not in ("", "0"):
            continue
        path = f"{digits[:2]}/{name}"
        if not is_folder:
            if (entry := _odd_name(path, name, upper)) is not None:
                listing.odd.append(entry)
            continue
        try:
            lower = os.open(name, _FOLDER, dir_fd=upper)
        except OSError as error:
            _note_folder(listing, path, digits[:2] + name, error)
            continue
        try:
            _list_lower(listing, lower, path, sizes=sizes)
        except OSError as error:
            _note_folder(listing, path, digits[:2] + name, error)
        finally:
            os.close(lower)


def _list_lower(listing: Listing, folder: int, path: str, *, sizes: bool) -> None:
    start = path.replace("/", "")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if not (is_uuid(name) and name.startswith(start)):
                odd = _odd_name(f"{path}/{name}", name, folder)
                listing.odd.extend([odd] if odd else [])
                continue
            try:
                # The directory itself tells the type: no system call for each file.
                if not sizes and entry.is_file(follow_symlinks=False):
                    listing.sizes[name] = -1
                    continue
                status = entry.stat(follow_symlinks=False)
            # Deleted since the directory was read: Orthanc is at work.
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                listing.sizes[name] = status.st_size
            else:
                listing.odd.append(_irregular(f"{path}/{name}", status.st_mode))


def _odd_name(path: str, name: str, folder: int) -> Odd | None:
    """Return an entry whose name is not that of an attachment in this folder."""
    if _TEMPORARY.fullmatch(name):
        return Odd(path, "temporary")
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return Odd(path, "unreadable", error.strerror or str(error))
    if stat.S_ISREG(mode):
        return Odd(path, "misplaced" if is_uuid(name) else "name")
    return _irregular(path, mode)


def _irregular(path: str, mode: int) -> Odd:
    if stat.S_ISLNK(mode):
        return Odd(path, "symlink")
    return Odd(path, "not-a-file", "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket")


def _note_folder(listing: Listing, path: str, start: str, error: OSError) -> None:
    """Record a folder that cannot be listed; one that is missing is simply empty."""
    if isinstance(error, FileNotFoundError):
        return
    if isinstance(error, NotADirectoryError):
        listing.odd.append(Odd(path, "name"))
        return
    listing.unreadable.append(start)
    listing.odd.append(Odd(path, "unreadable", error.strerror or str(error)))


def some_files(area: FilesystemArea, limit: int) -> tuple[list[str], bool]:
    """Return UUIDs of files in the area, at least `limit` if there are so many, and whether all could be read."""
    uuids: list[str] = []
    is_readable = True
    # Names are random, so the first folders are as good a sample as any.
    for number in range(256):
        listing = list_part(area, f"{number:02x}", sizes=False)
        uuids += listing.sizes
        is_readable = is_readable and not listing.unreadable
        if len(uuids) >= limit:
            break
    return uuids, is_readable


def recorded_uuids(area: FilesystemArea) -> dict[str, bool]:
    """Return the attachments that imports have recorded in their journals.

    Returns:
        UUID to whether that import seems to be alive: its lock file is touched regularly.
    """
    recorded: dict[str, bool] = {}
    with area.rights, suppress(OSError):
        top = os.open(JOURNAL_FOLDER, _FOLDER | os.O_NOFOLLOW, dir_fd=area.descriptor)
        try:
            for run in os.listdir(top):
                with suppress(OSError):
                    recorded.update(dict.fromkeys(_journals(top, run), _is_alive(top, run)))
        finally:
            os.close(top)
    return recorded


def _is_alive(top: int, run: str) -> bool:
    try:
        changed = os.stat(f"{run}.lock", dir_fd=top, follow_symlinks=False).st_mtime
    except OSError:
        return False
    # By the clock: a run on another machine cannot be asked, its locks are not seen here.
    return time.time() - changed < STALE_S


def _journals(top: int, run: str) -> Iterator[str]:
    """Yield the UUIDs in the journals of one run; what is no journal is left out."""
    folder = os.open(run, _FOLDER | os.O_NOFOLLOW, dir_fd=top)
    try:
        for name in os.listdir(folder):
            with suppress(OSError, ValueError, TypeError, KeyError):
                with os.fdopen(files.open_regular(name, os.O_NOFOLLOW, folder=folder), "rb") as stream:
                    yield from map(str, json.loads(stream.read())["uuids"])
    finally:
        os.close(folder)
