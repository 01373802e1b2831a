"""The journal of known files: a rerun reads nothing, and whatever is wrong with the journal, no file is missed."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import cursor as Cursor

from pgorthanc_cli import db, dicom, index, ingest
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.ingest import known_files
from pgorthanc_cli.ingest.model import Known
from pgorthanc_cli.ingest.walk import walk
from pgorthanc_cli.ingest.worker import Work, Worker
from tests.support import samples
from tests.support.importing import check_area, dumped, ends, files_read
from tests.support.importing import run as run_plain
from tests.support.real_servers import wait_until


class Run:
    """Imports with a journal, and remembers which files were read."""

    def __init__(self, target: db.Target, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self.read: list[str] = []
        self.warnings: list[str] = []

    def __call__(
        self, *paths: Path, journal_delay_s: float = 0.0, **settings: Any
    ) -> tuple[int, int, int, int]:
        self.read, self.warnings = [], []

        def report(batch: ingest.Batch) -> None:
            self.read += files_read(batch)
            self.warnings += batch.warnings

        plan = ingest.ImportPlan(
            [str(path) for path in paths],
            jobs=1,
            journal=self.folder / "journal",
            journal_delay_s=journal_delay_s,
        )
        settings_ = ingest.Settings(storage_dir=self.folder / "area", **settings)
        return ends(ingest.run_import(self.target, plan, settings_, report=report))


@pytest.fixture
def run(fresh: db.Target, tmp_path: Path) -> Run:
    return Run(fresh, tmp_path)


def test_a_rerun_reads_only_what_is_new_changed_or_was_refused(run: Run, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in" / "a", 30)
    samples.folder(tmp_path / "in" / "b", 10, first=30)
    (tmp_path / "in" / "odd.txt").write_text("no DICOM")
    assert run(tmp_path / "in") == (40, 0, 0, 1)
    before = dumped(run.target)
    files[3].write_bytes(samples.instance("P9", "1.9", "1.9.1"))  # another size
    os.utime(files[4], ns=(1, 1))
    samples.folder(tmp_path / "in" / "c", 2, first=50)
    assert run(tmp_path / "in") == (3, 39, 0, 1)
    assert run.read == ["00003.dcm", "00004.dcm", "00050.dcm", "00051.dcm", "odd.txt"]
    assert run(tmp_path / "in") == (0, 42, 0, 1)
    assert run.read == ["odd.txt"]
    assert len(dumped(run.target)["resources"]) > len(before["resources"])
    check_area(run.target, tmp_path / "area")


def test_any_order_and_names_of_any_bytes(run: Run, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 20)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n'.dcm"))
    odd.write_bytes(samples.instance("P9", "1.9", "1.9.1"))
    assert run(*files[::-1], odd, files[0]) == (21, 1, 0, 0)
    assert run(files[7], odd, *files, odd) == (0, 23, 0, 0)
    assert run.read == []


@pytest.mark.parametrize("chunk_files", [1, 7, 1000])
def test_files_are_looked_up_in_chunks(run: Run, tmp_path: Path, chunk_files: int) -> None:
    samples.folder(tmp_path / "in", 20)
    run(tmp_path / "in")
    questions: list[int] = []

    def lookup(versions: list[known_files.Version]) -> set[known_files.Version]:
        questions.append(len(versions))
        return set(versions)

    path = tmp_path / "journal"
    with known_files.open_journal(path, dicom.Profile(), chunk_files=chunk_files) as (journal, _):
        sources = list(ingest.walk([str(tmp_path / "in")]))
        marked = list(journal.mark_known(sources, lookup))
    assert [source.path for source in marked] == [source.path for source in sources]
    assert all(source.known for source in marked)
    assert max(questions) == min(chunk_files, 20)
    assert sum(questions) == 20


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 cannot set limits")
def test_a_full_chunk_of_one_folder_is_within_the_limits_of_an_old_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
        conn: sqlite3.Connection = connect(*arguments, **options)
        if sys.version_info >= (3, 11):
            # The default before SQLite 3.32, as on RHEL 8.
            conn.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
        return conn

    monkeypatch.setattr(sqlite3, "connect", limited)
    sources = [ingest.Source(str(tmp_path / str(n)), size=1, mtime_ns=1) for n in range(2000)]
    with known_files.open_journal(None, dicom.Profile()) as (journal, _):
        assert list(journal.seeing(sources)) == sources
        assert not list(journal.unseen(sources))


def test_a_relative_path_is_one_of_its_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "1.dcm").write_bytes(samples.instance(name[:2] + "P", "1.9", "1.9.1"))
        os.utime(folder / "1.dcm", ns=(1, 1))
    monkeypatch.chdir(tmp_path / "one")
    assert run(Path("1.dcm")) == (1, 0, 0, 0)
    monkeypatch.chdir(tmp_path / "two")
    assert run(Path("1.dcm")) == (1, 0, 0, 0)
    monkeypatch.chdir(tmp_path)
    assert run(Path("one"), Path("two")) == (0, 2, 0, 0)
    assert run.read == []


# --- the journal is wrong, and nothing is missed ------------------------------------------------------------------


def test_what_the_index_has_lost_is_imported_again(run: Run, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", 20)
    run(tmp_path / "in")
    with db.session(run.target) as conn, conn, conn.cursor() as cur:
        for table in ("resources", "attachedfiles"):  # whose triggers want the plugin's temporary tables
            cur.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cur.execute("DELETE FROM resources WHERE resourcetype = 3 AND internalid % 3 = 0")
        lost = cur.rowcount
    assert 0 < lost < 20
    assert run(tmp_path / "in") == (lost, 20 - lost, 0, 0)
    assert len(run.read) == lost


def test_another_database_gets_every_file(
    run: Run, new_database: Callable[..., db.Target], template: str, tmp_path: Path
) -> None:
    samples.folder(tmp_path / "in", 20)
    run(tmp_path / "in")
    run.target = new_database(template)
    assert run(tmp_path / "in") == (20, 0, 0, 0)
    assert run(tmp_path / "in") == (0, 20, 0, 0)
    assert run.read == []


def test_other_identifiers_begin_it_anew(run: Run, tmp_path: Path) -> None:
    """DefaultEncoding decides how a PatientID is read, and so the identifier."""
    samples.folder(tmp_path / "in", 5)
    run(tmp_path / "in")
    assert run(tmp_path / "in", profile=dicom.Profile(default_encoding="Utf8")) == (0, 5, 0, 0)
    assert len(run.read) == 5
    assert run.warnings == [
        "the journal was made for Orthanc 1.13.0, Latin1, now it is Orthanc 1.13.0, Utf8: all files are read again"
    ]


def test_a_file_changed_this_very_moment_is_not_trusted(run: Run, tmp_path: Path) -> None:
    """It could change once more within the same tick of the file system's clock."""
    old, new = samples.folder(tmp_path / "in", 2)
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    run(tmp_path / "in", journal_delay_s=3600)
    assert run(tmp_path / "in") == (0, 2, 0, 0)
    assert run.read == [new.name]


def test_an_interrupted_run_has_claimed_nothing_that_is_not_there(run: Run, tmp_path: Path) -> None:
    """The journal may say more than was committed: the index is asked."""
    files = samples.folder(tmp_path / "in", 6)
    run(tmp_path / "in")
    with db.session(run.target) as conn, conn, conn.cursor() as cur:
        cur.execute("TRUNCATE resources CASCADE")
    assert run(*files) == (6, 0, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no database" * 100, "file is not a database"), (None, "it is the database of another program")],
)
def test_a_file_that_is_no_journal_is_left_alone(
    run: Run, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "journal"
    if content:
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as conn:
            conn.execute("CREATE TABLE theirs (x)")
        conn.close()
    before = path.read_bytes()
    with pytest.raises(PgOrthancError, match=message) as caught:
        run(samples.REAL)
    assert "--journal" in str(caught.value.hint)
    assert path.read_bytes() == before


def damage(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[4096 * 4 :] = b"\xff" * len(data[4096 * 4 :])
    path.write_bytes(data)
    return bytes(data)


def test_a_damaged_journal_is_set_aside_with_a_warning(run: Run, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", 400)
    run(tmp_path / "in")
    damaged = damage(tmp_path / "journal")
    assert run(tmp_path / "in") == (0, 400, 0, 0)
    assert "is damaged" in run.warnings[0]
    assert "journal.damaged-1" in run.warnings[0]
    assert (tmp_path / "journal.damaged-1").read_bytes() == damaged
    assert run(tmp_path / "in") == (0, 400, 0, 0)
    assert run.warnings == []


def test_damage_that_comes_to_light_in_the_middle_ends_the_run(run: Run, tmp_path: Path) -> None:
    """A large journal is not checked as a whole."""
    run(samples.REAL)
    path = tmp_path / "journal"
    with (
        pytest.raises(PgOrthancError, match="malformed") as caught,
        known_files.open_journal(path, dicom.Profile()),
    ):
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert "run it again" in str(caught.value.hint)
    assert (tmp_path / "journal.damaged-1").exists()
    assert run(samples.REAL) == (0, 1, 0, 0)


def test_a_journal_names_files_so_only_its_owner_may_read_it(run: Run, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run(samples.REAL)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("journal*")} == {0o600}


def test_two_imports_do_not_share_a_journal(run: Run, tmp_path: Path) -> None:
    with known_files.open_journal(tmp_path / "journal", dicom.Profile()):
        with pytest.raises(PgOrthancError, match="database is locked"):
            run(samples.REAL)


@pytest.mark.parametrize("overwrite", [index.Overwrite.ALWAYS, index.Overwrite.IF_CHANGED])
def test_overwriting_and_passing_over_contradict_each_other(run: Run, overwrite: index.Overwrite) -> None:
    with pytest.raises(UsageError, match="--overwrite"):
        run(samples.REAL, overwrite=overwrite)


@pytest.mark.once
def test_twenty_thousand_known_files_take_seconds(run: Run, tmp_path: Path) -> None:
    """Hard links to one file: what is measured is the walk, the journal and the question to the index."""
    count, per_folder = 20_000, 1000
    one = tmp_path / "one.dcm"
    one.write_bytes(samples.instance())
    for n in range(count):
        folder = tmp_path / "in" / f"{n // per_folder:05}"
        if n % per_folder == 0:
            folder.mkdir(parents=True)
            first = folder / "0.dcm"
            first.write_bytes(one.read_bytes())
        else:
            os.link(first, folder / f"{n}.dcm")
    run(one)
    record_all(tmp_path)
    assert run(tmp_path / "in") == (0, count, 0, 0)
    assert run.read == []


def record_all(folder: Path) -> None:
    """As if every file had been imported once: they all hold the same instance."""
    public_id = dicom.parse(samples.instance(), dicom.Profile()).levels[index.INSTANCE].public_id
    summary = ingest.InstanceSummary(public_id, "", "", "", "")
    journal_file = folder / "journal"
    with known_files.open_journal(journal_file, dicom.Profile(), delay_s=0) as (journal, _):
        journal.add(
            ingest.IndexedFile(source, index.Outcome.KNOWN, source.size, summary)
            for source in ingest.walk([str(folder / "in")])
        )


@pytest.mark.once
def test_kill_9_again_and_again_misses_no_file(
    new_database: Callable[..., db.Target], template: str, tmp_path: Path
) -> None:
    """The journal, the index and the storage are cut off at different moments each time."""
    samples.folder(tmp_path / "in", 2000, patients=9)
    interrupted, whole = new_database(template), new_database(template)
    command = [
        sys.executable, "-m", "pgorthanc_cli", "import", "--json", "--uri", interrupted.dsn, "--link", "hardlink",
        "--storage-dir", str(tmp_path / "area"), "--journal", str(tmp_path / "journal"), str(tmp_path / "in"),
    ]  # fmt: skip
    with db.session(interrupted, autocommit=True) as conn, conn.cursor() as cur:
        for target in (100, 500, 900, 1300):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None:
                cur.execute("SELECT count(*) FROM attachedfiles")
                if cur.fetchall()[0][0] >= target:
                    process.kill()
                    break
            process.wait()
            wait_for_no_session(cur)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["imported"] + report["known"] == 2000
    run_plain(whole, [tmp_path / "in"], tmp_path / "whole", jobs=2)
    assert dumped(interrupted) == dumped(whole)
    check_area(interrupted, tmp_path / "area")
    assert len(list((tmp_path / "in").iterdir())) == 2000


def wait_for_no_session(cur: Cursor) -> None:
    """Until the server has noticed that its client is gone, and let go of lock 42."""

    def gone() -> bool:
        cur.execute(
            """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
        )
        return cur.fetchone() == (0,)

    wait_until(gone, "a session stays", timeout_s=30)


def test_known_files_are_recognized_by_their_md5_without_parsing(fresh: db.Target, tmp_path: Path) -> None:
    """A worker that expects known files finds the same as one that does not."""
    area, folder = tmp_path / "area", tmp_path / "in"
    files = samples.folder(folder, 8)
    run_plain(fresh, files, area)
    files[1].write_bytes(samples.instance("P1", "1.2.1", "1.2.1.0", 2, SeriesDescription="changed"))
    files[2].write_bytes(b"no DICOM file")
    samples.folder(folder, 1, first=20)
    lost = hashlib.md5(files[3].read_bytes()).hexdigest()
    [damaged] = [path for path in area.rglob("*-*") if hashlib.md5(path.read_bytes()).hexdigest() == lost]
    damaged.unlink()
    sources = list(walk([os.fspath(folder)]))
    settings = ingest.Settings(storage_dir=area, dry_run=True)
    first, second = (Worker(Work(fresh, settings, None)) for _ in range(2))
    by_content = second._known_by_content(sources)
    assert {os.path.basename(source.path) for source in by_content} == {
        files[n].name for n in (0, 4, 5, 6, 7)
    }
    second._expects_known = True
    for slow, fast in zip(first.prepare("1", sources), second.prepare("1", sources), strict=True):
        assert type(slow) is type(fast)
        if isinstance(slow, Known) and isinstance(fast, Known):
            assert (slow.source, slow.size, slow.md5, slow.comparison) == (
                fast.source, fast.size, fast.md5, fast.comparison
            )  # fmt: skip
            assert slow.summary.public_id == fast.summary.public_id
            assert slow.summary.patient_id == fast.summary.patient_id
    assert first._expects_known
    first.close()
    second.close()
