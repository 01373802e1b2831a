"""The table of known messages: each has an example, helps, and agrees with docs/troubleshooting.md."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import click
import pytest

from pgorthanc_cli import cli
from pgorthanc_cli.orthanc_log import FROM_PLUGIN, FROM_SERVER, Message, explain
from pgorthanc_cli.orthanc_log.explain import COMMON_WORDS
from pgorthanc_cli.render import Medium, text
from pgorthanc_cli.views import orthanc_log as views

MESSAGES = (*FROM_SERVER, *FROM_PLUGIN)
# A line "== TEXT" names the message, the lines after it are its example.
EXAMPLES = dict(
    part.split("\n", 1)
    for part in re.split("^== ", (Path(__file__).parent / "examples.log").read_text("utf-8"), flags=re.M)[1:]
)
PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text("utf-8")
OF_THE_PLUGIN = PAGE.partition("\n## pgorthanc refuses")[0]
QUOTED = re.findall(r"`([^`\n]+)`", OF_THE_PLUGIN)
# Messages stand in bold, or in the first column of a table.
DOCUMENTED = sorted(
    {
        quoted
        for place in (
            *re.findall(r"\*\*(`.+?`)\*\*", OF_THE_PLUGIN, re.DOTALL),
            *re.findall(r"^\| (`.*?`) \|", OF_THE_PLUGIN, re.MULTILINE),
        )
        for quoted in re.findall(r"`([^`\n]+)`", place)
        if not quoted.startswith("error: ")  # a message of pgorthanc
    }
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.text)
def test_every_message_has_an_example_that_is_explained_by_it(message: Message) -> None:
    explained = explain(BytesIO(EXAMPLES[message.text].encode()), "log")
    assert [(m.text, m.count) for m in explained.messages] == [(message.text, 1)]
    assert explained.unexplained == ()


def test_there_is_no_example_of_something_else() -> None:
    assert set(EXAMPLES) == {message.text for message in MESSAGES}
    assert len(EXAMPLES) == len(MESSAGES) > 60


@pytest.mark.parametrize("message", FROM_PLUGIN, ids=lambda message: message.text)
def test_the_quick_search_misses_none(message: Message) -> None:
    assert any(word in part for word in COMMON_WORDS for part in message.text.split("…"))


def test_there_is_something_to_compare() -> None:
    assert len(DOCUMENTED) > 50


@pytest.mark.parametrize("quoted", DOCUMENTED)
def test_what_the_page_quotes_is_known(quoted: str) -> None:
    assert any(message.matches(quoted) for message in MESSAGES)


@pytest.mark.parametrize(
    "message", [m for m in MESSAGES if m.status != "ok"], ids=lambda message: message.text
)
def test_the_page_quotes_every_message_that_is_known(message: Message) -> None:
    assert any(message.matches(quoted) for quoted in QUOTED)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.text)
def test_an_explanation_is_complete(message: Message) -> None:
    for sentence in (message.meaning, message.action):
        assert not sentence or (sentence[0].isupper() or sentence[0] == '"')
        assert not sentence or sentence.endswith(".")
    assert message.meaning
    assert bool(message.action) == (message.status != "ok")


@pytest.mark.parametrize("suggested", sorted({m.command for m in MESSAGES if m.command}))
def test_suggested_commands_exist_and_take_the_configuration(suggested: str) -> None:
    command: click.Command = cli.main
    context = click.Context(command)
    words = suggested.split()[1:]
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found, suggested
        command = found
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in (*words, "--config") if word.startswith("-")} <= options
    if command.name == "doctor":
        from pgorthanc_cli import doctor

        assert set(words) <= set(doctor.check_names())


def test_all_of_them_fit_a_terminal() -> None:
    explained = explain(BytesIO("".join(EXAMPLES.values()).encode()), "log")
    for width in (80, 60):
        shown = text(views.page(explained, "/etc/orthanc", verbose=True), Medium(width, symbols=True))
        for line in shown.splitlines():
            assert len(line) <= width or line.startswith("    pgorthanc ")
