"""Rates and hours: what is handed to an import, and when."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pgorthanc_cli import db, ingest
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.pacing import DAYS, Hours, Limits
from tests.support import samples
from tests.support.importing import check_area
from tests.support.real_servers import wait_until

MONDAY = datetime(2024, 1, 1)  # a Monday


def sources(count: int, size: int = 0) -> Iterator[ingest.Source]:
    return (ingest.Source(f"/{n}", size=size) for n in range(count))


class Waits(threading.Event):
    """An event that remembers how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds += timeout or 0.0
        return super().wait(timeout)


# --- rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "count", "size", "least_s"),
    [
        (Limits(max_files_per_s=100), 60, 0, 0.57),
        (Limits(max_bytes_per_s=10e6), 6, 1_000_000, 0.48),
        (Limits(max_files_per_s=1000, max_bytes_per_s=10e6), 6, 1_000_000, 0.48),
        (Limits(max_files_per_s=100, max_bytes_per_s=1e9), 60, 10, 0.57),
    ],
)
def test_a_rate_is_kept(limit: Limits, count: int, size: int, least_s: float) -> None:
    started, stop = time.monotonic(), Waits()
    assert len(list(limit.throttled(sources(count, size), stop))) == count
    assert time.monotonic() - started >= least_s
    assert stop.seconds < least_s + 0.1


def test_no_limit_is_no_wait() -> None:
    stop = Waits()
    assert len(list(Limits().throttled(sources(100_000, 1 << 30), stop))) == 100_000
    assert stop.seconds == 0


def test_what_needs_no_work_does_not_wait() -> None:
    known = [ingest.Source("/1", size=1 << 40, known=True)] * 3
    stop = Waits()
    assert len(list(Limits(max_files_per_s=0.01).throttled(known, stop))) == 3
    assert stop.seconds == 0


def test_a_pause_earns_no_burst() -> None:
    """After a quiet time files go at the rate, not all at once: the peak is what a network feels."""
    limit = Limits(max_files_per_s=50)
    given = limit.throttled(sources(20), threading.Event())
    next(given)
    time.sleep(0.5)
    started = time.monotonic()
    assert len(list(given)) == 19
    assert time.monotonic() - started > 0.3


def test_stopping_ends_a_wait_at_once() -> None:
    stop = threading.Event()
    given = Limits(max_files_per_s=0.001).throttled(sources(2), stop)
    next(given)
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    assert list(given) == []
    assert time.monotonic() - started < 5


# --- hours -----------------------------------------------------------------------------------------------------

NIGHTS = {"Monday": ["0-6", "20-24"], "tuesday": [[6, 7]], "Sunday": ["6:30-7:45"]}


@pytest.mark.parametrize(
    ("moment", "open_"),
    [
        ("Mon 00:00", True), ("Mon 05:59", True), ("Mon 06:00", False), ("Mon 19:59", False),
        ("Mon 20:00", True), ("Mon 23:59", True), ("Tue 00:00", False), ("Tue 06:30", True),
        ("Sat 12:00", False), ("Sun 06:29", False), ("Sun 06:30", True), ("Sun 07:45", False),
    ],
)  # fmt: skip
def test_hours(moment: str, open_: bool) -> None:
    schedule = ingest.Hours.parse(json.dumps(NIGHTS))
    assert Hours(schedule.spans, lambda: at(moment)).open() is open_


@pytest.mark.parametrize(
    ("moment", "opens"),
    [
        ("Mon 03:00", "Mon 03:00"), ("Mon 06:00", "Mon 20:00"), ("Tue 07:00", "Sun 06:30"),
        ("Sun 07:45", "Mon 00:00"), ("Sun 06:30", "Sun 06:30"),
    ],
)  # fmt: skip
def test_the_next_opening(moment: str, opens: str) -> None:
    schedule = ingest.Hours.parse(json.dumps(NIGHTS))
    opening = Hours(schedule.spans, lambda: at(moment)).opening()
    assert f"{opening:%a %H:%M}" == opens
    assert opening >= at(moment)


def at(words: str) -> datetime:
    day, time_of_day = words.split()
    hour, minute = map(int, time_of_day.split(":"))
    days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    return MONDAY + timedelta(days=days.index(day), hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Monday": ["20-6"]}', "must begin before it ends"),
        ('{"Monday": ["0-25"]}', "end at 24 at the latest"),
        ('{"Monday": ["8"]}', "expected a range"),
        ('{"Monday": "0-6"}', "expected a list of ranges"),
        ('{"Montag": ["0-6"]}', "a day 'Montag', expected Monday"),
        ('{"Monday": []}', "no hour of the week"),
        ("{}", "no hour of the week"),
        ("{", "no JSON"),
        ("/nowhere/schedule.json", "cannot be read"),
    ],
)
def test_a_schedule_that_is_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ingest.Hours.parse(text)


def test_a_schedule_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"Sunday": ["0-24"]}))
    assert ingest.Hours.parse(str(path)).spans == ((6 * 1440, 7 * 1440),)


class Clock:
    """Monday, 5:59; after some looks it is 6 o'clock, then, after more, 20."""

    def __init__(self, *looks: tuple[int, str]) -> None:
        self.moments = [at(words) for count, words in looks for _ in range(count)]

    def __call__(self) -> datetime:
        return self.moments.pop(0) if len(self.moments) > 1 else self.moments[0]


def test_work_pauses_between_the_hours_and_loses_no_file(fresh: db.Target, tmp_path: Path) -> None:
    """In the pause no lock is held: an Orthanc can take it, and give it back."""
    samples.folder(tmp_path / "in", 30)
    hours = Hours(
        ingest.Hours.parse(json.dumps(NIGHTS)).spans,
        Clock((12, "Mon 05:59"), (8, "Mon 06:00"), (1, "Mon 20:00")),
        recheck_s=0.01,
    )
    settings = ingest.Settings(storage_dir=tmp_path / "area")
    warnings: list[str] = []
    imported: list[int] = []

    def report(batch: ingest.Batch) -> None:
        imported.append(batch.imported)
        warnings.extend(batch.warnings)
        if batch.warnings:
            with db.session(fresh) as conn, db.advisory_lock(conn, db.LOCK_INDEX, wait_s=0):
                pass

    plan = ingest.ImportPlan([str(tmp_path / "in")], jobs=1, hours=hours)
    ingest.run_import(fresh, plan, settings, report=report)
    assert sum(imported) == 30
    assert sum(count > 0 for count in imported) == 2
    assert 0 < max(imported) < 30
    assert warnings == ["outside the hours of the schedule: waiting until Monday 20:00"]
    check_area(fresh, tmp_path / "area")


# --- the program -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "options", [["--max-files", "0.01"], ["--schedule", "closed"]], ids=["rate", "hours"]
)
def test_signals_end_it_while_it_waits(
    fresh: db.Target, tmp_path: Path, number: signal.Signals, options: list[str]
) -> None:
    samples.folder(tmp_path / "in", 3)
    if "closed" in options:
        tomorrow = DAYS[(datetime.now().weekday() + 2) % 7]
        options = ["--schedule", json.dumps({tomorrow: ["0-24"]})]
    command = [
        sys.executable, "-m", "pgorthanc_cli", "import", "--json", "--uri", fresh.dsn, *options, "-j1",
        "--storage-dir", str(tmp_path / "area"), str(tmp_path / "in"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if "--schedule" in options:
        assert process.stderr
        assert "waiting until" in process.stderr.readline()
    else:
        wait_for_a_session(fresh)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert json.loads(out)["interrupted"] is True
    imported = json.loads(out)["imported"]
    assert imported == ("--schedule" not in options)
    with db.session(fresh) as conn, conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM attachedfiles")
        assert cur.fetchone() == (imported,)


def wait_for_a_session(target: db.Target) -> None:
    """Until the import works on the database; the first file is with it then, and the second waits."""
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:

        def held() -> bool:
            cur.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42")
            return cur.fetchone() == (1,)

        wait_until(held, "the import does not begin", timeout_s=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-files", "0"], "--max-files"),
        (["--schedule", '{"Monday": []}'], "no hour of the week"),
        (["--shard", "9/2"], "expected one of 1/N to N/N"),
        (["--follow", "--files-from", "-"], "--follow looks into folders"),
        (["--link", "hardlink", "--storage", "postgresql"], "the files go into the database"),
        (["--journal", "/nowhere/journal"], "the journal /nowhere/journal cannot be used"),
        (["--dask", "/nowhere/scheduler.json"], "no Dask scheduler at /nowhere/scheduler.json"),
        (["--dask", "tcp://127.0.0.1:1", "--stable-changes"], "log each of them as stable"),
    ],
)
def test_options_that_cannot_be(fresh: db.Target, tmp_path: Path, options: list[str], message: str) -> None:
    area = [] if "postgresql" in options else ["--storage-dir", str(tmp_path / "area")]
    command = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "import",
        "--uri",
        fresh.dsn,
        *area,
        *options,
        str(tmp_path),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode in (1, 2, 3)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "area").exists()
