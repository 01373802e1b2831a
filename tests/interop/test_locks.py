"""pgorthanc stays away from the real Orthanc while that works, and keeps it out while it works itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.interop import files, lifecycle
from tests.interop.archive import Archive
from tests.interop.orthanc import DoesNotStart
from tests.support.schemas import look

pytestmark = pytest.mark.interop


@pytest.fixture
def archive(new_archive: Callable[..., Archive]) -> Archive:
    return new_archive(postgresql_storage=True)


def check_named(archive: Archive, message: str) -> None:
    """The message says which Orthanc is in the way, by the session of one of its locks."""
    holders = look(archive.target).locks
    assert db.LOCK_INDEX in {holder.lock for holder in holders}
    assert any(f"the Orthanc at 127.0.0.1 (pid {holder.pid}" in message for holder in holders), message
    assert re.search(r"holds the index (and storage locks|lock), connected since \d\d:\d\d [+-]", message)


def test_import_stays_away_while_orthanc_works(archive: Archive, tmp_path: Path) -> None:
    folder = files.write(tmp_path / "in", files.patient("1"))
    with archive.orthanc() as rest:
        result = archive.pgorthanc("import", folder)
        assert result.exit_code == 5
        check_named(archive, result.stderr)
        assert rest.get("/instances") == []
    assert archive.import_(folder)["imported"] == 8


def test_upgrade_does_not_switch_while_orthanc_works(archive: Archive) -> None:
    held = files.patient("1")
    with archive.orthanc() as rest:
        for file in held:
            rest.upload(file.content)
        result = archive.pgorthanc("upgrade", "--to", "10", "--yes")
        assert result.exit_code == 5
        check_named(archive, result.stderr)
        assert look(archive.target).revision == 1
        held = lifecycle.work(archive, rest, held)
    archive.done("upgrade", "--to", "10", "--yes")
    archive.done("downgrade", "--to", "1", "--yes")
    with archive.orthanc() as rest:
        lifecycle.read(rest, held)


@pytest.mark.parametrize("lock", [db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP])
def test_orthanc_does_not_start_while_pgorthanc_holds_a_lock(archive: Archive, lock: int) -> None:
    refusal = "locked by another instance of Orthanc|Cannot acquire a transient advisory lock"
    with db.session(archive.target) as conn, db.advisory_lock(conn, lock):
        with pytest.raises(DoesNotStart, match=refusal), archive.orthanc():
            pass
    with archive.orthanc() as rest:
        lifecycle.read(rest, [])
