"""Help, suggestions for misspelt names, and errors of usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
import reference
from click.testing import CliRunner

from pgorthanc_cli import cli, db
from tests.commands.test_cli import pgorthanc

WIDTH = 80


def shown(*words: str) -> str:
    result = CliRunner().invoke(cli.main, [*words, "--help"], terminal_width=WIDTH, prog_name="pgorthanc")
    assert result.exit_code == 0
    return result.output


def test_every_command_is_in_one_group_of_the_help() -> None:
    listed = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(cli.COMMANDS)


def test_the_list_of_commands_has_the_first_sentences_of_their_helps() -> None:
    for summaries in cli.GROUPS.values():
        for name, summary in summaries.items():
            command = cli.main.get_command(click.Context(cli.main), name)
            assert command is not None
            assert summary == command.get_short_help_str(limit=200)


def test_the_list_of_commands_is_shown_without_importing_them() -> None:
    """Which would take longer than everything else that it does."""
    program = "import sys; from pgorthanc_cli.cli import main; main(['--help'])"
    show = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {program}"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "pgorthanc_cli.commands" in imported
    commands = {f"pgorthanc_cli.commands.{module}" for module in cli.COMMANDS.values()}
    assert imported & {*commands, "psycopg2", "rich", "pydicom", "tempfile", "sqlite3"} == set()


def test_the_list_of_commands_shows_whole_summaries() -> None:
    assert "..." not in shown()
    for group in ("config", "verify", "server", "replication"):
        assert "..." not in shown(group).partition("Commands:")[2]


@pytest.mark.parametrize("words", list(reference.commands(cli.main)), ids=" ".join)
def test_a_help_begins_with_what_the_command_does(words: tuple[str, ...]) -> None:
    lines = shown(*words).splitlines()
    assert lines[0].endswith(".")
    assert lines[2].startswith("Usage: pgorthanc")
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            "statsu",
            "no such command: statsu",
            "did you mean status? All commands: pgorthanc --help",
        ),
        (
            "verify shema",
            "no such command: verify shema",
            "did you mean schema? All commands: pgorthanc verify --help",
        ),
        ("xyz", "no such command: xyz", "run: pgorthanc --help"),
        (
            "status --hots db1",
            "no such option: --hots",
            "did you mean --host? All options: pgorthanc status --help",
        ),
        (
            "--host db1 status",
            "no such option before the command: --host",
            "run: pgorthanc --help",
        ),
        (
            "status --port 54x2",
            '--port: "54x2" is not a port number (1 to 65535)',
            "run: pgorthanc status --help",
        ),
        ("explain-log", "missing argument FILE", "run: pgorthanc explain-log --help"),
        (
            "status x",
            "got unexpected extra argument (x)",
            "run: pgorthanc status --help",
        ),
    ],
)
def test_wrong_usage_says_what_is_meant(words: str, message: str, hint: str) -> None:
    run = pgorthanc(*words.split())
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[0] == f"error: {message}"
    assert " ".join(run.stderr.split()).endswith(f"hint: {hint}")
    run = pgorthanc(*words.split(), "--json")
    assert (run.returncode, run.stdout) == (2, "")
    if words != "explain-log":
        document = json.loads(run.stderr)
        assert document == {"error": "UsageError", "message": message, "hint": hint}


def test_a_group_alone_shows_its_help() -> None:
    for words in ((), ("verify",)):
        run = pgorthanc(*words)
        assert (run.returncode, run.stdout) == (2, "")
        assert "Usage: pgorthanc" in run.stderr


@pytest.mark.parametrize("option", ["--deep", "--depth=rows"])
def test_deep_is_the_last_depth(fresh: db.Target, option: str) -> None:
    result = CliRunner().invoke(cli.main, ["verify", "schema", "--uri", fresh.dsn, "--json", option])
    assert json.loads(result.stdout)["deep"] is True


@pytest.mark.parametrize("name", ["import", "reindex", "migrate-sqlite"])
def test_there_are_as_many_workers_as_cores_that_may_be_used(name: str) -> None:
    context = click.Context(cli.main)
    command = cli.main.get_command(context, name)
    assert command is not None
    jobs = next(parameter for parameter in command.params if parameter.name == "jobs")
    allowed = os.sched_getaffinity(0)
    assert jobs.get_default(context) == min(len(allowed), 8)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert jobs.get_default(context) == 1
    finally:
        os.sched_setaffinity(0, allowed)
