"""Command lines of documents and deployment files: found in their text, and given to the program's own parser.

Nothing is run: click reads the words, and refuses unknown commands and options, missing arguments and wrong choices.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import click

from pgorthanc_cli import commands
from pgorthanc_cli.cli import main
from pgorthanc_cli.errors import PgOrthancError

PROGRAM = "pgorthanc"
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_EXEC = re.compile(r"^Exec\w+=[-+!@:]*(.+)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"\w+=")
_OPERATORS = frozenset(";&|()")
_ENDINGS = frozenset("<>;&|()")


def blocks(markdown: str, *languages: str) -> Iterator[str]:
    """The code blocks of a document in these languages, without the indentation of the block."""
    for indent, language, code in _FENCE.findall(markdown):
        if language in languages:
            yield re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)


def in_document(path: Path) -> list[list[str]]:
    """The arguments of each call in the code blocks of a document: sh, and units of systemd."""
    text = path.read_text("utf-8")
    shell = [words for block in blocks(text, "sh") for words in in_shell(block)]
    return shell + [words for block in blocks(text, "ini") for words in in_unit(block)]


def in_unit(text: str) -> list[list[str]]:
    """The arguments of each call in a unit of systemd."""
    lines = _EXEC.findall(text.replace("\\\n", " "))
    return [words for line in lines for words in in_shell(line)]


def in_shell(script: str) -> list[list[str]]:
    """The arguments of each call in a script."""
    calls = []
    for line in script.replace("\\\n", " ").splitlines():
        for statement in _statements(line):
            arguments = _arguments(statement)
            if arguments is not None:
                calls.append(arguments)
    return calls


def _statements(line: str) -> Iterator[list[str]]:
    """The words of each simple command of a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    statement: list[str] = []
    for word in lexer:
        if set(word) <= _OPERATORS:
            yield statement
            statement = []
        else:
            statement.append(word)
    yield statement


def _arguments(words: Sequence[str]) -> list[str] | None:
    """What a statement gives to the program; None if it calls another one."""
    rest = list(words)
    while rest and _ASSIGNMENT.match(rest[0]):
        rest.pop(0)
    if rest[:1] == ["sudo"]:
        rest = rest[3:] if rest[1:2] == ["-u"] else rest[1:]
    for container in (["docker", "compose", "run", "--rm"], ["docker", "run", "--rm"]):
        if rest[: len(container)] == container:
            rest = rest[len(container) :]
    if not rest or Path(rest[0]).name.partition(":")[0] != PROGRAM:  # the image has a tag
        return None
    ends = [position for position, word in enumerate(rest) if set(word) <= _ENDINGS]
    return rest[1 : ends[0]] if ends else rest[1:]


def refusal(words: Sequence[str]) -> str | None:
    """What the parser says against a command line; None if it accepts it. Files need not exist."""

    def as_given(self: object, value: object, *_: object) -> object:
        return value

    # With the settings of the program: click keeps the help option of a command from its first context.
    context = main.make_context(PROGRAM, ["status"])
    command: click.Command | None = main
    rest = list(words)
    with (
        mock.patch.object(click.Path, "convert", as_given),
        mock.patch.object(commands.List, "convert", as_given),
    ):
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            command = command.get_command(context, name)
            if command is None:
                return f"there is no command {name}"
        assert command is not None
        try:
            with command.make_context(command.name, rest, parent=context) as parsed:
                return _value_refusal(parsed)
        except click.exceptions.Exit:  # --help, --version
            return None
        except click.ClickException as error:
            return error.format_message()


def _value_refusal(parsed: click.Context) -> str | None:
    """What is wrong with values that the parser takes, and the library would refuse before it does anything."""
    from pgorthanc_cli import doctor
    from pgorthanc_cli.schema import catalog

    values = parsed.params
    unknown = set(values.get("checks") or ()) - set(doctor.check_names())
    if unknown:
        return f"there is no check {', '.join(sorted(unknown))}"
    # `storage move --to` names a storage area.
    to = values.get("to") if parsed.command.name != "move" else None
    revision = to or values.get("revision") or values.get("to_revision")
    try:
        if revision is not None:
            catalog.require_revision(revision)
        if values.get("plugin") and parsed.command.name in ("init", "upgrade", "downgrade"):
            catalog.revision_of_plugin(values["plugin"])
    except PgOrthancError as error:
        return error.message
    return None
