"""Run-books, completion and versions: what is printed is complete, and every command in it exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pgorthanc_cli import __version__, catalogs, cli, commands, guides
from pgorthanc_cli.config import edit
from pgorthanc_cli.doctor import check_names
from tests.commands.test_cli import terminal

TOPICS = (
    "basics", "connecting", "downgrade", "import", "migrate-sqlite", "move", "reindex", "replication",
    "restore", "storage", "troubleshooting", "upgrade",
)  # fmt: skip
FENCE = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(pgorthanc [^`]+)`")


def command_lines(text: str) -> Iterator[str]:
    """Every line for a shell, continuation lines joined."""
    for block in FENCE.findall(text):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())


def accept(words: list[str]) -> None:
    """Parse the words after `pgorthanc` as the program does."""
    command: click.Command | None = cli.main
    context = click.Context(cli.main, **cli.main.context_settings)
    while isinstance(command, click.Group):
        name = words.pop(0)
        command = command.get_command(context, name)
    assert command is not None, name
    command.make_context(name, words, parent=context)


@pytest.fixture
def paths_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every path: /etc/orthanc is not on this machine."""
    monkeypatch.setattr(click.Path, "convert", lambda _, value, *__: value)
    monkeypatch.setattr(commands.List, "convert", lambda _, value, *__: value)


def test_there_is_a_guide_for_every_topic() -> None:
    assert tuple(book.topic for book in guides.guides()) == TOPICS


@pytest.mark.usefixtures("paths_exist")
@pytest.mark.parametrize("topic", TOPICS)
def test_every_command_line_of_a_guide_is_accepted(topic: str) -> None:
    text = guides.guide(topic).text
    lines = [line for line in command_lines(text) if "pgorthanc " in line]
    inline = [line for line in INLINE.findall(text) if len(line.split()) > 2]
    assert lines
    for line in (*lines, *inline):
        words = shlex.split(line)
        words = words[words.index("pgorthanc") + 1 :]
        accept(list(words))
        if words[0] == "guide":
            assert words[1] in TOPICS
        elif words[0] == "doctor":
            named = words[1 : words.index("--config")] if "--config" in words else words[1:]
            assert set(named) <= set(check_names())
        elif words[:2] == ["config", "set"]:
            edit.key_of(words[2])


@pytest.mark.parametrize("topic", TOPICS)
def test_every_option_and_command_named_in_a_guide_exists(topic: str) -> None:
    text = guides.guide(topic).text
    names = {line.split()[1] for line in INLINE.findall(text)} - {"--version"}
    assert names <= set(cli.COMMANDS)
    helps = Path(__file__).parents[2].joinpath("docs", "reference.md").read_text("utf-8")
    for option in re.findall(r"`(--[a-z-]+)", text):
        assert option in helps, option


@pytest.mark.parametrize("topic", TOPICS)
def test_a_guide_is_short_and_fits_a_terminal(topic: str) -> None:
    text = guides.guide(topic).text
    assert text.startswith("# ")
    assert len(text.splitlines()) < 100
    prose = FENCE.sub("", text)
    assert [line for line in prose.splitlines() if len(line) > 80] == []


def test_piped_a_guide_is_plain_markdown() -> None:
    result = CliRunner().invoke(cli.main, ["guide", "upgrade"])
    assert (result.exit_code, result.stdout) == (0, guides.guide("upgrade").text)


def test_on_a_terminal_a_guide_is_rendered_and_commands_can_be_copied() -> None:
    code, screen = terminal("guide", "replication", NO_COLOR="1")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen).replace("\r\n", "\n")
    assert code == 0
    assert "```" not in plain
    assert "**" not in plain
    shown = {line.strip() for line in plain.splitlines()}
    wide = [line for block in FENCE.findall(guides.guide("replication").text) for line in block.splitlines()]
    assert max(map(len, wide)) > 80  # wider than this terminal, and neither cut nor wrapped
    assert {line.strip() for line in wide} <= shown


def test_code_in_a_list_is_indented_below_its_item() -> None:
    _, screen = terminal("guide", "restore")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen).replace("\r\n", "\n")
    assert "\n       createdb --owner=orthanc orthanc_restored\n" in plain
    assert "\n       pgorthanc import --config /etc/orthanc /mnt/dicom\n" in plain
    assert "\n\n\n" not in plain


def test_without_a_topic_all_are_listed() -> None:
    result = CliRunner().invoke(cli.main, ["guide"])
    for book in guides.guides():
        assert f"  {book.topic}" in result.stdout
        assert book.title in result.stdout
    listed = json.loads(CliRunner().invoke(cli.main, ["guide", "--json"]).stdout)
    assert tuple(listed["topics"]) == TOPICS


def test_an_unknown_topic_gets_a_suggestion() -> None:
    result = CliRunner().invoke(cli.main, ["guide", "upgrad", "--json"])
    failure = json.loads(result.stderr)
    assert result.exit_code == 2
    assert failure["message"] == "there is no guide to upgrad"
    assert failure["hint"].startswith("did you mean upgrade? topics: basics, connecting, ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_valid_and_says_where_it_belongs(shell: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["completion", shell])
    assert result.exit_code == 0
    assert "# Save it as " in result.stdout
    assert result.stdout.startswith("#compdef pgorthanc\n" if shell == "zsh" else "# ")
    assert f"_PGORTHANC_COMPLETE={shell}_complete" in result.stdout
    script = tmp_path / "script"
    script.write_text(result.stdout)
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(CliRunner().invoke(cli.main, ["completion", "bash"]).stdout)
    (tmp_path / "pgorthanc").write_text(f'#!/bin/sh\nexec {sys.executable} -m pgorthanc_cli "$@"\n')
    (tmp_path / "pgorthanc").chmod(0o755)
    ask = (
        f". {script}; COMP_WORDS=({{}}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_pgorthanc_completion pgorthanc; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for words, expected in (("pgorthanc upg", "upgrade"), ("pgorthanc upgrade --pha", "--phase")):
        text = ask.replace("{}", words)
        run = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, env=environment, check=True
        )
        assert run.stdout.split() == [expected], run.stderr


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_versions_name_python_libpq_revisions_and_plugins(option: str) -> None:
    result = CliRunner().invoke(cli.main, [option])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"pgorthanc, version {__version__}\n")
    assert f"Python {sys.version.split()[0]}, libpq " in result.stdout
    for revision in catalogs.revisions():
        assert re.search(rf"^ +{revision}  \d", result.stdout, re.MULTILINE)
