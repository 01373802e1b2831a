"""Clients that upload, overwrite and delete, while `verify storage` checks again and again."""

from __future__ import annotations

import threading
import time
import urllib.error
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli import scrub
from tests.interop.archive import Archive
from tests.interop.orthanc import Rest
from tests.support import samples

INSTANCES = 40


@dataclass
class Storm:
    """What has happened; `findings` must stay empty."""

    actions: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    checked: int = 0
    undecided: int = 0
    findings: list[scrub.Finding] = field(default_factory=list)
    last: scrub.StorageReport | None = None


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
                identifier = rest.upload(path.read_bytes())
                count["uploads"] += 1
                if identifier and (position + count["uploads"]) % 3 == 0:
                    rest.upload(path.read_bytes() + bytes(2 * (count["uploads"] % 50)))
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
    result.findings += report.findings
    result.last = report
