"""Files whose instance is stored already: compared, and replaced by a later version."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pgorthanc_cli import db, ingest, storage
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.index import Overwrite
from tests.ingest.test_follow import Following, aged
from tests.support import samples
from tests.support.areas import stored_bytes
from tests.support.importing import check_area, dumped, ends, files_read, run
from tests.support.schemas import rows
from tests.support.schemas import run as execute


def changed(path: Path) -> Path:
    """The same instance with other pixels."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    return path


def stored(target: db.Target) -> dict[str, str]:
    """Uuid -> MD5."""
    return dict(rows(target, "SELECT uuid, uncompressedhash FROM attachedfiles ORDER BY id"))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def lose(target: db.Target, area: Path | None, hash_: str) -> str:
    """Remove the stored content with that MD5, behind the back of the index; its uuid."""
    [(uuid,)] = rows(
        target, f"SELECT uuid FROM attachedfiles WHERE uncompressedhash = '{hash_}' AND filetype = 1"
    )
    if area:
        storage.FilesystemArea(area).delete(uuid)
    else:  # as after pg_dump -B: the row points to nothing
        execute(target, f"SELECT lo_unlink(content) FROM storagearea WHERE uuid = '{uuid}'")
    return str(uuid)


def whole(target: db.Target, area: Path | None) -> None:
    """Every attachment is what its row says, and nothing else is stored."""
    if area:
        check_area(target, area)
        return
    with db.session(target, readonly=True) as conn:
        objects = storage.LargeObjectArea(conn)
        query = "SELECT uuid, filetype, compressedsize, compressedhash FROM index.attachedfiles"
        for uuid, kind, size, hash_ in db.rows(conn, query):
            stored = stored_bytes(objects, uuid, kind)
            assert (len(stored), hashlib.md5(stored).hexdigest()) == (size, hash_)
        objects_total = db.value(conn, "SELECT count(*) FROM pg_largeobject_metadata")
        assert db.value(conn, "SELECT count(*) FROM index.storagearea") == objects_total


# --- known, but different ----------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_known_file_with_other_content_is_counted_and_listed(
    fresh: db.Target, tmp_path: Path, area: Path | None, jobs: int
) -> None:
    files = samples.folder(tmp_path / "in", 5)
    run(fresh, files, area)
    before = dumped(fresh)
    changed(files[1])
    report = run(fresh, files, area, jobs)
    assert ends(report) == (0, 5, 0, 0)
    assert (report.differing, report.uncompared, report.restored) == (1, 0, 0)
    [difference] = report.differences
    assert difference.path == str(files[1])
    assert md5(files[1]) in difference.reason
    assert dumped(fresh) == before
    assert ends(run(fresh, files, area, overwrite=Overwrite.IF_CHANGED)) == (0, 4, 1, 0)
    report = run(fresh, files, area)
    assert (report.known, report.differing) == (5, 0)


def test_two_versions_in_one_import(fresh: db.Target, tmp_path: Path, area: Path | None) -> None:
    """The second one is known by the time of its turn, in the same transaction."""
    [first] = samples.folder(tmp_path / "in", 1)
    second = changed(Path(shutil.copy(first, tmp_path / "in" / "second.dcm")))
    same = Path(shutil.copy(first, tmp_path / "in" / "same.dcm"))
    for dry_run in (True, False):
        report = run(fresh, [first, second, same], area, dry_run=dry_run)
        assert ends(report) == (1, 2, 0, 0)
        assert [each.path for each in report.differences] == [str(second)]
    assert list(stored(fresh).values()) == [md5(first)]


def test_without_md5_sums_only_sizes_are_compared(
    fresh: db.Target, tmp_path: Path, area: Path | None
) -> None:
    files = samples.folder(tmp_path / "in", 3)
    run(fresh, files, area, store_md5=False)
    changed(files[0])
    files[1].write_bytes(files[1].read_bytes() + bytes.fromhex("fcfffcff 4f42 0000 00000000"))
    report = run(fresh, files, area, store_md5=False)
    assert ends(report) == (0, 3, 0, 0)
    assert (report.differing, report.uncompared) == (1, 2)


def test_if_changed_without_md5_sums_is_refused_as_by_orthanc(fresh: db.Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="IfChanged"):
        run(fresh, [], tmp_path / "area", store_md5=False, overwrite=Overwrite.IF_CHANGED)


def test_an_instance_without_its_dicom_file_differs(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, tmp_path / "area")
    execute(fresh, "SELECT createdeletedfilestemporarytable(); DELETE FROM attachedfiles")
    assert run(fresh, files, tmp_path / "area").differing == 1
    assert ends(run(fresh, files, tmp_path / "area", overwrite=Overwrite.IF_CHANGED)) == (0, 0, 1, 0)


def test_the_command_says_so(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files, tmp_path / "area")
    changed(files[0])

    def pgorthanc(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pgorthanc_cli", "import", "--uri", fresh.dsn, *options]
        more = ["--storage-dir", str(tmp_path / "area"), *map(str, files)]
        return subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=60)

    screen = pgorthanc().stdout
    assert screen.startswith("Nothing to do: all 2 files are already stored.\n")
    assert "1 skipped file differs from the stored instances" in screen
    (command,) = re.findall("    pgorthanc (.*)", screen)
    assert "--overwrite if-changed" in command
    screen = pgorthanc("--dry-run").stdout
    assert screen.startswith("Dry run, nothing was imported: 0 of 2 files could be imported.\n")
    assert '"dry_run": true' in pgorthanc("--dry-run", "--json").stdout
    assert '"dry_run": false' in pgorthanc("--json").stdout
    replaced = subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", *shlex.split(command)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1  imported in place of the stored instance" in replaced.stdout


# --- with a journal ----------------------------------------------------------------------------------------


def import_with_journal(
    target: db.Target, plan: ingest.ImportPlan, area: Path | None, read: list[str] | None = None
) -> ingest.ImportResult:
    """An import; the names of the files that it reads go into `read`."""

    def report(batch: ingest.Batch) -> None:
        if read is not None:
            read.extend(files_read(batch))

    return ingest.run_import(target, plan, ingest.Settings(storage_dir=area), report=report)


def test_a_journal_does_not_hide_that_a_file_differs(
    fresh: db.Target, tmp_path: Path, area: Path | None
) -> None:
    files = [aged(path) for path in samples.folder(tmp_path / "in", 3)]
    plan = ingest.ImportPlan([str(tmp_path / "in")], jobs=1, journal=tmp_path / "journal")
    assert import_with_journal(fresh, plan, area).imported == 3
    read: list[str] = []
    assert import_with_journal(fresh, plan, area, read).known == 3
    assert read == []
    time = files[0].stat().st_mtime_ns
    os.utime(changed(files[0]), ns=(time, time))  # the same size and time of change: not seen, as documented
    assert import_with_journal(fresh, plan, area, read).differing == 0
    os.utime(files[0], (1, 1))
    for _ in range(2):  # it is listed each time
        report = import_with_journal(fresh, plan, area, read)
        assert (report.known, report.differing) == (3, 1)
    assert read == ["00000.dcm"] * 2
    other = changed(Path(shutil.copy(files[1], tmp_path / "newer.dcm")))
    run(fresh, [other], area, overwrite=Overwrite.ALWAYS)  # now the index has something else than this file
    assert import_with_journal(fresh, plan, area, read).differing == 2
    assert read[2:] == ["00000.dcm", "00001.dcm"]


def test_a_journal_does_not_hide_that_content_is_missing(
    fresh: db.Target, tmp_path: Path, area: Path | None
) -> None:
    files = [aged(path) for path in samples.folder(tmp_path / "in", 3)]
    plan = ingest.ImportPlan([str(tmp_path / "in")], jobs=1, journal=tmp_path / "journal")
    import_with_journal(fresh, plan, area)
    lose(fresh, area, md5(files[2]))
    read: list[str] = []
    report = import_with_journal(fresh, plan, area, read)
    assert (read, report.known, report.restored) == (["00002.dcm"], 2, 1)
    whole(fresh, area)


def test_a_journal_of_an_older_version_is_brought_up_to_date(fresh: db.Target, tmp_path: Path) -> None:
    for path in samples.folder(tmp_path / "in", 3):
        aged(path)
    plan = ingest.ImportPlan([str(tmp_path / "in")], jobs=1, journal=tmp_path / "journal")
    import_with_journal(fresh, plan, tmp_path / "area")
    with sqlite3.connect(tmp_path / "journal") as conn:
        conn.execute("ALTER TABLE files DROP COLUMN md5")
        conn.execute("ALTER TABLE files DROP COLUMN stored")
    conn.close()
    read: list[str] = []
    assert import_with_journal(fresh, plan, tmp_path / "area", read).known == 3
    assert read == []


# --- --follow ----------------------------------------------------------------------------------------------


def preallocated(path: Path) -> bytes:
    """A file with its full size and zeros in its pixel data; returns what it will be."""
    content = samples.instance(PixelData=bytes(range(1, 9)))
    path.write_bytes(content[:-8] + bytes(8))
    return content


def test_follow_replaces_what_was_imported_too_early(fresh: db.Target, tmp_path: Path) -> None:
    path = tmp_path / "in" / "scan.dcm"
    path.parent.mkdir()
    content = preallocated(path)
    with Following(fresh, tmp_path) as import_:
        import_.until(lambda r: r.imported == 1)
        path.write_bytes(content)
        import_.until(lambda r: r.overwritten == 1)
        os.utime(path)  # once more, without a change
        import_.until(lambda r: r.known == 1)
    assert list(stored(fresh).values()) == [md5(path)]
    assert import_.result.differing == 0
    check_area(fresh, import_.area)


def test_follow_replaces_only_what_came_from_that_path(fresh: db.Target, tmp_path: Path) -> None:
    """Another file with the same identifiers, and one that was stored by others, are known and different."""
    (tmp_path / "in").mkdir()
    first, second = tmp_path / "in" / "a.dcm", tmp_path / "in" / "b.dcm"
    content = preallocated(first)
    with Following(fresh, tmp_path) as import_:
        import_.until(lambda r: r.imported == 1)
        second.write_bytes(content)
        import_.until(lambda r: r.differing == 1)
        assert list(stored(fresh).values()) == [md5(first)]
        newer = tmp_path / "newer.dcm"
        newer.write_bytes(content[:-8] + b"newer..!")
        run(fresh, [newer], import_.area, overwrite=Overwrite.ALWAYS)
        first.write_bytes(content)
        import_.until(lambda r: r.differing == 2)
    assert list(stored(fresh).values()) == [md5(newer)]
    assert import_.result.overwritten == 0


def test_follow_replaces_it_after_a_restart_with_a_journal(fresh: db.Target, tmp_path: Path) -> None:
    path = tmp_path / "in" / "scan.dcm"
    path.parent.mkdir()
    content = preallocated(path)
    journal = tmp_path / "journal"
    with Following(fresh, tmp_path, journal=journal) as import_:
        import_.until(lambda r: r.imported == 1)
    path.write_bytes(content)
    aged(path)
    with Following(fresh, tmp_path, journal=journal) as import_:
        import_.until(lambda r: r.overwritten == 1)
    assert list(stored(fresh).values()) == [md5(path)]
    with Following(fresh, tmp_path, journal=journal) as import_:
        import_.until(lambda r: r.known == 1)
    assert import_.result.differing == 0
    check_area(fresh, import_.area)
