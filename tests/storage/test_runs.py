"""Runs that may be alive, whatever locks of files are worth; and journals that are damaged."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.ingest import recovery, runs
from pgorthanc_cli.ingest.journal import FOLDER, SET_ASIDE
from tests.support import samples
from tests.support.areas import identity, journal, orphan, settle
from tests.support.importing import check_area, run
from tests.support.indexdump import attachments

# The program on a file system whose locks of files do nothing (NFSv3 with nolock, SMB, some of FUSE). It waits for a
# line between its second batch's files and their commit.
NO_LOCKS = """
import fcntl, sys
fcntl.flock = lambda descriptor, operation: None
from pgorthanc_cli.cli import main
from pgorthanc_cli.ingest import worker
prepare = worker.Worker.prepare
batches = []
def waiting(self, name, *arguments):
    stored = prepare(self, name, *arguments)
    batches.append(name)
    if len(batches) == 2:
        print("stored", flush=True)
        sys.stdin.readline()
    return stored
worker.Worker.prepare = waiting
main(prog_name="pgorthanc")
"""
ELSEWHERE = runs.Marker("pacs2", "another boot", "1", "4711 123", session=True)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that several machines have mounted, each with locks of its own."""
    monkeypatch.setattr(runs, "LOCAL_FILE_SYSTEMS", set())


def test_four_imports_without_locks_of_files_lose_nothing(fresh: db.Target, tmp_path: Path) -> None:
    """Each took the others for dead, and deleted their files in flight."""
    area = tmp_path / "area"
    running = []
    for number in range(4):
        folder = tmp_path / f"in{number}"
        samples.folder(folder, 40, patients=1, per_series=10, first=number * 1000)
        command = [sys.executable, "-c", NO_LOCKS, "import", "--quiet", "--concurrent", "--jobs", "1"]
        command += ["--batch-files", "10"]
        process = subprocess.Popen(
            [*command, "--uri", fresh.dsn, "--storage-dir", str(area), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "stored\n"
        running.append(process)
    for process in running:
        _, stderr = process.communicate("\n", timeout=120)
        assert process.returncode == 0, stderr
    check_area(fresh, area)
    with db.session(fresh) as conn:
        assert len(attachments(conn)) == 160


def test_a_run_on_another_machine_is_left_alone_while_its_heart_beats(
    fresh: db.Target, tmp_path: Path, shared: None
) -> None:
    file = orphan(tmp_path)
    planted = journal(tmp_path, {"database": identity(fresh), "uuids": [file.name]}, marker=ELSEWHERE)
    (warning,) = settle(fresh, tmp_path)
    assert "an import on pacs2 (process 4711)" in warning
    assert "run this import again" in warning
    assert file.exists()
    assert planted.exists()


@pytest.mark.parametrize("locks", [True, False])
def test_a_run_on_another_machine_without_heartbeat_is_dead(
    fresh: db.Target, tmp_path: Path, shared: None, request: pytest.FixtureRequest, locks: bool
) -> None:
    if not locks:
        request.getfixturevalue("no_locks")
    run(fresh, [samples.REAL], tmp_path)
    with db.session(fresh) as conn:
        (stored,) = attachments(conn)
    file = orphan(tmp_path)
    journal(
        tmp_path, {"database": identity(fresh), "uuids": [file.name, stored]}, marker=ELSEWHERE,
        age_s=runs.STALE_S + 1,
    )  # fmt: skip
    assert settle(fresh, tmp_path) == []
    check_area(fresh, tmp_path)


def test_a_run_that_can_still_commit_is_never_dead(fresh: db.Target, tmp_path: Path, no_locks: None) -> None:
    """A machine that was suspended has no heartbeat, and goes on where it was."""
    file = orphan(tmp_path)
    content = {"database": identity(fresh), "uuids": [file.name]}
    planted = journal(tmp_path, content, marker=ELSEWHERE, age_s=1e6)
    with db.session(fresh) as conn:
        runs.Session(conn).hold(planted.parent.name)
        assert settle(fresh, tmp_path, concurrent=True) == []
        assert file.exists()
    assert settle(fresh, tmp_path) == []
    check_area(fresh, tmp_path)


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_the_process_tells(
    fresh: db.Target, tmp_path: Path, no_locks: None, alive: bool
) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    marker = replace(runs.Marker.of_this_process(session=True), process=runs.process_identity(process.pid))
    try:
        if not alive:
            process.kill()
            process.wait()
        file = orphan(tmp_path)
        journal(tmp_path, {"database": identity(fresh), "uuids": [file.name]}, marker=marker)
        warnings = settle(fresh, tmp_path)
    finally:
        process.kill()
        process.wait()
    assert file.exists() == alive
    assert bool(warnings) == alive


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    assert not runs.has_ended(runs.process_identity(os.getpid()))
    assert runs.has_ended(f"{os.getpid()} 1")
    assert runs.has_ended("no process")


@pytest.mark.parametrize("age_s", [0, recovery.LEGACY_STALE_S + 1])
def test_journals_of_earlier_versions(fresh: db.Target, tmp_path: Path, age_s: float) -> None:
    """They had a lock, and nothing else: it is believed where no other machine can be."""
    file = orphan(tmp_path)
    journal(tmp_path, {"database": identity(fresh), "uuids": [file.name]}, age_s=age_s)
    assert settle(fresh, tmp_path) == []
    check_area(fresh, tmp_path)


def test_journals_of_earlier_versions_where_locks_prove_nothing(
    fresh: db.Target, tmp_path: Path, no_locks: None
) -> None:
    file = orphan(tmp_path)
    planted = journal(tmp_path, {"database": identity(fresh), "uuids": [file.name]})
    (warning,) = settle(fresh, tmp_path)
    assert "may be alive" in warning
    assert file.exists()
    for path in (planted, planted.parent, planted.parent.with_suffix(".lock")):
        os.utime(path, (0, 0))
    assert settle(fresh, tmp_path) == []
    check_area(fresh, tmp_path)


def test_a_living_run_shows_who_it_is(fresh: db.Target, tmp_path: Path) -> None:
    from pgorthanc_cli import ingest

    seen = []

    def report(batch: ingest.Batch) -> None:
        for path in (tmp_path / "area" / FOLDER).glob("*.lock"):
            seen.append(json.loads(path.read_text()))

    plan = ingest.ImportPlan([str(samples.REAL)], jobs=1)
    settings = ingest.Settings(storage_dir=tmp_path / "area")
    ingest.run_import(fresh, plan, settings, report=report)
    assert seen
    assert seen[0]["process"].split()[0] == str(os.getpid())
    assert seen[0]["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert seen[0]["session"] is True


def test_the_heart_beats(tmp_path: Path) -> None:
    from pgorthanc_cli import storage
    from pgorthanc_cli.ingest.journal import open_journal
    from tests.support.real_servers import wait_until

    area = storage.FilesystemArea(tmp_path)
    with open_journal(area, "x", heartbeat_s=0.01) as run_journal:
        lock = tmp_path / FOLDER / f"{run_journal.run}.lock"
        os.utime(lock, (0, 0))
        wait_until(lambda: lock.stat().st_mtime > 0)


# --- damaged journals --------------------------------------------------------------------------------------------

NAME = str(uuid.uuid4())
DAMAGED = [
    b"", b"{}", b'{"database', b"[]", b"null", b"\xff\xfe\0binary\0", b"[" * 100_000, b'{"database": 5, "uuids": []}',
    b'{"database": "x", "uuids": "y"}', b'{"database": "x", "uuids": [5]}', b'{"database": "x", "uuids": [null]}',
    b'{"database": "x"}', b'{"database": "x", "uuids": {"a": 1}}', f'["{NAME}"]'.encode(),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:20]))
def test_a_damaged_journal_is_set_aside(fresh: db.Target, tmp_path: Path, content: bytes) -> None:
    planted = journal(tmp_path, content)
    warnings = settle(fresh, tmp_path, [samples.REAL])
    assert len(warnings) == 1
    assert "is damaged" in warnings[0]
    kept = tmp_path / FOLDER / SET_ASIDE / f"{planted.parent.name}-{planted.name}"
    assert str(kept) in warnings[0]
    assert kept.read_bytes() == content
    assert not planted.parent.exists()
    assert settle(fresh, tmp_path) == []


def test_the_files_of_a_journal_that_was_cut_off_are_looked_up(fresh: db.Target, tmp_path: Path) -> None:
    run(fresh, [samples.REAL], tmp_path)
    with db.session(fresh) as conn:
        (stored,) = attachments(conn)
    file, unnamed = orphan(tmp_path), orphan(tmp_path)
    whole = json.dumps({"database": identity(fresh), "uuids": [stored, file.name, unnamed.name]})
    journal(tmp_path, whole[: whole.index(unnamed.name) + 20].encode())
    (warning,) = settle(fresh, tmp_path)
    assert "of 2 files that it still names, the index has 1, and the others were removed" in warning
    assert not file.exists()
    assert unnamed.exists()
    assert (tmp_path / stored[:2] / stored[2:4] / stored).exists()


def test_a_damaged_journal_of_another_database_deletes_nothing(fresh: db.Target, tmp_path: Path) -> None:
    file = orphan(tmp_path)
    journal(tmp_path, json.dumps({"database": "1/2/3", "uuids": [file.name]})[:-1].encode())
    (warning,) = settle(fresh, tmp_path)
    assert "may be left" in warning
    assert file.exists()


def test_what_is_no_journal_in_its_place_is_left_or_set_aside(fresh: db.Target, tmp_path: Path) -> None:
    """A FIFO would be waited for; a folder cannot be read; a lock may be anything."""
    planted = journal(tmp_path, b"")
    planted.unlink()
    os.mkfifo(planted)
    planted.with_name("2.json").mkdir()
    os.mkfifo(tmp_path / FOLDER / "aa.lock")
    (tmp_path / FOLDER / "bb.lock").mkdir()
    (tmp_path / FOLDER / "cc").write_text("a file")
    (tmp_path / FOLDER / "cc.lock").touch()
    warnings = settle(fresh, tmp_path, [samples.REAL])
    assert len([w for w in warnings if "was set aside" in w]) == 2
    assert len([w for w in warnings if "is left alone" in w]) == 2


# --- runs that ended before they began ---------------------------------------------------------------------------

# Every write to a file fails from here on, as on a full disk; pipes still work.
FULL = """
import resource
from pgorthanc_cli.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
main(prog_name="pgorthanc")
"""


def test_a_disk_that_is_full_from_the_start_leaves_nothing_of_a_run(fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", 3)
    command = [sys.executable, "-c", FULL, "import", "--uri", fresh.dsn, "--jobs", "1"]
    area = tmp_path / "area"
    done = subprocess.run(
        [*command, "--storage-dir", str(area), str(tmp_path / "in")], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert list(area.rglob("*")) == []


def test_the_lock_file_of_a_run_that_was_killed_before_it_began_is_removed(
    fresh: db.Target, tmp_path: Path
) -> None:
    folder = tmp_path / "area" / FOLDER
    folder.mkdir(parents=True)
    old, young = (folder / f"{uuid.uuid4().hex}.new" for _ in range(2))
    for path in (old, young):
        path.touch()
    os.utime(old, (1, 1))
    samples.folder(tmp_path / "in", 1)
    run(fresh, [tmp_path / "in"], tmp_path / "area")
    assert [path.name for path in folder.iterdir()] == [young.name]
