"""A page: what a command shows a person, whatever shows it (terminal, plain text, HTML).

A view (`views/<room>.py`) turns the result of a room into a `Page`; `render` shows it.
Texts from outside go through `text.printable` where the view formats them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# "" is no judgement; "unknown" could not be checked.
Status = Literal["", "ok", "warning", "problem", "unknown"]
COLUMNS = 4  # of a table at most: more cannot be read at 80 characters


class Note(NamedTuple):
    """A paragraph, a finding, or a next step.

    Attributes:
        text: A sentence or two; the fact, for a finding.
        status: Shown as a mark before the text.
        details: Paragraphs below it: the consequence, then the fix.
        paste: Commands, SQL or JSON to copy: below, indented, never wrapped or changed.
    """

    text: str
    status: Status = ""
    details: tuple[str, ...] = ()
    paste: str = ""


class Facts(NamedTuple):
    """Names and their values, one line each."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of at most four cells; a list has one cell in each row and no head.

    Attributes:
        head: Titles of the columns; may be empty.
        numbers: The columns to be aligned right, counted from 0.
        marks: A status for each row; may be empty.
        all_with: How to get all rows, such as `--refused FILE`; a terminal shows only the
            first ones then.
    """

    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    marks: tuple[Status, ...] = ()
    all_with: str = ""

    def __post_init__(self) -> None:
        widths = {len(row) for row in (*self.rows, self.head) if row}
        if len(widths) > 1 or max(widths, default=0) > COLUMNS:
            raise ValueError(f"rows of a table have one length, and at most {COLUMNS} cells")
        if self.marks and len(self.marks) != len(self.rows):
            raise ValueError("a table has a mark for each row, or none")


Block = Note | Facts | Table


class Page(NamedTuple):
    """The answer of a command.

    Attributes:
        headline: The answer, as a sentence.
        where: What was inspected, such as `database orthanc at db1:5432`, `role orthanc`.
        blocks: What supports the headline, most important first. Notes with a status that
            follow one another are a list of findings.
        next_steps: What to do now: a reason, and the command to paste.
        status: The judgement of the whole.
    """

    headline: str
    where: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    next_steps: tuple[Note, ...] = ()
    status: Status = ""


def only_problems(page: Page) -> Page | None:
    """Return what `--quiet` shows: warnings and problems; None without any."""
    bad = ("warning", "problem")
    notes = (block for block in page.blocks if isinstance(block, Note))
    findings = tuple(note for note in notes if note.status in bad)
    if not findings and page.status not in bad:
        return None
    return page._replace(blocks=findings)
