"""Sessions and programs that end at any point: afterwards entirely the old or the new revision; a rerun completes."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest

from pgorthanc_cli import db, upgrade
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.schema import catalog, steps
from tests.support import indexstate
from tests.support.schemas import run, snapshot
from tests.upgrade.changing import Filled, change, require_revision, state
from tests.upgrade.statements import KILL, killing, split
from tests.upgrade.test_states import BEFORE_REVISIONS

STEPS = [(step.start, step.end, step.script) for step in steps.all_steps()]


def entirely(target: db.Target, *numbers: int) -> int:
    """The revision, which must be one of them, and complete."""
    found = snapshot(target)
    number = int(found["property 4"])
    assert number in numbers
    left = catalog.differences(found, catalog.expected(number, with_storage=True))
    assert [
        str(difference) for difference in left if difference.matters and "pgorthanc" not in difference.name
    ] == []
    return number


@pytest.mark.parametrize(("start", "end", "script"), STEPS)
def test_the_server_ends_the_session_at_each_statement_of_a_step(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, start: int, end: int, script: str
) -> None:
    """The index is the same after each of them, so one database and one rerun do for all."""
    target = filled(max(start, 1))
    if start == 0:
        run(target, *BEFORE_REVISIONS)
    look = state if start else snapshot
    before = look(target), snapshot(target)
    text = steps.text(script)
    statements = split(text)
    assert "".join(statements).strip() == text.strip()
    original = steps.text
    for k in range(len(statements) + 1):
        killed = "".join([*statements[:k], KILL, *statements[k:]])
        monkeypatch.setattr(steps, "text", lambda name, t=killed: t if name == script else original(name))
        with pytest.raises(ConnectError, match="lost"):
            change(target, end, phases=("switch",))
        assert snapshot(target) == before[1], statements[k - 1]
        assert look(target) == before[0], statements[k - 1]
    monkeypatch.setattr(steps, "text", original)
    change(target, end)
    require_revision(target, end)
    if start:
        assert indexstate.differing(before[0], state(target)) == []


@pytest.mark.parametrize(("start", "end"), [(1, 10), (10, 1)])
def test_the_server_ends_a_session_at_each_statement_of_all_phases(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, start: int, end: int
) -> None:
    """Whatever was done before stays, or is undone; the next run begins where that is."""
    target = filled(start)
    before = state(target)
    for k in itertools.count(1):
        number = entirely(target, start, end)
        # From the new revision on, the last phase alone: until a run gets through.
        phases = ("finish",) if number == end else upgrade.PHASES
        with killing(monkeypatch, k) as killer, suppress(ConnectError):
            change(target, end, phases=phases)
        if not killer.fired:
            break
        assert indexstate.differing(before, state(target)) == []
    assert k > 100
    change(target, end)
    require_revision(target, end)
    assert indexstate.differing(before, state(target)) == []
