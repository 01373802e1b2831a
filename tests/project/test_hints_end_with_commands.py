"""The hint of an error ends with the command to paste, so that it gets a line and its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pgorthanc_cli
from pgorthanc_cli.cli import COMMANDS
from pgorthanc_cli.errors import PgOrthancError

COMMAND = re.compile(rf": pgorthanc (?:{'|'.join(COMMANDS)})\b")
# Of a procedure with several servers, or with several steps.
SEVERAL_STEPS = {"replication", "planted.py", "rejoin.py"}


def hints(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if name.endswith(("Error", "Failure", "Interrupted", "_Cause")):
            for value in (*node.args[1:2], *(word.value for word in node.keywords)):
                if isinstance(value, (ast.Constant, ast.JoinedStr)):
                    yield ast.unparse(value)


def text(source: str) -> str:
    """Return a string literal with X for what an f-string fills in."""
    value = ast.literal_eval(re.sub(r"\{[^}]*\}", "X", source.removeprefix("f")))
    return str(value)


def test_commands_come_last() -> None:
    found = 0
    for path in Path(pgorthanc_cli.__file__).parent.rglob("*.py"):
        if not SEVERAL_STEPS.isdisjoint(path.parts):
            continue
        for source in hints(path):
            hint = text(source)
            if COMMAND.search(hint) and "--help" not in hint:
                found += 1
                assert PgOrthancError("", hint).advice()[1], f"{path.name}: {hint}"
    assert found > 10
