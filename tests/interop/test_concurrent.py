"""An import beside a running Orthanc that receives the same files from their other end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.ingest.test_bookkeeping import check
from tests.interop import lifecycle
from tests.interop.archive import Archive
from tests.support import samples

pytestmark = pytest.mark.interop


def test_no_duplicate_and_the_same_archive(new_archive: Callable[..., Archive]) -> None:
    beside, alone = new_archive(), new_archive()
    files = samples.folder(beside.folder / "in", 240, patients=4, per_series=6)
    with alone.orthanc():
        pass  # it makes its index
    alone.import_(*files)
    uploaded: list[str | None] = []
    section = {**beside.configuration()["PostgreSQL"], "Lock": False}
    with beside.orthanc(PostgreSQL=section) as rest:
        work = threading.Thread(
            target=lambda: uploaded.extend(rest.upload(f.read_bytes()) for f in reversed(files))
        )
        work.start()
        report = beside.import_("--concurrent", "--batch-files", "10", *files)
        work.join()
        assert len(set(uploaded)) == len(files)
        assert report["imported"] + report["known"] == len(files)
        assert report["imported"]
        assert report["known"]
        assert rest.get("/statistics")["CountInstances"] == len(files)
        assert len(lifecycle.served(rest)) == len(files)
    check(beside.target)
    lifecycle.check_storage(beside)
    found, wanted = beside.dump(), alone.dump()
    for part in ("resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles", "statistics"):
        assert found[part] == wanted[part], part
    assert sorted(found["changes"]) == sorted(wanted["changes"])
