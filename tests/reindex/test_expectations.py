"""What a run expects, says and refuses before it reads a file, and the progress that it reports."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db, dicom, reindex
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.pacing import Limits
from pgorthanc_cli.progress import Progress
from tests.reindex.archive import PROFILE, run
from tests.support.schemas import run as execute


def test_a_folder_that_is_not_mounted(
    archive: tuple[db.Target, Path], fresh: db.Target, tmp_path: Path
) -> None:
    target, _ = archive
    with pytest.raises(PgOrthancError, match="cannot be read: No such file"):
        run(target, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is empty, but files of 2 patients are to be read from it"):
        run(target, tmp_path / "empty", dry_run=True)
    assert run(fresh, tmp_path / "empty").complete


def test_without_the_configuration_no_tag_of_the_index_is_removed(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    plain = dicom.Profile()
    assert run(target, area, profile=plain, is_configured=False, dry_run=True).complete
    run(target, area)
    with pytest.raises(
        UsageError, match="not among Orthanc's default ones, such as PatientComments"
    ) as refused:
        run(target, area, profile=plain, is_configured=False)
    assert "--config" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="only Orthanc's configuration names them"):
        reindex.check(target, plain, is_configured=False)
    assert run(target, area).changes == ()
    # A configuration that no longer has them removes them.
    assert run(target, area, profile=plain).changes


def test_what_to_run_after_a_check_without_a_configuration(archive: tuple[db.Target, Path]) -> None:
    target, _ = archive
    patients = "SELECT internalid FROM resources WHERE resourcetype = 0"
    execute(target, f"UPDATE metadata SET value = '0010,0020' WHERE type = 15 AND id IN ({patients})")
    done = CliRunner().invoke(cli.main, ["reindex", "--check", "--uri", target.dsn])
    assert done.exit_code == 6, done.output
    assert "    pgorthanc reindex --config PATH --uri" in done.stdout


def test_the_last_progress_is_that_of_the_end(
    archive: tuple[db.Target, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgorthanc_cli.reindex.run._REPORT_S", 1e9)
    target, area = archive
    reports: list[Progress] = []
    settings = reindex.Settings(area, PROFILE, jobs=1, batch_files=3)
    reindex.reindex(target, settings, report=reports.append)
    assert (reports[-1].done, reports[-1].total) == (12, 12)


def test_the_estimate_knows_the_limits(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    free = run(target, area, dry_run=True).estimate
    assert free.seconds is not None
    assert free.seconds < 10
    stop = threading.Event()
    for limits in (Limits(max_files_per_s=0.1), Limits(max_bytes_per_s=free.bytes / 120)):
        estimates: list[reindex.Estimate] = []

        def started(estimate: reindex.Estimate, to: list[reindex.Estimate] = estimates) -> None:
            to.append(estimate)
            stop.set()

        settings = reindex.Settings(area, PROFILE, jobs=1, limits=limits, dry_run=True)
        reindex.reindex(target, settings, stop=stop, started=started)
        assert [each.seconds for each in estimates] == [pytest.approx(120, rel=0.01)]
