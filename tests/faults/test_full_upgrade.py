"""The disk of the database is full in the middle of an upgrade."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.faults.site import Site
from tests.support import indexdump, indexstate, samples
from tests.support.servers import fill

pytestmark = [pytest.mark.once, pytest.mark.timeout(180)]


def pgorthanc(target: db.Target, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the program, whose sessions end with it."""
    command = [sys.executable, "-m", "pgorthanc_cli", *map(str, words), "--uri", target.dsn]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def revision(target: db.Target) -> int:
    with db.session(target) as conn:
        return int(db.value(conn, "SELECT value FROM globalproperties WHERE property = 4"))


def test_it_is_rolled_back_and_the_next_one_completes_it(
    place: Site, small_disk: Path | None, tablespace: str, tmp_path: Path
) -> None:
    assert small_disk
    ballast = small_disk / "ballast"
    with place.database(1, superuser=True, tablespace=tablespace) as target:
        samples.folder(tmp_path / "in", 200)
        imported = pgorthanc(target, "import", "--storage-dir", tmp_path / "area", tmp_path / "in")
        assert imported.returncode == 0, imported.stderr
        with db.session(target) as conn:
            before = indexdump.dump(conn)
        fill(ballast)
        try:
            refused = pgorthanc(target, "upgrade", "--yes")
            assert refused.returncode != 0
            assert "No space left on device" in refused.stderr
            assert "Traceback" not in refused.stderr
        finally:
            ballast.unlink()
        assert revision(target) == 1
        with db.session(target) as conn:
            assert indexdump.dump(conn) == before
        completed = pgorthanc(target, "upgrade", "--yes")
        assert completed.returncode == 0, completed.stderr
        assert revision(target) == 10
        with db.session(target) as conn:
            assert indexdump.dump(conn) == before
            assert indexstate.problems(conn) == []
