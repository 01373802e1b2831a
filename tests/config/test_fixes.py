"""Every command that `config check` prints is executed as it is printed; then the problem is gone."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db
from tests.support.schemas import init

SECTION = {
    "EnableIndex": True, "Lock": False, "Host": "localhost", "Database": "archive", "Username": "orthanc",
    "Password": "x7-Lq0-secret-Wz",
}  # fmt: skip
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a configuration whose plugin is loaded."""
    monkeypatch.delenv("PGORTHANC_CONFIG", raising=False)

    def make(section: dict[str, Any], **root: Any) -> Path:
        (tmp_path / "libOrthancPostgreSQLIndex.so").write_bytes(b"")
        path = tmp_path / "orthanc.json"
        plugins = {"Plugins": [str(tmp_path / "libOrthancPostgreSQLIndex.so")]}
        path.write_text(json.dumps({**plugins, **root, "PostgreSQL": section}, indent=1))
        path.chmod(0o600)
        return path

    return make


def check(path: Path, *options: str) -> tuple[list[str], set[str]]:
    """Return the commands that are printed, and the messages of the problems."""
    words = ["config", "check", "--config", str(path), *options]
    shown = CliRunner().invoke(cli.main, words).stdout
    found = json.loads(CliRunner().invoke(cli.main, [*words, "--json"]).stdout)["problems"]
    messages = {problem["message"] for problem in found if problem["severity"] != "info"}
    return re.findall(r"^ {4,}((?:pgorthanc|chmod) .*)$", shown, re.MULTILINE), messages


def execute(line: str) -> str:
    program, *words = shlex.split(line)
    if program == "chmod":
        subprocess.run([program, *words], check=True)
        return ""
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("section", "root", "options"),
    [
        ({"EnableIndex": False}, {}, []),
        ({"IndexConnectionCount": 5}, {}, []),
        ({}, {"StorageDirectori": "/srv"}, []),
        ({"Lock": True}, {}, ["--containers", "2"]),
        ({"Schema": "PACS"}, {}, ["--plugin", "10.3"]),
    ],
    ids=["switched off", "misspelt", "misspelt outside", "several Orthancs", "upper case"],
)
def test_a_command_removes_its_problem(
    write: Write, section: dict[str, Any], root: dict[str, Any], options: list[str]
) -> None:
    path = write(SECTION | section, **root)
    commands, before = check(path, "--offline", *options)
    assert len(commands) == 1, before
    execute(commands[0])
    again, after = check(path, "--offline", *options)
    assert again == []
    assert after < before


def test_a_file_that_others_can_read(write: Write) -> None:
    path = write(SECTION)
    path.chmod(0o644)
    [line], before = check(path, "--offline")
    execute(line)
    assert check(path, "--offline") == ([], set())
    assert len(before) == 1


@pytest.mark.parametrize(
    ("here", "read_only", "plugin"),
    [(4, False, "9.0"), (10, False, "9.0"), (4, True, "10.3"), (10, True, "9.0"), (None, True, "10.3")],
)
def test_the_index_is_brought_to_the_revision_of_the_plugin(
    empty: db.Target, write: Write, here: int | None, read_only: bool, plugin: str
) -> None:
    """A plan ends with the command that does it."""
    if here is not None:
        init(empty, revision=here)
    path = write(
        {"EnableIndex": True, "Lock": False, "ConnectionUri": empty.dsn, "IndexConnectionsCount": 5},
        **({"ReadOnly": True} if read_only else {}),
    )
    needs = "needs revision"
    commands, before = check(path, "--plugin", plugin)
    assert [message for message in before if needs in message], before
    [line] = [command for command in commands if "config set" not in command]
    printed = execute(line)
    if "--plan" in line:
        following, *_back = re.findall(r"^ {4}(pgorthanc (?:upgrade|downgrade) .*)$", printed, re.MULTILINE)
        execute(following)
    assert [message for message in check(path, "--plugin", plugin)[1] if needs in message] == []


def test_a_misspelt_option_whose_right_name_is_there_too(write: Write) -> None:
    """Which value counts only a person can say: no command is printed, as it would be refused."""
    path = write(SECTION | {"Usernam": "other"}, StorageDirectory="/srv", StorageDirectori="/old")
    commands, messages = check(path, "--offline")
    assert commands == []
    assert len(messages) == 2
    shown = CliRunner().invoke(cli.main, ["config", "check", "--config", str(path), "--offline"]).stdout
    for name in ("Username", "StorageDirectory"):
        assert f'"{name}" is set, too: keep the right value under that name, and remove the other' in shown
