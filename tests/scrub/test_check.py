"""Which area is meant, who may check it, what is in flight, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid as uuids
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db, scrub, storage
from pgorthanc_cli.errors import PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.progress import Progress
from tests.support import samples
from tests.support.areas import orphan
from tests.support.importing import run as import_files
from tests.support.schemas import REVISIONS, as_role, init, rows
from tests.support.schemas import run as execute


def check(target: db.Target, area: Path | None, **settings: object) -> scrub.StorageReport:
    given = {"grace_s": 0.0, "jobs": 1} | settings
    return scrub.check(target, scrub.Settings(area, **given))  # type: ignore[arg-type]


@pytest.fixture
def area(fresh: db.Target, tmp_path: Path) -> Path:
    """A filesystem area with 20 instances."""
    import_files(fresh, samples.folder(tmp_path / "in", 20), tmp_path / "area")
    return tmp_path / "area"


def path_of(area: Path, uuid: str) -> Path:
    return area / uuid[:2] / uuid[2:4] / uuid


def uuids_of(target: db.Target) -> list[str]:
    return [uuid for (uuid,) in rows(target, "SELECT uuid FROM attachedfiles ORDER BY uuid")]


# --- areas that are not the right one ----------------------------------------------------


def test_an_empty_folder_is_refused_and_force_calls_everything_missing(
    fresh: db.Target, area: Path, tmp_path: Path
) -> None:
    (tmp_path / "unmounted").mkdir()
    with pytest.raises(UsageError, match="is empty, but the index lists 20 attachments") as refused:
        check(fresh, tmp_path / "unmounted")
    assert "mounted" in (refused.value.hint or "")
    assert check(fresh, tmp_path / "unmounted", force=True).counts == {"missing": 20}


def test_a_folder_that_does_not_exist(fresh: db.Target, area: Path, tmp_path: Path) -> None:
    with pytest.raises(PgOrthancError, match="does not exist"):
        check(fresh, tmp_path / "nowhere")
    with pytest.raises(PgOrthancError, match="cannot be read: Not a directory"):
        check(fresh, next((tmp_path / "in").iterdir()))


def test_a_folder_without_any_attachment(fresh: db.Target, area: Path, tmp_path: Path) -> None:
    """Such as /tmp, which may also have names like those of our folders."""
    (tmp_path / "other" / "d1").mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UsageError, match="other holds no file of an attachment, but the index lists 20"):
        check(fresh, tmp_path / "other")


def test_the_folder_of_another_orthanc(fresh: db.Target, area: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for _ in range(3):
        orphan(tmp_path / "other")
    with pytest.raises(UsageError, match="holds the files of another Orthanc"):
        check(fresh, tmp_path / "other")
    forced = check(fresh, tmp_path / "other", force=True)
    assert forced.counts == {"missing": 20, "orphan-other": 3}


def test_an_empty_index_with_an_empty_folder(fresh: db.Target, tmp_path: Path) -> None:
    (tmp_path / "area").mkdir()
    report = check(fresh, tmp_path / "area")
    assert (report.attachments, report.findings, report.complete) == (0, (), True)


def test_large_objects_that_are_all_gone(fresh: db.Target, tmp_path: Path) -> None:
    import_files(fresh, samples.folder(tmp_path / "in", 3), None)
    execute(fresh, "DELETE FROM storagearea")
    with pytest.raises(UsageError, match="storage area of this database is empty"):
        check(fresh, None)
    assert check(fresh, None, force=True).counts == {"missing": 3}


def test_a_database_without_a_storage_area(fresh: db.Target) -> None:
    execute(fresh, "DROP TABLE storagearea")
    with pytest.raises(RevisionError, match="storagearea"):
        check(fresh, None)


def test_no_index(empty: db.Target, tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="no Orthanc index"):
        check(empty, tmp_path)


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_revision(empty: db.Target, tmp_path: Path, revision: int) -> None:
    init(empty, revision=revision)
    import_files(empty, samples.folder(tmp_path / "in", 3), tmp_path / "area")
    path_of(tmp_path / "area", uuids_of(empty)[0]).unlink()
    for depth in ("size", "identity"):
        assert check(empty, tmp_path / "area", depth=depth).counts == {"missing": 1}


# --- roles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", scrub.DEPTHS)
def test_a_role_that_may_only_read(fresh: db.Target, area: Path, role: str, depth: str) -> None:
    execute(fresh, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    orphan(area)
    path_of(area, uuids_of(fresh)[0]).unlink()
    reader = as_role(fresh, role)
    assert check(reader, area, depth=depth, jobs=2).counts == {"missing": 1, "orphan-other": 1}


def test_a_role_that_may_not_read(fresh: db.Target, area: Path, role: str) -> None:
    with pytest.raises(PgOrthancError, match="permission denied") as refused:
        check(as_role(fresh, role), area)
    assert "GRANT SELECT" in (refused.value.hint or "")


def test_large_objects_need_a_right_of_their_own(fresh: db.Target, tmp_path: Path, role: str) -> None:
    import_files(fresh, samples.folder(tmp_path / "in", 3), None)
    execute(fresh, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    reader = as_role(fresh, role)
    assert check(reader, None, depth="exists").checked == 3
    for depth in ("size", "hash"):
        with pytest.raises(PgOrthancError, match=f"role {role} may not read the large objects"):
            check(reader, None, depth=depth)
    for (oid,) in rows(fresh, "SELECT content FROM storagearea"):
        execute(fresh, f"GRANT SELECT ON LARGE OBJECT {oid} TO {role}")
    for depth in ("size", "hash"):
        report = check(reader, None, depth=depth)
        assert (report.checked, report.counts) == (3, {})


def forbid(path: Path) -> None:
    """Let nobody read a file or folder; root works with the rights of the area's owner."""
    if os.geteuid() == 0:
        os.chown(path, 0, 0)
        path.chmod(0o700)
    else:
        path.chmod(0)


def test_files_and_folders_that_cannot_be_read(fresh: db.Target, area: Path) -> None:
    first, second, *_ = uuids_of(fresh)
    if os.geteuid() == 0:
        for path in (area, *area.rglob("*")):
            os.chown(path, 65534, 65534)
        for folder in path_of(area, first).parents[:2]:
            folder.chmod(0o755)
    forbid(path_of(area, first))
    report = check(fresh, area)
    assert [(each.kind, each.uuid) for each in report.findings] == [("unreadable", first)]
    assert check(fresh, area, depth="size").counts == {}
    folder = path_of(area, second).parent
    forbid(folder)
    try:
        report = check(fresh, area)
    finally:
        folder.chmod(0o700)
    unread = {uuid for uuid in uuids_of(fresh) if path_of(area, uuid).parent == folder}
    assert {each.uuid for each in report.findings} == unread | {first}
    assert set(report.counts) == {"unreadable"}
    assert report.damaged == len(report.findings)


def test_a_folder_that_cannot_be_read_and_holds_no_attachment(fresh: db.Target, area: Path) -> None:
    prefixes = {uuid[:2] for uuid in uuids_of(fresh)}
    folder = area / next(f"{number:02x}" for number in range(256) if f"{number:02x}" not in prefixes)
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(area, 65534, 65534)
        for path in area.rglob("*"):
            os.chown(path, 65534, 65534)
    forbid(folder)
    try:
        report = check(fresh, area)
    finally:
        folder.chmod(0o700)
    assert (report.counts, report.damaged) == ({"unreadable": 1}, 0)


def test_a_file_in_the_place_of_a_folder(fresh: db.Target, area: Path) -> None:
    prefixes = {uuid[:2] for uuid in uuids_of(fresh)}
    name = next(f"{number:02x}" for number in range(256) if f"{number:02x}" not in prefixes)
    (area / name).write_text("notes")
    report = check(fresh, area)
    assert [(each.kind, each.path) for each in report.findings] == [("foreign-file", str(area / name))]
    assert report.damaged == 0


# --- in flight --------------------------------------------------------------------------------


@pytest.fixture
def writer(fresh: db.Target) -> Iterator[Connection]:
    """Another session with an open transaction, as of an Orthanc that waits for a lock."""
    with closing(psycopg2.connect(fresh.dsn)) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
        yield conn


def test_a_file_whose_row_may_still_come_is_not_judged(
    fresh: db.Target, area: Path, writer: Connection
) -> None:
    path = orphan(area)
    report = check(fresh, area)
    assert (report.findings, report.skipped_recent, report.complete) == ((), 1, True)
    writer.commit()
    assert check(fresh, area).counts == {"orphan-other": 1}
    assert path.exists()


def test_a_row_that_comes_during_the_grace_period(fresh: db.Target, area: Path, tmp_path: Path) -> None:
    """The file is there first; its row is committed while we wait."""
    uuid = orphan(area).name
    waiting: list[str] = []

    def report(progress: Progress) -> None:
        if "waiting" in progress.what:
            waiting.append(progress.what)
            execute(
                fresh,
                f"""INSERT INTO attachedfiles SELECT id, 3, '{uuid}', 1, 1, 1, '', '', 0, NULL
                    FROM attachedfiles LIMIT 1""",
            )

    settings = scrub.Settings(area, grace_s=0.2, jobs=1)
    result = scrub.check(fresh, settings, report=report)
    assert (result.findings, result.skipped_recent) == ((), 0)
    assert len(waiting) == 1


@pytest.mark.parametrize("depth", scrub.DEPTHS)
def test_the_last_progress_is_that_of_the_end(
    fresh: db.Target, area: Path, monkeypatch: pytest.MonkeyPatch, depth: str
) -> None:
    monkeypatch.setattr("pgorthanc_cli.scrub.run._REPORT_S", 1e9)
    reports: list[Progress] = []
    scrub.check(fresh, scrub.Settings(area, depth=depth, jobs=1), report=reports.append)
    assert (reports[-1].done, reports[-1].total) == (20, 20)


def test_an_instance_that_is_deleted_meanwhile(fresh: db.Target, area: Path) -> None:
    """Rows go first, files after them: the rows of the snapshot have no files any more."""
    uuid = uuids_of(fresh)[0]
    path_of(area, uuid).unlink()
    deleted: list[str] = []

    def report(progress: Progress) -> None:
        if not deleted:
            deleted.append(uuid)
            execute(
                fresh,
                f"SELECT createdeletedfilestemporarytable(); DELETE FROM attachedfiles WHERE uuid = '{uuid}'",
            )

    with_file = scrub.Settings(area, grace_s=0, jobs=1)
    result = scrub.check(fresh, with_file, report=report)
    assert deleted
    assert result.findings == ()


def test_a_running_import_leaves_no_finding(fresh: db.Target, area: Path) -> None:
    """Its journal names the file, and its lock file is touched."""
    uuid = orphan(area).name
    folder = area / storage.JOURNAL_FOLDER / "run"
    folder.mkdir(parents=True)
    (folder / "00000001.json").write_text(json.dumps({"database": "x", "uuids": [uuid]}))
    (folder / "damaged.json").write_text("{")
    lock = area / storage.JOURNAL_FOLDER / "run.lock"
    lock.touch()
    assert (check(fresh, area).counts, check(fresh, area).skipped_recent) == ({}, 1)
    os.utime(lock, (1, 1))
    assert check(fresh, area).counts == {"import-leftover": 1}


def test_folders_that_come_and_go(fresh: db.Target, area: Path) -> None:
    """While the area is read, other threads store and delete files without rows."""
    ended = threading.Event()

    def churn() -> None:
        files = storage.FilesystemArea(area, sync=False)
        while not ended.is_set():
            name = str(uuids.uuid4())
            files.put(name, 1, [b"content"])
            files.delete(name)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(5):
            assert check(fresh, area, grace_s=0.1).findings == ()
    finally:
        ended.set()
        thread.join()


# --- without MD5 ------------------------------------------------------------------------------


def test_without_md5_sums_only_sizes_are_compared(fresh: db.Target, tmp_path: Path) -> None:
    area = tmp_path / "area"
    import_files(fresh, samples.folder(tmp_path / "in", 3), area, store_md5=False)
    for store_md5 in (None, False):
        report = check(fresh, area, store_md5=store_md5)
        assert (report.counts, report.without_md5) == ({}, 3)
    assert check(fresh, area, store_md5=True).counts == {"missing-hash": 3}
    path = path_of(area, uuids_of(fresh)[0])
    path.write_bytes(path.read_bytes() + b"x")
    assert check(fresh, area).counts == {"too-long": 1}


# --- the command ------------------------------------------------------------------------------

KEYS = {
    "area", "depth", "attachments", "bytes", "checked", "skipped_recent", "findings", "counts", "complete",
    "oldest_unverified", "rate_mb_per_s",
}  # fmt: skip


def pgorthanc(target: db.Target, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "verify",
        "storage",
        "--uri",
        target.dsn,
        "--grace",
        "0",
    ]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)


def test_the_command(fresh: db.Target, area: Path) -> None:
    healthy = pgorthanc(fresh, "--storage-dir", str(area), "--json")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    document = json.loads(healthy.stdout)
    assert document.keys() >= KEYS
    assert (document["findings"], document["counts"], document["complete"]) == ([], {}, True)
    assert document["bytes"] == sum(path.stat().st_size for path in area.rglob("*") if path.is_file())
    uuid = uuids_of(fresh)[0]
    path_of(area, uuid).write_bytes(b"")
    damaged = pgorthanc(fresh, "--storage-dir", str(area), "--json", "--list", "studies")
    assert damaged.returncode == 6
    document = json.loads(damaged.stdout)
    [finding] = document["findings"]
    assert finding.keys() == {"kind", "uuid", "file_type", "path", "level", "public_id", "detail"}
    assert (finding["kind"], finding["uuid"], finding["file_type"]) == ("truncated", uuid, 1)
    assert finding["path"] == str(path_of(area, uuid))
    assert len(document["studies"]) == 1
    page = pgorthanc(fresh, "--storage-dir", str(area))
    assert page.returncode == 6
    assert page.stdout.startswith("1 of 20 attachments is damaged, in 1 study.\n")
    assert "verify storage --list studies" in page.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no storage given"),
        (("--storage", "postgresql", "--storage-dir", "."), "contradict each other"),
    ],
)
def test_no_storage_or_two(fresh: db.Target, options: tuple[str, ...], words: str) -> None:
    refused = pgorthanc(fresh, *options)
    assert (refused.returncode, words in refused.stderr) == (2, True)


def test_another_storage_plugin_is_refused(fresh: db.Target, tmp_path: Path) -> None:
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(json.dumps({"AwsS3Storage": {"BucketName": "b"}}))
    refused = pgorthanc(fresh, "--config", str(configuration))
    assert (refused.returncode, "AwsS3Storage" in refused.stderr) == (2, True)


def test_the_configuration_names_the_folder(fresh: db.Target, area: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(json.dumps({"StorageDirectory": "area"}))
    done = pgorthanc(fresh, "--config", str(configuration), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["area"] == str(area)


def test_ctrl_c(fresh: db.Target, area: Path) -> None:
    """During the wait for a file that may get its row: the answer comes immediately."""
    orphan(area)
    shutil.rmtree(area / storage.JOURNAL_FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "pgorthanc_cli", "verify", "storage", "--uri", fresh.dsn, "--json"]
    command += ["--storage-dir", str(area), "--grace", "1h"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with closing(psycopg2.connect(fresh.dsn)) as conn, conn.cursor() as cur:
            conn.autocommit = True
            waiting, deadline = False, time.monotonic() + 30
            while not waiting and time.monotonic() < deadline:
                cur.execute(
                    """SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgorthanc verify storage'
                       AND datname = current_database() AND state = 'idle'
                       AND clock_timestamp() - state_change > '0.5 s'"""
                )
                waiting = cur.fetchone() == (1,)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    assert process.returncode == 130, error
    document = json.loads(out)
    assert (document["complete"], document["findings"], document["checked"]) == (False, [], 20)
