"""What the user sees of results: states that change, lines for a monitoring system."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from pgorthanc_cli import output


@dataclass(frozen=True)
class Held:
    key: int
    application: str | None


@dataclass(frozen=True)
class State:
    database: str
    locks: tuple[Held, ...]


STATE = State("pacs", (Held(42, "[bold]Orthanc[/bold]"), Held(43, None)))


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_shows_each_state_that_is_new_once(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [STATE, STATE, State("pacs", ())]

    def make() -> State:
        if not states:
            raise KeyboardInterrupt
        return states.pop(0)

    output.watch(make, None if as_json else lambda state: f"{len(state.locks)} locks\n", every_s=0)
    shown = capsys.readouterr().out
    if as_json:
        assert [len(json.loads(line)["locks"]) for line in shown.splitlines()] == [2, 0]
    else:
        assert shown == "2 locks\n\n0 locks\n"


def test_a_monitoring_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.nagios("check-lock", "CRITICAL", "held by\npid 7 | psql", {"locks": 2, "oldest session": "12s;30"})
    assert (
        capsys.readouterr().out
        == "CHECK-LOCK CRITICAL - held by pid 7 / psql | locks=2 'oldest session'=12s;30\n"
    )
