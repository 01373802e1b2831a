"""docs/troubleshooting.md names commands and options that exist, and texts that are really printed."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from pgorthanc_cli import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
SOURCE = re.sub(
    r'"\s*\n\s*f?"', "", "".join(p.read_text("utf-8") for p in (ROOT / "pgorthanc_cli").rglob("*.py"))
)
SHELL = [line.partition("#")[0] for line in PAGE.splitlines() if line.startswith("pgorthanc ")]
CALLS = sorted({*re.findall(r"`(pgorthanc [^`…]+)`", PAGE), *SHELL})
REFUSALS = sorted(
    {
        said
        for row in re.findall(r"^\| \d+ \| (`.*?`) \|", PAGE, re.MULTILINE)
        for said in re.findall("`(.*?)`", row)
    }
)


@pytest.mark.parametrize("call", CALLS)
def test_commands_and_options_exist(call: str) -> None:
    command: click.Command = cli.main
    context = click.Context(command)
    words = call.split()[1:]
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words.pop(0))
        assert found, call
        command = found
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options


def test_there_is_something_to_check() -> None:
    assert len(CALLS) > 20
    assert len(REFUSALS) > 10


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_in_the_source(text: str) -> None:
    """Piece by piece: what is filled in comes between them."""
    parts = [part.strip(' :,"()0123456789') for part in re.split("…| is |, ", text)]
    missing = [part for part in parts if part and part not in SOURCE]
    assert missing == []
