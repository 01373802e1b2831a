"""The rolling scrub: what is new first, then what was checked longest ago, damages each time."""

from __future__ import annotations

import os
import sqlite3
import stat
import uuid as uuids
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, ingest, locks, scrub
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.scrub import run
from tests.scrub.injected import Store, altered_end, half, missing, missing_object, null_hash
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import rows
from tests.support.schemas import run as execute

DAY_S = 86_400


@pytest.fixture(params=["files", "large objects"])
def store(request: pytest.FixtureRequest, fresh: db.Target, tmp_path: Path) -> Store:
    area = tmp_path / "area" if request.param == "files" else None
    import_files(fresh, samples.folder(tmp_path / "in", 20), area)
    return Store(fresh, area, compress=False)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "scrub.db"


def age(journal: Path, seconds: int, uuid: str = "") -> None:
    """Let the checks of all attachments, or of one, be older."""
    with closing(sqlite3.connect(journal)) as conn, conn:
        where, arguments = ("", ())
        if uuid:
            where, arguments = " WHERE uuid = ?", (uuids.UUID(uuid).bytes,)  # type: ignore[assignment]
        conn.execute(f"UPDATE checked SET at = at - ?{where}", (seconds, *arguments))


def check(store: Store, journal: Path, **settings: Any) -> scrub.StorageReport:
    return store.check(journal=journal, **settings)


def test_recent_checks_are_skipped(store: Store, journal: Path, tmp_path: Path) -> None:
    first = check(store, journal, max_age_s=DAY_S)
    assert (first.checked, first.skipped_recent, first.complete) == (20, 0, True)
    assert first.oldest_unverified is not None
    second = check(store, journal, max_age_s=DAY_S)
    assert (second.checked, second.skipped_recent, second.complete) == (0, 20, True)
    # What is new is checked, and only that.
    import_files(store.target, samples.folder(tmp_path / "more", 3, first=50), store.area)
    third = check(store, journal, max_age_s=DAY_S)
    assert (third.attachments, third.checked, third.skipped_recent) == (23, 3, 20)
    age(journal, 2 * DAY_S)
    assert check(store, journal, max_age_s=DAY_S).checked == 23


def test_without_max_age_everything_is_due_again(store: Store, journal: Path) -> None:
    check(store, journal)
    age(journal, 10)
    assert check(store, journal).checked == 20


def test_damages_are_checked_each_time(store: Store, journal: Path) -> None:
    uuid = altered_end(store)
    for _ in range(2):
        report = check(store, journal, max_age_s=DAY_S)
        assert [(each.kind, each.uuid) for each in report.findings] == [("altered", uuid)]
    assert (report.checked, report.skipped_recent) == (1, 19)


def test_damages_after_a_check_that_are_seen_without_reading(store: Store, journal: Path) -> None:
    """A file that vanished or was cut, and a damaged row, do not wait until the content is due again."""
    check(store, journal, max_age_s=DAY_S)
    vanished = missing(store) if store.area else missing_object(store)
    damaged = {vanished: "missing", half(store): "truncated", null_hash(store): "missing-hash"}
    for _ in range(2):
        report = check(store, journal, max_age_s=DAY_S)
        assert {each.uuid: each.kind for each in report.findings} == damaged
    assert report.skipped_recent == 17


def test_a_file_of_one_study_that_vanished_after_its_check(store: Store, journal: Path) -> None:
    check(store, journal, max_age_s=DAY_S)
    uuid = missing(store) if store.area else missing_object(store)
    ((study,),) = rows(
        store.target,
        f"""SELECT st.publicid FROM attachedfiles a JOIN resources i ON i.internalid = a.id
            JOIN resources se ON se.internalid = i.parentid JOIN resources st ON st.internalid = se.parentid
            WHERE a.uuid = '{uuid}'""",
    )
    report = check(store, journal, max_age_s=DAY_S, studies=(study,))
    assert [(each.kind, each.uuid) for each in report.findings] == [("missing", uuid)]


def test_the_oldest_come_first_and_a_budget_ends_it(store: Store, journal: Path) -> None:
    check(store, journal)
    everything = sorted(uuid for (uuid,) in rows(store.target, "SELECT uuid FROM attachedfiles"))
    age(journal, 2 * DAY_S)
    old = everything[-1]  # the last one in order
    age(journal, 100 * DAY_S, old)
    report = check(store, journal, max_age_s=DAY_S * 50)
    assert (report.checked, report.skipped_recent) == (1, 19)
    report = check(store, journal, budget_s=0.0)
    assert (report.complete, report.budget_used, report.checked) == (False, True, 0)
    assert check(store, journal, max_age_s=DAY_S).checked == 19


def test_attachments_that_are_gone_are_forgotten(store: Store, journal: Path) -> None:
    check(store, journal)
    uuid = store.take()
    execute(
        store.target,
        f"SELECT createdeletedfilestemporarytable(); DELETE FROM attachedfiles WHERE uuid = '{uuid}'",
    )
    check(store, journal, max_age_s=DAY_S)
    with closing(sqlite3.connect(journal)) as conn:
        assert conn.execute("SELECT count(*) FROM checked").fetchone() == (19,)


def test_a_deeper_check_counts_for_a_shallower_one(store: Store, journal: Path) -> None:
    assert check(store, journal, depth="identity").checked == 20
    assert check(store, journal, depth="hash", max_age_s=DAY_S).checked == 0
    journal.unlink()
    assert check(store, journal, depth="hash").checked == 20
    assert check(store, journal, depth="identity", max_age_s=DAY_S).checked == 20


def test_the_journal_of_another_index_is_refused(
    store: Store, journal: Path, empty: db.Target, tmp_path: Path
) -> None:
    check(store, journal)
    with db.session(empty) as conn:
        initialize.init(conn, schema="public", require_idle=locks.require_idle)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="journal of another index"):
        scrub.check(empty, scrub.Settings(tmp_path / "other", journal=journal, jobs=1))
    assert stat.S_IMODE(os.stat(journal).st_mode) == 0o600


def test_what_is_no_journal_is_left_alone(store: Store, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a journal, but long enough to be taken for one " * 20)
    with pytest.raises(PgOrthancError, match="cannot be used"):
        check(store, text)
    assert text.read_text().startswith("not a journal")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as conn, conn:
        conn.execute("CREATE TABLE x (y)")
    with pytest.raises(UsageError, match="not a journal"):
        check(store, other)


def test_a_rate_is_kept(store: Store, journal: Path) -> None:
    report = check(store, journal, max_bytes_per_s=1e9)
    assert report.checked == 20


@pytest.mark.parametrize(
    "options",
    [{"max_age": 3.0}, {"depth": "size", "journal": Path("x")}, {"depth": "exists", "budget": 1.0}],
)
def test_options_that_do_not_fit(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        scrub.from_options(None, storage_dir=tmp_path, **options)


@pytest.mark.parametrize("store", ["files"], indirect=True)
def test_the_hours_of_a_schedule(store: Store, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that reaches the end of the hours goes on at the next ones, where it has ended."""
    monkeypatch.setattr(run, "_BATCH_FILES", 4)
    monday = datetime(2026, 11, 23, tzinfo=timezone.utc)
    times = iter([monday + timedelta(hours=hour) for hour in (21, 21, 21, 7, 7, 7)])

    def clock() -> datetime:
        return next(times, monday + timedelta(hours=22))

    hours = ingest.Hours(((20 * 60, 24 * 60),), clock, 0.0)
    report = check(store, journal, hours=hours, max_age_s=DAY_S)
    assert (report.complete, report.findings) == (True, ())
    assert report.checked + report.skipped_recent == 20
    assert report.skipped_recent > 0
    with pytest.raises(UsageError, match="needs a journal"):
        scrub.from_options(None, storage_dir=store.area, schedule='{"Monday": ["20-24"]}')
