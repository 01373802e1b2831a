"""`pgorthanc guide`: run-books in the terminal."""

from __future__ import annotations

from dataclasses import dataclass

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call


@dataclass(frozen=True)
class Topics:
    """The topics, each with the title of its run-book."""

    topics: dict[str, str]


@commands.command("guide", connection=False)
@click.argument("topic", required=False)
def command(call: Call, *, topic: str | None) -> None:
    """Show a run-book in the terminal.

    It says what to do, in which order, and what to do if it fails. Without TOPIC, list the topics. A file or a pipe
    gets it as Markdown.

    \b
    Examples:
      pgorthanc guide
      pgorthanc guide upgrade
      pgorthanc guide upgrade > upgrade.md
    """
    from pgorthanc_cli import guides

    if topic:
        book = guides.guide(topic)
        if call.as_json:
            output.emit(book)
        else:
            output.markdown(book.text)
        return
    titles = {book.topic: book.title for book in guides.guides()}
    if call.as_json:
        output.emit(Topics(titles))
        return
    width = max(map(len, titles))
    lines = (f"  {name:<{width}}  {title}" for name, title in titles.items())
    output.text("\n".join(["Run-books, to be read with pgorthanc guide TOPIC:", "", *lines]))
