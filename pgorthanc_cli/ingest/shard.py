"""A share of the files, for each of several machines that import the same folders.

Who takes what follows from the file alone: the machines need not know of each other, and a share that was lost
is imported by running it again anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from pgorthanc_cli import dicom
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest.walk import Source, walk


class By(Enum):
    """What is never split between two machines."""

    FOLDER = "folder"  # by its path below the one that was named: nothing is read
    PATIENT = "patient"  # by PatientID: every machine reads the first bytes of every file


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`, numbered from 1."""

    number: int
    count: int
    by: By = By.FOLDER

    @classmethod
    def parse(cls, text: str, by: By = By.FOLDER) -> Shard:
        """A share written as `2/8`.

        Raises:
            UsageError: It is not, or there is no such share.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"the shard is {text!r}, expected one of 1/N to N/N, such as 2/8")
        return cls(int(match[1]), int(match[2]), by)

    def walk(self, paths: Iterable[str], storage_dir: str | os.PathLike[str] | None) -> Iterator[Source]:
        """What `walk` finds, as far as it belongs to this share."""
        for path in paths:
            for source in walk([path], storage_dir):
                if self.takes(source, path):
                    yield source

    def takes(self, source: Source, root: str) -> bool:
        """Whether a file below `root` belongs to this share."""
        return bucket(self._key(source, root), self.count) == self.number - 1

    def _key(self, source: Source, root: str) -> bytes:
        if self.by is By.PATIENT and (key := patient(source)) is not None:
            return key
        return os.fsencode(os.path.relpath(os.path.dirname(source.path) or ".", root))


def patient(source: Source) -> bytes | None:
    """What all files of a patient have in common; None if that cannot be told, as of archives and of no DICOM."""
    return None if source.problem else dicom.patient_key(source.path)


def bucket(key: bytes, count: int) -> int:
    """One of `count` numbers from 0, the same on every machine for the same key."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % count
