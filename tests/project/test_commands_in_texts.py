"""Every command and option that a text of the program names exists, under the name that the help shows."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import pgorthanc_cli
from pgorthanc_cli.cli import main

PACKAGE = Path(pgorthanc_cli.__file__).parent
# What a command line cannot contain outside of quotes, and what ends one in a sentence.
CALL = re.compile(r"(?<![\w./-])pgorthanc ((?:-{0,2}[a-z{])(?:'[^']*'|(?!; |, |\. |: )[^'`\n|()%])*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b")
# What follows the name of the program in a sentence about it.
PROSE = {"apply", "as", "cannot", "command", "did", "do", "does", "inspects", "when", "writes"}
# Options of other programs, which our texts name, too.
FOREIGN = {
    "Orthanc": {"--upgrade"},
    "dask": {"--nthreads", "--nworkers"},
    "useradd": {"--system"},
    "journalctl": {"--since"},
    "rsync": {"--ignore-existing"},
    "PostgreSQL": {
        "--dbname",
        "--exit-on-error",
        "--file",
        "--format",
        "--list",
        "--owner",
        "--single-transaction",
        "--use-list",
    },
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module with their lines; {} for what an f-string fills in."""
    if path.suffix != ".py":
        yield 1, path.read_text("utf-8")
        return
    tree = ast.parse(path.read_text("utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


def all_texts() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".sql", ".md", ".json", ".html") and "__pycache__" not in path.parts:
            for line, text in texts(path):
                yield f"{path.relative_to(PACKAGE)}:{line}", text


def commands(group: click.Command = main) -> Iterator[click.Command]:
    yield group
    if isinstance(group, click.Group):
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield from commands(command)


@functools.cache
def visible(command: click.Command) -> set[str]:
    """The options that a help shows; names of former releases are not among them."""
    parameters = command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
    return {
        name for p in parameters if not getattr(p, "hidden", False) for name in (*p.opts, *p.secondary_opts)
    }


def mistake(call: str) -> str | None:
    """What does not exist in a command line, whose values may be prose: a command, or an option of it."""
    command: click.Command = main
    words = call.split()
    options = set(OPTION.findall(call))
    if words[0].strip(".,:") in PROSE:
        return None
    if words[0][0] == "{":  # one of several, such as upgrade and downgrade
        return None if any(options <= visible(each) for each in commands()) else f"none shows {options}"
    while isinstance(command, click.Group) and words and words[0][0] not in "-{":
        name = words.pop(0).partition("{")[0].strip(".,:\"'")
        subcommand = command.get_command(click.Context(command), name)
        if subcommand is None:
            return f"no command {name}"
        command = subcommand
    unknown = options - visible(command)
    return f"{command.name} shows no {', '.join(sorted(unknown))}" if unknown else None


def test_commands_exist_and_show_the_options_that_a_text_gives_them() -> None:
    calls = [(place, call) for place, text in all_texts() for call in CALL.findall(text)]
    assert len(calls) > 200
    wrong = [f"{place}: pgorthanc {call}: {why}" for place, call in calls if (why := mistake(call))]
    assert wrong == []


def given_commands(path: Path) -> Iterator[tuple[int, str]]:
    """Commands without the name of the program: the words of `call.command_line`, and the command of a verdict."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) == "call.command_line":
            yield node.lineno, " ".join(map(words_of, node.args))
        values = [keyword.value for keyword in node.keywords if keyword.arg == "command"]
        values += node.args[1:2] if ast.unparse(node.func) == "Remedy" else []
        yield from ((node.lineno, words) for words in map(words_of, values) if words not in ("{}", ""))


def words_of(node: ast.expr) -> str:
    """The words of an expression; {} for what is known only when the program runs."""
    if isinstance(node, ast.Tuple):
        return " ".join(map(words_of, node.elts))
    if isinstance(node, ast.JoinedStr):
        return "".join(map(words_of, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


def test_commands_without_the_name_of_the_program() -> None:
    wrong, calls = [], 0
    for path in PACKAGE.rglob("*.py"):
        for line, words in given_commands(path):
            calls += 1
            if why := mistake(words.removeprefix("pgorthanc ")):
                wrong.append(f"{path.name}:{line}: {why}")
    assert wrong == []
    assert calls > 30


def test_an_option_named_alone_is_shown_by_some_help() -> None:
    known = set().union(*FOREIGN.values(), *map(visible, commands()))
    wrong = [
        f"{place}: {name}"
        for place, text in all_texts()
        if not text.startswith("--")  # the declaration of an option, or an argument for a program
        for name in OPTION.findall(text)
        if name not in known
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("statsu", "no command statsu"),
        ("replication nonsense", "no command nonsense"),
        ("upgrade --timeout 60", "upgrade shows no --timeout"),
        ("migrate-sqlite --to 6", "migrate-sqlite shows no --to"),
        ("upgrade --to {} --wait 60 and something", None),
        ("--version", None),
    ],
)
def test_mistakes_are_seen(call: str, why: str | None) -> None:
    assert mistake(call) == why
