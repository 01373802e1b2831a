"""`verify storage` beside a real Orthanc: what it wrote is intact, and nothing in flight is a finding."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.archive import Archive
from tests.interop.orthanc import Rest
from tests.interop.storm import storm
from tests.scrub.injected import (
    Store,
    altered_beginning,
    altered_end,
    longer,
    missing,
    one_byte_less,
    other_instance,
)
from tests.support import samples

pytestmark = pytest.mark.interop
STORM_S = 12.0


@pytest.mark.parametrize("postgresql_storage", [False, True], ids=["filesystem", "postgresql"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_a_storm_of_uploads_and_deletions_leaves_no_finding(
    new_archive: Callable[..., Archive], tmp_path: Path, postgresql_storage: bool, compress: bool
) -> None:
    archive = new_archive(postgresql_storage=postgresql_storage)
    with archive.orthanc(StorageCompression=compress, OverwriteInstances=True) as rest:
        result = storm(archive, rest, tmp_path / "in", clients=3, seconds=STORM_S, grace_s=2)
    assert result.findings == []
    assert result.last
    assert (result.last.complete, result.last.undecided) == (True, 0)
    assert result.last.checked == result.last.attachments
    assert result.runs > 1
    assert result.actions["uploads"] > 20


def test_what_was_repaired_is_served(archive: Archive, tmp_path: Path) -> None:
    """What was gone heals while Orthanc is running; what it has in its cache does after a restart (D3)."""

    def wrong(rest: Rest) -> list[str]:
        return [path for path in paths if served(rest, path) != intact[path]]

    damages = (missing, one_byte_less, longer, altered_end, altered_beginning, other_instance)
    with archive.orthanc(StorageCompression=False) as rest:
        identifiers = [rest.upload(path.read_bytes()) for path in samples.folder(tmp_path / "in", 8)]
        paths = [f"/instances/{identifier}/file" for identifier in identifiers]
        intact = {path: rest.send("GET", path) for path in paths}
    store = Store(archive.target, None if archive.section["EnableStorage"] else archive.storage, False)
    mirror = store.copy_to(tmp_path / "mirror")
    for damage in damages:
        damage(store)
    with archive.orthanc(StorageCompression=False) as rest:
        assert len(wrong(rest)) >= len(damages) - 1  # a longer file is served
        done = archive.pgorthanc("verify storage --json --yes --grace 0", "--repair-from", mirror)
        repaired = json.loads(done.stdout)["repaired"]
        assert (repaired["files"], repaired["restart_orthanc"]) == (len(damages), True)
        assert len(wrong(rest)) < len(damages)  # what was missing heals; its cache has the others
    with archive.orthanc(StorageCompression=False) as rest:
        assert wrong(rest) == []
    assert archive.pgorthanc("verify storage --grace 0").exit_code == 0


def served(rest: Rest, path: str) -> bytes | None:
    try:
        return rest.send("GET", path)
    except urllib.error.HTTPError:
        rest.refused.append(b"")  # so the log may have errors
        return None
