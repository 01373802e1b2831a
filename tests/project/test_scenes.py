"""docs/scenes.md shows what the program shows today."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scenes

ROOT = Path(__file__).parents[2]


@pytest.mark.once
def test_the_page_is_what_the_terminal_shows(tmp_path: Path) -> None:
    command = [sys.executable, scenes.__file__, str(tmp_path / "scenes.md")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # In a process of its own, which may fork.
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == scenes.UNSUITABLE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    committed, shown = (
        path.read_text("utf-8").splitlines(keepends=True)
        for path in (ROOT / "docs" / "scenes.md", tmp_path / "scenes.md")
    )
    differences = "".join(difflib.unified_diff(committed, shown, "docs/scenes.md", "the terminal"))
    assert not differences, (
        f"docs/scenes.md is out of date; if this is what it should show, run: make docs\n{differences}"
    )


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("a\r\nb\r\n", "a\nb"),
        ("10%\r\x1b[2K20%\r\n", "20%"),
        ("long\rlo", "long"),
        ("long\r\x1b[Klo", "lo"),
        ("a\r\nb\x1b[1A\r\x1b[2Kc", "c\nb"),
        ("\x1b[?25l\x1b[1;31merror: \x1b[0mno", "error: no"),
    ],
)
def test_the_terminal(printed: str, shown: str) -> None:
    assert scenes.screen(printed) == shown


def test_a_message_is_wrapped_at_the_same_words_whatever_was_replaced() -> None:
    short = "error: another session is connected to this database: pid 1, application\n       without a name, idle"
    long = "error: another session is connected to this database: pid 1234567,\n       application without a name, idle"
    assert scenes.stable(short) == scenes.stable(long)
