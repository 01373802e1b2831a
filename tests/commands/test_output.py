"""What the user sees of results: tables of records, states that change, lines for a monitoring system."""

from __future__ import annotations

import io
import json
import sys
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


def test_a_list_of_records_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit(STATE, as_json=False)
    assert capsys.readouterr().out == (
        "database  pacs\nlocks     key  application\n          42   [bold]Orthanc[/bold]\n          43   -\n"
    )


def test_on_a_terminal_too_and_nothing_is_taken_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    output.emit(STATE, as_json=False)
    assert "[bold]Orthanc[/bold]" in screen.getvalue()


def test_the_lines_of_a_statement_in_a_table_are_still_that_statement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.emit(State("pacs", (Held(42, "UPDATE a SET\n    b = 1,\n    c = 2;"),)), as_json=False)
    assert "UPDATE a SET b = 1, c = 2;" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_shows_each_state_that_is_new_once(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [STATE, STATE, State("pacs", ())]

    def make() -> State:
        if not states:
            raise KeyboardInterrupt
        return states.pop(0)

    output.watch(make, lambda state: f"{state.database}\n{len(state.locks)}\n", as_json=as_json, every_s=0)
    shown = capsys.readouterr().out
    if as_json:
        assert [len(json.loads(line)["locks"]) for line in shown.splitlines()] == [2, 0]
    else:
        assert shown == "pacs\n2\n\npacs\n0\n"


def test_a_monitoring_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.nagios("check-lock", "CRITICAL", "held by\npid 7 | psql", {"locks": 2, "oldest session": "12s;30"})
    assert (
        capsys.readouterr().out
        == "CHECK-LOCK CRITICAL - held by pid 7 / psql | locks=2 'oldest session'=12s;30\n"
    )
