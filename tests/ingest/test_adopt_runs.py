"""Adopting in shares of several machines, and what arrives in a folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pgorthanc_cli import ingest
from pgorthanc_cli.db import Target
from pgorthanc_cli.ingest.adoption import Adoption
from tests.support import samples
from tests.support.adopting import Archive
from tests.support.real_servers import wait_until
from tests.support.schemas import rows


@pytest.fixture
def archive(fresh: Target, tmp_path: Path) -> Archive:
    return Archive(fresh, tmp_path)


def stored(archive: Archive) -> set[str]:
    """The paths of all attachments."""
    query = "SELECT convert_from(customdata, 'UTF8')::json ->> 'p' FROM attachedfiles"
    return {path for (path,) in rows(archive.target, query)}


def test_shares_adopt_every_file_once(archive: Archive) -> None:
    reports = [archive.adopt(archive.folder / "in", "--shard", share) for share in ("1/2", "2/2")]
    assert sum(report["adopted"] for report in reports) == len(archive.files)
    assert stored(archive) == set(map(str, archive.files))
    assert archive.check().counts == {}


def test_what_arrives_is_adopted_and_what_changes_is_adopted_again(archive: Archive) -> None:
    folder, stop = archive.folder / "in", threading.Event()
    plan = ingest.ImportPlan([str(folder)], jobs=1, follow=True, settle_s=0.1, poll_s=0.05, poll_rest=1)
    settings = ingest.Settings(adopt=Adoption(owned=False, roots=(), indexed=(str(folder),)), concurrent=True)
    thread = threading.Thread(
        target=ingest.run_import, args=(archive.target, plan, settings), kwargs={"stop": stop}
    )
    thread.start()
    try:
        wait_until(lambda: len(stored(archive)) == len(archive.files), timeout_s=60)
        new = folder / "new.dcm"
        new.write_bytes(samples.instance("P7", "1.7", "1.7.1"))
        wait_until(lambda: str(new) in stored(archive), timeout_s=60)
        changed = samples.instance("P7", "1.7", "1.7.1", SeriesDescription="changed")
        (archive.folder / "new").write_bytes(changed)
        os.replace(archive.folder / "new", new)
        sizes = "SELECT 1 FROM attachedfiles WHERE compressedsize = %s"
        wait_until(lambda: bool(rows(archive.target, sizes % len(changed))), timeout_s=60)
    finally:
        stop.set()
        thread.join()
    assert stored(archive) == {*map(str, archive.files), str(new)}
    assert archive.check().counts == {}
