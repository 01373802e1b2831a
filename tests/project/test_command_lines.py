"""Every command line in the documents and below `deploy/` is accepted by the program's own parser."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
from click.testing import CliRunner

from pgorthanc_cli.cli import main
from tests.support import commandlines

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "deploy") for path in (ROOT / folder).glob("*.md") if path.is_file()
)
# Pages that are nothing without commands.
WITH_COMMANDS = ("README.md", "docs/getting-started.md", "docs/which-command.md", "deploy/README.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_parser_accepts_the_command_lines_of(path: Path) -> None:
    calls = commandlines.in_document(path)
    refused = [
        f"{' '.join(words)}: {reason}"
        for words in calls
        if (reason := commandlines.refusal(words)) is not None
    ]
    assert refused == []
    assert calls or str(path.relative_to(ROOT)) not in WITH_COMMANDS


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("pgorthanc status  # what it holds", [["status"]]),
        ("sudo -u postgres pgorthanc status && echo done", [["status"]]),
        ("PGORTHANC_HOST=db pgorthanc \\\n    status > out.txt", [["status"]]),
        ("docker compose run --rm pgorthanc upgrade --plan", [["upgrade", "--plan"]]),
        ("docker run --rm pgorthanc:0.1.0 --version", [["--version"]]),
        ("/opt/pgorthanc/bin/pgorthanc --version", [["--version"]]),
        (
            "pip install pgorthanc; cat list | pgorthanc import --files-from -",
            [["import", "--files-from", "-"]],
        ),
    ],
)
def test_calls_are_found(script: str, words: list[list[str]]) -> None:
    assert commandlines.in_shell(script) == words


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no-such-command", "no command"),
        ("status --no-such-option", "No such option"),
        ("upgrade --phase soon", "'soon' is not one of"),
        ("upgrade --to 7", "7"),
        ("init --plugin 99.0", "99.0"),
        ("doctor no-such-check", "no-such-check"),
        ("replication no-such-command", "no command"),
    ],
)
def test_mistakes_are_refused(line: str, reason: str) -> None:
    assert reason in (commandlines.refusal(line.split()) or "accepted")


@pytest.mark.parametrize(
    "line",
    [
        "--version",
        "status --help",
        "import --files-from - /nowhere",
        "doctor --config /nowhere locks",
        "init --plugin 4.0",
    ],
)
def test_good_lines_are_accepted(line: str) -> None:
    assert commandlines.refusal(line.split()) is None


@pytest.mark.parametrize("words", list(reference.commands(main)), ids=" ".join)
def test_the_examples_of_a_help_are_accepted(words: tuple[str, ...]) -> None:
    """Each help has two to four of them, and they call the command that it describes."""
    help_text = CliRunner().invoke(main, [*words, "--help"], terminal_width=200).output
    examples = help_text.partition("\nExamples:\n")[2].partition("\n\n")[0]
    calls = commandlines.in_shell(examples)
    assert 2 <= len(calls) <= 4
    for call in calls:
        assert commandlines.refusal(call) is None, call
        assert call[: len(words)] == list(words)
