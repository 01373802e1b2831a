"""How far a move is: a small file in the folder at one end of it.

It is only a short cut. What it says was proved when it was written; without it, what is in the
target is compared once more.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from pgorthanc_cli import files
from pgorthanc_cli.placement.model import MoveSettings
from pgorthanc_cli.storage import FilesystemArea, write_error

NAME = ".pgorthanc-move.json"
_NEW = f"{NAME}.new"
_VERSION = 1
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Record:
    """What earlier runs have proved.

    Attributes:
        index: The identity of the index.
        source, target: The ends.
        after: Internal id and file type: up to these, all attachments in the target were proved.
        copied: All were.
        switched: The switch was done.
    """

    index: str
    source: str
    target: str
    after: tuple[int, int] = (-1, -1)
    copied: bool = False
    switched: bool = False

    def is_trusted(self, resource: int, file_type: int) -> bool:
        """Return whether this attachment, if it is in the target, was proved there."""
        return self.copied or (resource, file_type) <= self.after


class Keeper:
    """Reads and writes the record of a move."""

    def __init__(self, settings: MoveSettings, index: str) -> None:
        """Take the folder: the target, or the source of a move into large objects."""
        root = settings.target.folder or settings.source.folder
        assert root  # noqa: S101 - one end is a folder
        self._area = FilesystemArea(root)
        self._is_target = settings.target.folder is not None
        target = f"{settings.target} {settings.compression or ''}".strip()
        self._blank = Record(index, str(settings.source), target)

    def read(self) -> Record:
        """Return the record, a new one if there is none of this move."""
        blank = self._blank
        # A record that cannot be understood costs one more comparison, and nothing else.
        with suppress(OSError, ValueError, TypeError, KeyError):
            with self._area.rights:
                descriptor = files.open_regular(NAME, os.O_NOFOLLOW, folder=self._area.descriptor)
            with os.fdopen(descriptor, "rb") as stream:
                content = json.loads(stream.read())
            if content.pop("version") == _VERSION:
                record = Record(**content)
                record.after = (int(record.after[0]), int(record.after[1]))
                # One of another move proves nothing about this one.
                if (record.index, record.source, record.target) == (blank.index, blank.source, blank.target):
                    return record
        return Record(blank.index, blank.source, blank.target)

    def write(self, record: Record) -> None:
        """Replace the record; a source that is read-only does without.

        Raises:
            PgOrthancError: The target cannot be written to.
        """
        text = json.dumps({"version": _VERSION, **asdict(record)})
        try:
            with self._area.rights:
                folder = self._area.descriptor
                # Left by a run that was killed between here and the rename.
                with suppress(FileNotFoundError):
                    os.unlink(_NEW, dir_fd=folder)
                with os.fdopen(os.open(_NEW, _NEW_FILE, files.PRIVATE, dir_fd=folder), "w") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.rename(_NEW, NAME, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        except OSError as error:
            if self._is_target:
                raise write_error(self._area.root, error) from error
