"""The pages of `config check`, `diff`, `show` and `set`, in each state that a person can meet."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli
from pgorthanc_cli.config.check import Checked
from pgorthanc_cli.config.compare import Compared, Difference
from pgorthanc_cli.config.deployment import Option, Shown
from pgorthanc_cli.config.documents import Paths, Problem
from pgorthanc_cli.config.edit import NOT_GIVEN, Edited, Renamed
from pgorthanc_cli.views import compare, config, config_check
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "config"
FILE = "/etc/orthanc/orthanc.json"
MISSPELT = Problem(
    "PostgreSQL.EnableIndx",
    "error",
    'the plugin does not know "EnableIndx" in section "PostgreSQL", so "EnableIndex" is off; did you mean '
    '"EnableIndex"?',
    'write it as "EnableIndex"',
    f"{FILE}, line 4",
    "pgorthanc config set --rename PostgreSQL.EnableIndx PostgreSQL.EnableIndex",
)
PASSWORD = Problem(
    "PostgreSQL.Password",
    "warning",
    "every user of this machine can read the password in this file",
    "keep other users out",
    "/etc/orthanc/secrets.json",
    "chmod o-r /etc/orthanc/secrets.json",
)
DOWN = Problem("PostgreSQL", "warning", "the database could not be inspected: connection refused", None, "")
STARTS = Problem(
    "PostgreSQL.EnableIndex",
    "info",
    "plugin 10.3 needs revision 10, and schema public is at revision 10: it starts",
)


def checked(*problems: Problem, **more: Any) -> Checked:
    return Checked(problems, {}, "10.3", (), (FILE,), **{"database": "orthanc at db1:5432", **more})


CHECKED = {
    "check-healthy": checked(STARTS),
    "check-sqlite": checked(MISSPELT, PASSWORD, uses_sqlite=True, database=""),
    "check-warnings": checked(PASSWORD, DOWN, STARTS),
}


@pytest.mark.parametrize("state", CHECKED)
def test_states_of_check(state: str) -> None:
    golden.check_view(GOLDEN, state, config_check.page(CHECKED[state], Paths.of("/etc/my orthanc")))


def test_remarks_and_a_container() -> None:
    page = config_check.page(CHECKED["check-healthy"], None, verbose=True)
    golden.check_view(GOLDEN, "check-container", page)


LOCK = Difference(
    "must agree",
    "Only one Orthanc can hold the lock: several Orthancs need false in all of them.",
    "PostgreSQL.Lock",
    False,
    True,
    "a.json, line 3",
    "",
)
PORT = Difference("may differ", "", "HttpPort", 8042, 8043, "a.json, line 9", "b.json, line 9")
COMPARED = {
    "diff-shared": Compared("a.json", "b.json", (PORT,)),
    "diff-wrong": Compared("a.json", "b.json", (LOCK, PORT)),
}


@pytest.mark.parametrize("state", COMPARED)
def test_states_of_diff(state: str) -> None:
    golden.check_view(GOLDEN, state, compare.page(COMPARED[state]))


OPTIONS = (
    Option("PostgreSQL.Host", "db1", f"{FILE}, line 3"),
    Option("PostgreSQL.Port", 5432, "default"),
    Option("PostgreSQL.Password", "***", "ORTHANC__POSTGRESQL__PASSWORD"),
)
BACKUP = f"{FILE}.20261126T122543.312823.bak"
PORT_SET = Edited(FILE, "PostgreSQL.Port", NOT_GIVEN, "5433", BACKUP, changed=True)
PORT_CHANGED = Edited(FILE, "PostgreSQL.Port", "5432", "5433", BACKUP, changed=True)
PORT_REMOVED = Edited(FILE, "PostgreSQL.Port", "5433", NOT_GIVEN, BACKUP, changed=True)
RENAMED = Renamed(FILE, "PostgreSQL.Hst", "PostgreSQL.Host", '"db1"', BACKUP, changed=True)
CHECK = "pgorthanc config check --config /etc/orthanc"
PAGES = {
    "show": config.options_page(Shown("10.3", OPTIONS)),
    "show-unknown-plugin": config.options_page(Shown(None, OPTIONS[:1])),
    "set-new": config.edited_page(PORT_SET, CHECK),
    "set-changed": config.edited_page(PORT_CHANGED, CHECK),
    "set-removed": config.edited_page(PORT_REMOVED, CHECK),
    "set-dry-run": config.edited_page(replace(PORT_SET, backup="none", changed=False, dry_run=True), CHECK),
    "set-dry-run-removing": config.edited_page(
        replace(PORT_REMOVED, backup="none", changed=False, dry_run=True), CHECK
    ),
    "set-nothing-to-do": config.edited_page(replace(PORT_CHANGED, before="5433", changed=False), CHECK),
    "set-nothing-to-remove": config.edited_page(
        replace(PORT_REMOVED, before=NOT_GIVEN, changed=False), CHECK
    ),
    "renamed": config.renamed_page(RENAMED, CHECK),
    "renamed-dry-run": config.renamed_page(
        replace(RENAMED, backup="none", changed=False, dry_run=True), CHECK
    ),
}


@pytest.mark.parametrize("state", PAGES)
def test_states_of_show_and_set(state: str) -> None:
    golden.check_view(GOLDEN, state, PAGES[state])


def test_the_commands_that_it_prints_repair_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "my orthanc.json"
    section = {"EnableIndx": True, "Host": "localhost", "Database": "a", "Username": "u", "Schema": "PACS"}
    path.write_text(json.dumps({"PostgreSQL": section}, indent=1))
    path.chmod(0o600)
    words = ["config", "check", "--offline", str(path)]
    first = CliRunner().invoke(cli.main, words)
    assert first.exit_code == 6, first.output
    assert first.stdout.startswith("Orthanc would start with an EMPTY archive (SQLite): ")
    for _ in range(2):  # what the plugin does with its options is checked once it is on
        shown = CliRunner().invoke(cli.main, words).stdout.splitlines()
        for line in shown:
            if line.strip().startswith("pgorthanc "):
                done = CliRunner().invoke(cli.main, shlex.split(line)[1:])
                assert done.exit_code == 0, done.output
    again = CliRunner().invoke(cli.main, words)
    assert "EnableIndx" not in again.stdout
    assert "PACS" not in again.stdout


def test_a_path_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text("{}")
    result = CliRunner().invoke(cli.main, ["config", "check", str(path), "--config", str(path)])
    assert result.exit_code == 2
    assert "give one of them" in result.stderr
