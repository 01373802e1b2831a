"""The check `storage` of doctor: what the journal of `verify storage` tells."""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db, doctor, scrub
from pgorthanc_cli.doctor.model import Check
from tests.scrub.injected import Store, altered_end, missing, orphan_other
from tests.support import samples
from tests.support.importing import run as import_files

DAY_S = 86_400


@pytest.fixture
def store(fresh: db.Target, tmp_path: Path) -> Store:
    import_files(fresh, samples.folder(tmp_path / "in", 4), tmp_path / "area")
    return Store(fresh, tmp_path / "area", compress=False)


def verdict(store: Store, journal: Path | None) -> Check:
    health = doctor.examine(
        store.target, ["storage"], scrub_journal=journal, storage_words=("--storage-dir", str(store.area))
    )
    (check,) = health.checks
    return check


def execute(journal: Path, *statements: str) -> None:
    with closing(sqlite3.connect(journal)) as conn, conn:
        for statement in statements:
            conn.execute(statement)


def test_without_a_journal_it_is_not_among_the_checks_that_passed(store: Store, tmp_path: Path) -> None:
    assert "storage" not in [check.name for check in doctor.examine(store.target).checks]
    named = doctor.examine(store.target, scrub_journal=tmp_path / "scrub.db").checks
    assert "storage" in [check.name for check in named]


def test_what_the_last_check_found(store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "scrub.db"
    alone = verdict(store, None)
    assert (alone.status, "--journal" in (alone.hint or "")) == ("UNKNOWN", True)
    never = verdict(store, journal)
    assert (never.status, "never checked" in never.message, journal.exists()) == ("WARNING", True, False)
    done = CliRunner().invoke(cli.main, [*shlex.split(never.command), "--uri", store.target.dsn])
    assert done.exit_code == 0, done.output
    assert verdict(store, journal).status == "OK"
    orphan_other(store)
    store.check(journal=journal)
    orphans = verdict(store, journal)
    assert (orphans.status, "1 orphan: 1 orphan-other" in orphans.message) == ("WARNING", True)
    before = store.copy_to(tmp_path / "mirror")
    missing(store), altered_end(store)
    report = store.check(journal=journal, max_age_s=0)
    damaged = verdict(store, journal)
    assert (damaged.status, "1 missing, 1 altered" in damaged.message) == ("CRITICAL", True)
    settings = scrub.Settings(store.area, journal=journal)
    scrub.repair(store.target, settings, scrub.find_copies(store.target, settings, report, before))
    assert verdict(store, journal).status == "WARNING"  # the orphan


def test_old_checks(store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "scrub.db"
    store.check(journal=journal, budget_s=0.000001)
    begun = verdict(store, journal)
    assert (begun.status, "4 of 4 attachments were not read yet" in begun.message) == ("OK", True)
    store.check(journal=journal)
    execute(journal, f"UPDATE checked SET at = at - {100 * DAY_S}")
    assert "was last checked 100 d" in verdict(store, journal).message
    execute(journal, f"UPDATE last_run SET finished_at = finished_at - {10 * DAY_S}")
    late = verdict(store, journal)
    assert (late.status, "was 10 d" in late.message) == ("WARNING", True)
    execute(journal, "DROP TABLE last_run")  # the journal of an earlier release
    assert "has finished yet" in verdict(store, journal).message
    store.check(journal=journal)
    assert verdict(store, journal).status == "OK"


def test_journals_that_cannot_be_used(store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "scrub.db"
    store.check(journal=journal)
    with closing(sqlite3.connect(journal)) as conn:  # as a check that is running
        conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        conn.execute("INSERT INTO about SELECT identity FROM about")
        assert "is running now" in verdict(store, journal).message
    execute(journal, "UPDATE about SET identity = 'another'")
    assert verdict(store, journal).status == "UNKNOWN"
    journal.write_bytes(b"nonsense" * 1000)
    assert (verdict(store, journal).status, journal.read_bytes()) == ("UNKNOWN", b"nonsense" * 1000)
