"""What the documents for contributors name exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
PLACEHOLDERS = ("/x", "/test_x")  # of the recipes: a room `x`
TARGET = re.compile(r"`make ([a-z]+)")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_and_folders_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    named = {path for path in PATH.findall(text) if not any(word in path for word in PLACEHOLDERS)}
    missing = [
        path
        for path in sorted(named)
        if not any((ROOT / folder / path).exists() for folder in ("", "pgorthanc_cli", "docs", "tests"))
    ]
    assert named
    assert missing == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(TARGET.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert {target for target in named if f"\n{target}:" not in makefile} == set()


def test_the_quick_tests_exist() -> None:
    listed = subprocess.run(
        ["make", "--dry-run", "quick"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    paths = [word for word in listed.split() if word.startswith("tests/")]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_what_continuous_integration_runs_exists() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    words = re.findall(r"\btests/[\w*{},/.]+", script)
    assert words
    for word in words:
        listed = subprocess.run(["bash", "-c", f"ls -d {word}"], cwd=ROOT, capture_output=True)
        assert listed.returncode == 0, word
