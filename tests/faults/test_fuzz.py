"""Thousands of damaged files through the whole import, in a process whose memory is limited."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random

import pytest

from pgorthanc_cli import db
from tests.dicom.test_fast_paths import mutated
from tests.faults.damaged import harmful, sound_file
from tests.support import indexstate
from tests.support.importing import check_area

MEMORY_BYTES = 2 << 30  # address space of each process; a deflated data set may have 512 MiB
PROGRAM = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
from pgorthanc_cli.cli import main
main(prog_name="pgorthanc")
"""


def imported(target: db.Target, area: Path, sources: Path) -> dict[str, int]:
    """The report of an import that must come through, and leave an index that is whole."""
    options = ["--json", "--quiet", "--jobs", "2", "--uri", target.dsn, "--storage-dir", area, sources]
    command = [sys.executable, "-c", PROGRAM, "import", *map(str, options)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 6, run.stderr
    assert "Traceback" not in run.stderr
    with db.session(target) as conn:
        assert indexstate.problems(conn) == []
    check_area(target, area)
    outcomes: dict[str, int] = json.loads(run.stdout)
    return outcomes


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.once)])
def test_damaged_files(fresh: db.Target, tmp_path: Path, count: int) -> None:
    random = Random(count)
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for number in range(count):
            members.writestr(f"{number}.dcm", mutated(sound_file(number), random))
    report = imported(fresh, tmp_path / "area", archive)
    assert report["imported"] + report["known"] + report["refused"] == count
    assert report["imported"] > count // 4
    assert report["refused"] > count // 10


@pytest.mark.once
def test_damaged_archives(fresh: db.Target, tmp_path: Path) -> None:
    random = Random(5)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(150):
        whole = folder / f"{number}.zip"
        with zipfile.ZipFile(
            whole, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        ) as members:
            for member in range(3):
                members.writestr(f"{member}.dcm", sound_file(number * 3 + member))
        whole.write_bytes(mutated(whole.read_bytes(), random))
        packed = mutated(gzip.compress(sound_file(1000 + number)), random)
        (folder / f"{number}.gz").write_bytes(packed)
    report = imported(fresh, tmp_path / "area", folder)
    assert report["imported"] > 150
    assert report["refused"] > 50


@pytest.mark.once
def test_files_that_are_made_to_do_harm(fresh: db.Target, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in harmful().items():
        (folder / name).write_bytes(content)
    (folder / "good").write_bytes(sound_file(1))
    report = imported(fresh, tmp_path / "area", folder)
    assert report["imported"] == 1
    assert report["refused"] >= len(harmful())
