"""Clients that upload, overwrite and delete, while `verify storage` checks again and again."""

from __future__ import annotations

import threading
import time
import urllib.error
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli import dicom, index, scrub
from tests.interop.archive import Archive
from tests.interop.orthanc import Rest
from tests.support import samples

INSTANCES = 40


@dataclass
class Storm:
    """What has happened; `findings` must stay empty.

    `broken` are the instances of which Orthanc itself has left a file without a row: it removes a folder as empty
    that another of its threads is about to use, answers with 500, and leaves the first of two files behind.
    """

    actions: Counter[str] = field(default_factory=Counter)
    broken: set[str] = field(default_factory=set)
    runs: int = 0
    checked: int = 0
    undecided: int = 0
    reported: list[scrub.Finding] = field(default_factory=list)
    last: scrub.StorageReport | None = None

    @property
    def findings(self) -> list[scrub.Finding]:
        return [
            finding
            for finding in self.reported
            if finding.kind not in scrub.HARMLESS or finding.public_id not in self.broken
        ]

    def upload(self, rest: Rest, path: Path, more: bytes = b"") -> str | None:
        """Upload a file with more bytes; return the public id of its instance, None if it was not stored."""
        content = path.read_bytes()
        try:
            return rest.upload(content + more)
        except urllib.error.HTTPError as error:
            if error.code != 500 or "accessing the filesystem" not in "".join(error.__notes__):
                raise
            self.broken.add(dicom.parse(content, dicom.Profile()).levels[index.INSTANCE].public_id)
            return None


def storm(
    archive: Archive, rest: Rest, folder: Path, *, clients: int, seconds: float, grace_s: float
) -> Storm:
    """Check in a loop while clients are at work, and once more when they have finished.

    Each client has instances of its own, of patients that all of them share. Orthanc must
    run with OverwriteInstances.
    """
    result = Storm()
    paths = samples.folder(folder, INSTANCES)
    ended = time.monotonic() + seconds

    def client(number: int) -> None:
        count = Counter[str]()
        while time.monotonic() < ended:
            for position, path in enumerate(paths[number::clients]):
                identifier = result.upload(rest, path)
                count["uploads"] += 1
                if identifier and (position + count["uploads"]) % 3 == 0:
                    result.upload(rest, path, bytes(2 * (count["uploads"] % 50)))
                    count["overwrites"] += 1
                if identifier and (position + count["uploads"]) % 5 < 2:
                    try:
                        rest.delete(f"/instances/{identifier}")
                        count["deletions"] += 1
                    except urllib.error.HTTPError:
                        count["deletions refused"] += 1
        result.actions.update(count)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    area = None if archive.section["EnableStorage"] else archive.storage
    settings = scrub.Settings(area, depth="identity", jobs=1, grace_s=grace_s)
    while any(thread.is_alive() for thread in threads):
        _check(archive, settings, result)
    for thread in threads:
        thread.join()
    _check(archive, settings, result)
    return result


def _check(archive: Archive, settings: scrub.Settings, result: Storm) -> None:
    report = scrub.check(archive.target, settings)
    result.runs += 1
    result.checked += report.checked
    result.undecided += report.undecided
    result.reported += report.findings
    result.last = report
