"""Import when things go wrong: full disks, signals, kill -9, a server that goes away, two at once."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgorthanc_cli import db, index, ingest, storage
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError
from pgorthanc_cli.ingest.journal import FOLDER
from tests.support import samples
from tests.support.importing import (
    SMALL_BATCHES,
    check_area,
    dumped,
    ends,
    run,
    stored_files,
    warnings_of,
)
from tests.support.indexdump import attachments

# --- storage that fails ---------------------------------------------------------------------------------------


def test_a_storage_folder_that_cannot_be_made(fresh: db.Target) -> None:
    with pytest.raises(PgOrthancError, match="cannot be written to"):
        run(fresh, [samples.REAL], Path("/proc/pgorthanc"))


@contextmanager
def too_large(folder: Path) -> Iterator[Path]:
    """Yield a file that cannot be stored within the block, which must end with that error.

    The limit on the size of files makes the kernel refuse the write as a full disk does.
    """
    large = folder / "large.dcm"
    large.write_bytes(samples.instance("P9", "1.2.9", "1.2.9.1", PixelData=bytes(3_000_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(PgOrthancError, match="cannot be written to: File too large"):
            yield large
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_ends_the_run_and_leaves_no_file(fresh: db.Target, tmp_path: Path, jobs: int) -> None:
    small = samples.folder(tmp_path / "in", 4)
    with too_large(tmp_path) as large:
        run(fresh, [*small, large], tmp_path / "area", jobs=jobs, batch_files=2)
    check_area(fresh, tmp_path / "area")
    assert ends(run(fresh, [*small, large], tmp_path / "area")) == (1, 4, 0, 0)
    check_area(fresh, tmp_path / "area")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_batch_that_is_stored_in_parts_stays_one(fresh: db.Target, tmp_path: Path, jobs: int) -> None:
    """Parts keep a worker's memory small; what fails in the last one takes the files of all back."""
    files, area = samples.folder(tmp_path / "in", 4), tmp_path / "area"
    with too_large(tmp_path) as large:
        run(fresh, [*files, large], area, jobs=jobs, group_bytes=1)
    assert not stored_files(area)
    # A copy in the same batch, but in another part, is still known.
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(files[0].read_bytes())
    assert ends(run(fresh, [*files, copy, large], area, jobs=jobs, group_bytes=1)) == (5, 1, 0, 0)
    check_area(fresh, area)
    assert ends(run(fresh, [*files, copy, large], area, jobs=jobs, group_bytes=1)) == (0, 6, 0, 0)
    check_area(fresh, area)


# --- interruptions ----------------------------------------------------------------------------------------------


def test_an_orthanc_holds_the_index(fresh: db.Target, tmp_path: Path) -> None:
    orthanc = db.Target(fresh.dsn, application="Orthanc")
    with db.session(orthanc) as conn, db.advisory_lock(conn, db.LOCK_INDEX):
        held = rf"the Orthanc at .* \(pid {conn.info.backend_pid}, .*\) holds the index lock"
        with pytest.raises(InUseError, match=held) as refusal:
            run(fresh, [samples.REAL], tmp_path / "area")
        assert "import while it is running, with --concurrent" in (refusal.value.hint or "")
        assert ends(run(fresh, [samples.REAL], tmp_path / "area", concurrent=True)) == (1, 0, 0, 0)


def test_stopping_ends_with_the_batch_at_hand(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 20)
    stop = threading.Event()

    def report(batch: ingest.Batch) -> None:
        if batch.imported:
            stop.set()

    settings = ingest.Settings(storage_dir=tmp_path / "area", batch_files=2)
    plan = ingest.ImportPlan(list(map(str, files)), jobs=2)
    result = ingest.run_import(fresh, plan, settings, stop=stop, report=report)
    assert ends(result) == (2, 0, 0, 0)
    check_area(fresh, tmp_path / "area")
    assert ends(run(fresh, files, tmp_path / "area")) == (18, 2, 0, 0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_server_goes_away_in_the_middle(fresh: db.Target, tmp_path: Path, jobs: int) -> None:
    files = samples.folder(tmp_path / "in", 20)
    settings = ingest.Settings(storage_dir=tmp_path / "area", batch_files=2)
    plan = ingest.ImportPlan(list(map(str, files)), jobs=jobs)
    counted = 0
    with db.session(db.Target(fresh.dsn, application="other")) as conn, conn.cursor() as cur:

        def report(batch: ingest.Batch) -> None:
            nonlocal counted
            counted += batch.imported
            if batch.imported:
                cur.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()"""
                )
                conn.commit()

        with pytest.raises(ConnectError, match="was lost"):
            ingest.run_import(fresh, plan, settings, report=report)
    assert 0 < counted < 20
    assert ends(run(fresh, files, tmp_path / "area")) == (20 - counted, counted, 0, 0)
    check_area(fresh, tmp_path / "area")


def test_kill_9_leaves_nothing_half_done_after_a_rerun(
    new_database: Callable[..., db.Target], template: str, tmp_path: Path
) -> None:
    samples.folder(tmp_path / "in", 1500, patients=5, per_series=50)
    interrupted, whole = new_database(template), new_database(template)
    command = [
        *SMALL_BATCHES, "--uri", interrupted.dsn,
        "--storage-dir", str(tmp_path / "area"), str(tmp_path / "in"),
    ]  # fmt: skip
    with db.session(interrupted, autocommit=True) as conn, conn.cursor() as cur:
        process = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while True:
            assert process.poll() is None, "it ended before it could be killed"
            cur.execute("SELECT count(*) FROM attachedfiles")
            if cur.fetchall()[0][0]:
                break
        process.kill()
        process.wait()
        cur.execute("SELECT count(*) FROM attachedfiles")
        assert 0 < cur.fetchall()[0][0] < 1500
    report = run(interrupted, [tmp_path / "in"], tmp_path / "area", concurrent=True)
    assert report.imported + report.known == 1500
    run(whole, [tmp_path / "in"], tmp_path / "whole", jobs=2)
    assert dumped(interrupted) == dumped(whole)
    check_area(interrupted, tmp_path / "area")


def test_kill_9_while_replacing_leaves_no_old_file_after_a_rerun(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 600, patients=5, per_series=50)
    area = tmp_path / "area"
    run(fresh, files, area)
    before = set(stored_files(area))
    command = [
        *SMALL_BATCHES, "--uri", fresh.dsn, "--storage-dir", str(area), "--overwrite", "always", str(tmp_path / "in"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    with db.session(fresh) as conn:
        while before == set(attachments(conn)):
            assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
        assert before & set(attachments(conn)), "it was killed too late"
    assert ends(run(fresh, files, area, overwrite=index.Overwrite.ALWAYS)) == (0, 0, 600, 0)
    assert not before & set(stored_files(area))
    check_area(fresh, area)


def test_an_old_file_that_cannot_be_removed_ends_the_run(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 6)
    area = tmp_path / "area"
    run(fresh, files, area)
    uuid = min(stored_files(area))
    old = area / storage.file_path(uuid)
    old.unlink()
    old.mkdir()
    with pytest.raises(PgOrthancError, match="cannot be written to: Is a directory"):
        run(fresh, files, area, overwrite=index.Overwrite.ALWAYS, batch_files=2)
    assert list((area / FOLDER).iterdir()), "the next run must know what is left to remove"
    old.rmdir()
    result = run(fresh, files, area, overwrite=index.Overwrite.ALWAYS)
    assert ends(result) == (0, 0, 6, 0)
    check_area(fresh, area)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_130_and_right_counts(
    fresh: db.Target, tmp_path: Path, number: signal.Signals
) -> None:
    samples.folder(tmp_path / "in", 1500, patients=5, per_series=50)
    command = [
        *SMALL_BATCHES, "--json", "--uri", fresh.dsn,
        "--storage-dir", str(tmp_path / "area"), str(tmp_path / "in"),
    ]  # fmt: skip
    with db.session(fresh, autocommit=True) as conn, conn.cursor() as cur:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while True:
            assert process.poll() is None
            cur.execute("SELECT count(*) FROM attachedfiles")
            if cur.fetchall()[0][0]:
                break
        process.send_signal(number)
        out, _ = process.communicate()
        assert process.returncode == 130
        found = json.loads(out)
        assert found["interrupted"] is True
        cur.execute("SELECT count(*) FROM attachedfiles")
        assert found["imported"] == cur.fetchall()[0][0] < 1500
    check_area(fresh, tmp_path / "area")


def test_a_journal_of_another_database_is_left_alone(
    new_database: Callable[..., db.Target], template: str, tmp_path: Path
) -> None:
    one, other = new_database(template), new_database(template)
    run(one, [samples.REAL], tmp_path / "area")
    with db.session(one) as conn, conn.cursor() as cur:
        identity = index.identity(cur)
        uuids = list(attachments(conn))
    folder = tmp_path / "area" / FOLDER
    (folder / "dead").mkdir(parents=True)
    (folder / "dead.lock").touch()
    (folder / "dead" / "1.json").write_text(json.dumps({"database": identity, "uuids": uuids}))
    warnings = warnings_of(other, [], tmp_path / "area")
    assert "another database" in warnings[0]
    assert (tmp_path / "area" / uuids[0][:2] / uuids[0][2:4] / uuids[0]).exists()
    assert warnings_of(one, [], tmp_path / "area") == []
    check_area(one, tmp_path / "area")
