"""Following folders: what arrives is imported once it is complete, once, and the program ends when it is told to."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db, ingest
from pgorthanc_cli.ingest import arrivals
from tests.support import samples
from tests.support.importing import check_area, dumped, files_read
from tests.support.real_servers import wait_until

SETTLE_S = 0.3


class Following:
    """An import in a thread that follows `<folder>/in`."""

    def __init__(
        self,
        target: db.Target,
        folder: Path,
        settle_s: float = SETTLE_S,
        journal: Path | None = None,
        jobs: int = 1,
        max_waiting: int = 10_000,
    ) -> None:
        self.target = target
        self.folder = folder / "in"
        self.folder.mkdir(exist_ok=True)
        self.area = folder / "area"
        self.stop = threading.Event()
        self.read: list[str] = []
        self.processes: list[int] = []  # how many worked, for each batch
        self._tally = ingest.Tally()
        self._settings = ingest.Settings(storage_dir=self.area)
        self._plan = ingest.ImportPlan(
            [str(self.folder)],
            jobs=jobs,
            follow=True,
            settle_s=settle_s,
            journal=journal,
            poll_s=0.05,
            poll_rest=1,
            max_waiting=max_waiting,
        )
        self._errors: queue.Queue[BaseException] = queue.Queue()
        self._thread = threading.Thread(target=self._work)

    @property
    def result(self) -> ingest.ImportResult:
        return self._tally.result()

    def _work(self) -> None:
        try:
            ingest.run_import(self.target, self._plan, self._settings, stop=self.stop, report=self._report)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self._errors.put(error)

    def _report(self, batch: ingest.Batch) -> None:
        self._tally.add(batch)
        self.read += files_read(batch)
        if batch.files:
            self.processes.append(len(multiprocessing.active_children()))

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if not self._errors.empty():
            raise self._errors.get()

    def until(self, condition: Callable[[ingest.ImportResult], bool]) -> None:
        def done() -> bool:
            assert self._thread.is_alive()
            return condition(self.result)

        wait_until(done, timeout_s=30)


def aged(path: Path) -> Path:
    os.utime(path, (time.time() - 60, time.time() - 60))
    return path


def test_what_is_there_and_what_arrives(fresh: db.Target, tmp_path: Path) -> None:
    for path in samples.folder(tmp_path / "in", 10):
        aged(path)
    with Following(fresh, tmp_path, jobs=2) as import_:
        import_.until(lambda r: r.imported == 10)
        samples.folder(tmp_path / "in" / "new" / "folder", 5, first=10)
        import_.until(lambda r: r.imported == 15)
        (tmp_path / "in" / "odd.txt").write_text("no DICOM")
        import_.until(lambda r: r.refused == 1)
        aged(samples.folder(tmp_path / "elsewhere", 1, first=20)[0]).rename(tmp_path / "in" / "moved.dcm")
        import_.until(lambda r: r.imported == 16)
    assert len(import_.read) == len(set(import_.read)) == 17
    assert import_.processes[0] == 2
    assert set(import_.processes[1:]) == {0}  # not worth starting processes
    check_area(fresh, import_.area)


def test_no_lock_is_held_while_nothing_arrives(fresh: db.Target, tmp_path: Path) -> None:
    aged(samples.folder(tmp_path / "in", 1)[0])
    with Following(fresh, tmp_path) as import_:
        import_.until(lambda r: r.imported == 1)
        with db.session(fresh) as conn, db.advisory_lock(conn, db.LOCK_INDEX, wait_s=10):
            pass


def test_a_file_is_taken_when_it_is_complete(fresh: db.Target, tmp_path: Path) -> None:
    """It grows in steps, each within the time that it must stay the same."""
    data = samples.instance(PixelData=bytes(100_000))
    with Following(fresh, tmp_path, settle_s=1.0) as import_:
        path = tmp_path / "in" / "growing.dcm"
        for start in range(0, len(data), 20_000):
            with path.open("ab") as file:
                file.write(data[start : start + 20_000])
            grown = time.monotonic()
            while time.monotonic() < grown + 0.2:
                assert not import_.read
                time.sleep(0.02)
        import_.until(lambda r: r.imported == 1)
    assert import_.read == ["growing.dcm"]
    assert import_.result.refused == 0


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_a_file_that_somebody_has_open_for_writing_is_not_taken(fresh: db.Target, tmp_path: Path) -> None:
    """However long its writer pauses: the sign that it is complete is that it is closed."""
    data = samples.instance()
    with Following(fresh, tmp_path, settle_s=0.0) as import_:
        slow, quick = (tmp_path / "in" / name for name in ("slow.dcm", "quick.dcm"))
        with slow.open("wb", buffering=0) as file:
            file.write(data[:500])
            quick.write_bytes(samples.instance(number=2))
            import_.until(lambda r: r.imported == 1)
            file.write(data[500:])
        import_.until(lambda r: r.imported == 2)
    assert import_.read == ["quick.dcm", "slow.dcm"]


def test_opening_a_file_while_it_is_looked_at_harms_nobody(tmp_path: Path) -> None:
    """A lease that is broken sends a signal; the default one would end the process."""
    path = tmp_path / "busy.dcm"
    path.touch()
    done = threading.Event()
    opened = 0

    def write() -> None:
        nonlocal opened
        while not done.is_set():
            with path.open("ab"):
                opened += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        answers = {arrivals._open_for_writing(str(path)) for _ in range(5000)}
    finally:
        done.set()
        writer.join()
    assert opened
    assert answers <= {True, False}


def test_what_was_refused_is_tried_again_when_it_changes(fresh: db.Target, tmp_path: Path) -> None:
    data = samples.instance()
    with Following(fresh, tmp_path) as import_:
        path = tmp_path / "in" / "cut.dcm"
        path.write_bytes(data[:-4])
        import_.until(lambda r: r.refused == 1)
        path.write_bytes(data)
        import_.until(lambda r: r.imported == 1)
    assert import_.result.refused == 1


def test_many_at_once_come_in_rounds(fresh: db.Target, tmp_path: Path) -> None:
    with Following(fresh, tmp_path, max_waiting=20) as import_:
        samples.folder(tmp_path / "in", 100)
        import_.until(lambda r: r.imported == 100)
    assert len(import_.read) == 100


def test_with_a_journal_a_second_one_goes_on_where_the_first_stopped(
    fresh: db.Target, tmp_path: Path
) -> None:
    for path in samples.folder(tmp_path / "in", 10):
        aged(path)
    command = [
        sys.executable, "-m", "pgorthanc_cli", "import", "--json", "--uri", fresh.dsn, "--follow",
        "--settle", "0.1", "--journal", str(tmp_path / "journal"), "--storage-dir", str(tmp_path / "area"),
        str(tmp_path / "in"),
    ]  # fmt: skip
    totals = []
    for expected, more in ((10, []), (13, [10, 11, 12])):
        for n in more:
            samples.folder(tmp_path / "in", 1, first=n)
        with running(command) as process:
            wait_for_rows(fresh, expected, process)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        document = json.loads(out)
        totals.append((document["imported"], document["known"]))
    assert totals == [(10, 0), (3, 10)]
    assert len([r for r in dumped(fresh)["resources"] if r[1] == 3]) == 13
    check_area(fresh, tmp_path / "area")


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_rows(target: db.Target, count: int, process: subprocess.Popen[str]) -> None:
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:

        def there() -> bool:
            assert process.poll() is None
            cur.execute("SELECT count(*) FROM attachedfiles")
            return cur.fetchone() == (count,)

        wait_until(there, f"not {count} rows", timeout_s=30)
