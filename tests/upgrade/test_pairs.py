"""Every way between two revisions, through the library: the catalog, the data, and what is kept aside."""

from __future__ import annotations

import itertools

import pytest

from pgorthanc_cli import db, upgrade
from tests.support import indexstate
from tests.support.schemas import CURRENT, ODD_SCHEMA, REVISIONS, rows, run
from tests.upgrade.changing import (
    Filled,
    change,
    require_revision,
    run_downgrade,
    run_upgrade,
    state,
)

PAIRS = list(itertools.permutations(REVISIONS, 2))


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_there_and_back_nothing_is_lost(filled: Filled, here: int, there: int) -> None:
    target = filled(here)
    before = state(target)

    changed = change(target, there)
    assert (changed.before, changed.revision, changed.phases) == (here, there, upgrade.PHASES)
    require_revision(target, there)
    assert indexstate.differing(before, state(target)) == []

    back = change(target, here)
    require_revision(target, here)
    assert indexstate.differing(before, state(target)) == []
    assert back.restored == changed.kept
    assert rows(target, "SELECT relname FROM pg_class WHERE relname LIKE 'pgorthanc%'") == []


def test_phase_by_phase(filled: Filled) -> None:
    target = filled(1)
    before = state(target)

    assert run_upgrade(target, phases=("prepare",)).revision == 1
    assert indexstate.differing(before, state(target)) == []
    assert rows(
        target, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'pgorthanc_uniquepublicid'::regclass"
    ) == [(True,)]
    switched = run_upgrade(target, phases=("switch",))
    assert (switched.revision, switched.child_counts) == (CURRENT, 0)
    assert rows(
        target, "SELECT count(*) FROM resources WHERE resourcetype < 3 AND childcount IS NOT NULL"
    ) == [(0,)]
    finished = run_upgrade(target, phases=("finish",))
    assert (
        finished.child_counts == rows(target, "SELECT count(*) FROM resources WHERE resourcetype < 3")[0][0]
    )
    require_revision(target, CURRENT)
    assert indexstate.differing(before, state(target)) == []


@pytest.mark.parametrize("phase", upgrade.PHASES)
def test_a_phase_that_has_run_can_be_run_again(filled: Filled, phase: str) -> None:
    target = filled(2)
    for earlier in upgrade.PHASES[: upgrade.PHASES.index(phase)]:
        run_upgrade(target, phases=(earlier,))
    first = run_upgrade(target, phases=(phase,))
    before = state(target)

    again = run_upgrade(target, phases=(phase,))

    assert (again.revision, again.repaired, again.child_counts) == (first.revision, (), 0)
    assert state(target) == before


def test_nothing_to_do(filled: Filled) -> None:
    target = filled(CURRENT)
    run_upgrade(target)
    before = state(target)
    changed = run_upgrade(target)
    assert (changed.before, changed.revision, changed.repaired, changed.kept) == (CURRENT, CURRENT, (), {})
    assert state(target) == before


def test_what_was_prepared_for_a_step_that_is_not_taken_is_dropped(filled: Filled) -> None:
    target = filled(4)
    run_upgrade(target, phases=("prepare",))
    assert rows(target, "SELECT count(*) FROM pg_constraint WHERE conname = 'pgorthanc_no_action'") == [(1,)]
    run_downgrade(target, 3)
    require_revision(target, 3)


def test_another_schema_and_another_index_beside_it(filled: Filled) -> None:
    target = filled(1)
    there = db.Target(target.dsn, schema=ODD_SCHEMA)
    quoted = ODD_SCHEMA.replace('"', '""')
    run(target, f'ALTER SCHEMA public RENAME TO "{quoted}"', "CREATE SCHEMA public")
    before = state(there)
    run_upgrade(there)
    require_revision(there, CURRENT)
    assert indexstate.differing(before, state(there)) == []
    assert rows(target, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]


def test_the_counters_are_corrected(filled: Filled) -> None:
    target = filled(6)
    run(
        target,
        "UPDATE globalintegers SET value = value + 17 WHERE key IN (0, 5)",
        "DELETE FROM globalintegers WHERE key = 3",
        "UPDATE globalintegers SET value = NULL WHERE key = 1",
        "INSERT INTO globalintegerschanges (key, value) VALUES (2, NULL)",
    )
    changed = run_upgrade(target)
    require_revision(target, CURRENT)
    assert len([what for what in changed.repaired if "counter" in what]) >= 4
