"""`verify storage` beside a real Orthanc: what it wrote is intact, and nothing in flight is a finding."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import scrub
from tests.interop.archive import Archive
from tests.support import samples

pytestmark = pytest.mark.interop
STORM_S = 12.0


@pytest.mark.parametrize("postgresql_storage", [False, True], ids=["filesystem", "postgresql"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_a_storm_of_uploads_and_deletions_leaves_no_finding(
    new_archive: Callable[..., Archive], tmp_path: Path, postgresql_storage: bool, compress: bool
) -> None:
    archive = new_archive(postgresql_storage=postgresql_storage)
    contents = [path.read_bytes() for path in samples.folder(tmp_path / "in", 40)]
    ended = time.monotonic() + STORM_S
    uploads: list[int] = []
    with archive.orthanc(StorageCompression=compress) as rest:

        def client(number: int) -> None:
            while time.monotonic() < ended:
                for content in contents[number::3]:
                    identifier = rest.upload(content)
                    uploads.append(number)
                    if identifier and len(uploads) % 3 == 0:
                        rest.delete(f"/instances/{identifier}")

        threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        area = None if postgresql_storage else archive.storage
        settings = scrub.Settings(area, depth="identity", jobs=1, grace_s=2)
        runs = 0
        while time.monotonic() < ended:
            report = scrub.check(archive.target, settings)
            assert (report.findings, report.complete) == ((), True)
            runs += 1
        for thread in threads:
            thread.join()
        report = scrub.check(archive.target, settings)
        assert (report.findings, report.skipped_recent) == ((), 0)
        assert report.checked == report.attachments > 0
    assert runs
    assert len(uploads) > 20
