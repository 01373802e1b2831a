"""The run-books of `pgorthanc guide`, one Markdown file a topic; the details are in the project's docs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.resources import files

from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.text import printable

_SUFFIX = ".md"


@dataclass(frozen=True)
class Guide:
    """A run-book.

    Attributes:
        topic: The word that names it on the command line.
        title: Its heading.
        text: Markdown.
    """

    topic: str
    title: str
    text: str


def guides() -> list[Guide]:
    """Return all run-books, by topic."""
    names = sorted(entry.name for entry in files(__name__).iterdir() if entry.name.endswith(_SUFFIX))
    return [_read(name.removesuffix(_SUFFIX)) for name in names]


def guide(topic: str) -> Guide:
    """Return one run-book.

    Raises:
        UsageError: There is none for this topic; the hint lists all topics.
    """
    topics = [each.topic for each in guides()]
    if topic in topics:
        return _read(topic)
    meant = difflib.get_close_matches(topic, topics, n=1)
    question = f"did you mean {meant[0]}? " if meant else ""
    raise UsageError(f"there is no guide to {printable(topic)}", f"{question}topics: {', '.join(topics)}")


def _read(topic: str) -> Guide:
    text = files(__name__).joinpath(topic + _SUFFIX).read_text(encoding="utf-8")
    return Guide(topic, text.partition("\n")[0].removeprefix("# "), text)
