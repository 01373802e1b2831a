"""Pages for terminals, as plain text, and as HTML. Uses rich, as `output` does.

Texts reach rich as `Text`, never as markup: file names contain `[`. Whatever a terminal
would obey or hide is escaped once more here.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from pgorthanc_cli.text import printable_lines
from pgorthanc_cli.views import html as markup
from pgorthanc_cli.views.html import Markup, escape
from pgorthanc_cli.views.page import Block, Facts, Note, Page, Status, Table

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.table import Table as Grid
    from rich.text import Text

_ROWS = 20  # of a table on a terminal, if its page says how to get all of them
_SYMBOLS = {"ok": "✓", "warning": "!", "problem": "✗", "unknown": "?"}
_WORDS = {"ok": "ok", "warning": "warn", "problem": "FAIL", "unknown": "?"}
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "cyan"}
_ASCII = str.maketrans({"→": "->", "…": "...", "·": "-"})


@dataclass(frozen=True)
class Medium:
    """What shows a page.

    Attributes:
        width: Cells of a line; None does not wrap, as in a pipe or a file.
        colour: Whether ANSI escape sequences may be used.
        symbols: Whether marks are symbols; otherwise words, and ASCII punctuation.
    """

    width: int | None = None
    colour: bool = False
    symbols: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Medium:
        """Return the medium behind a stream; rich reads NO_COLOR, TERM and COLUMNS."""
        from rich.console import Console

        console = Console(file=stream)
        colour = console.color_system is not None and not console.no_color
        if not stream.isatty():
            return cls(colour=colour)
        symbols = console.encoding.startswith("utf")
        return cls(max(console.width, 20), colour, symbols)


def text(page: Page, medium: Medium) -> str:
    """Return a page for a terminal, or as plain text: complete, lines unwrapped."""
    return "".join(f"{line}\n" for line in _lines(_Screen(medium).show(page)))


def _lines(shown: str) -> Iterator[str]:
    """Yield lines without the blanks that rich fills cells with."""
    for line in shown.splitlines():
        yield re.sub(r"[ ]+((?:\x1b\[[0-9;]*m)*)$", r"\1", line)


class _Screen:
    """Writes a page to a console in memory."""

    def __init__(self, medium: Medium) -> None:
        from rich.console import Console

        self._medium = medium
        self._written = io.StringIO()
        self._console = Console(
            file=self._written,
            # Rich always wraps: no line of a page is as long as this.
            width=medium.width or 1_000_000,
            force_terminal=medium.colour,
            color_system="standard" if medium.colour else None,
            no_color=not medium.colour,
            highlight=False,
            emoji=False,
            # Texts of servers and files may hold [brackets].
            markup=False,
            legacy_windows=False,
            # `Medium` has read the environment: a page depends on nothing else.
            _environ={},
        )

    def show(self, page: Page) -> str:
        self._console.print(self._text(page.headline, "bold"))
        if page.where:
            joint = " · " if self._medium.symbols else " - "
            self._console.print(self._text(joint.join(page.where), "dim"))
        before: Block | None = None
        for block in _filled(page.blocks):
            # Findings that follow one another are a list.
            if not (_is_finding(before) and _is_finding(block)) or _has_paste(before):
                self._console.print()
            self._block(block)
            before = block
        for step in page.next_steps:
            self._console.print()
            self._note(step)
        return self._written.getvalue()

    def _block(self, block: Block) -> None:
        if isinstance(block, Note):
            self._note(block)
        elif isinstance(block, Facts):
            grid = _grid((0, 2))
            grid.add_column(no_wrap=True, style="dim")
            grid.add_column(overflow="fold")
            for name, value in block.rows:
                grid.add_row(self._text(name), self._text(value))
            self._indented(grid)
        else:
            self._table(block)

    def _note(self, note: Note) -> None:
        paragraphs = (note.text, *note.details)
        margin = 0
        if not note.status:
            for paragraph in paragraphs:
                self._console.print(self._text(paragraph))
        else:
            margin = 1 if self._medium.symbols else 4
            grid = _grid((0, 1))
            # The words have different lengths; their texts begin in one column.
            grid.add_column(no_wrap=True, min_width=margin)
            grid.add_column(overflow="fold")
            for number, paragraph in enumerate(paragraphs):
                mark = self._mark(note.status) if number == 0 else ""
                grid.add_row(mark, self._text(paragraph))
            self._console.print(grid)
        indent = " " * max(4, margin + 3)
        for line in note.paste.split("\n") if note.paste else ():
            shown = self._text(indent + line if line else "", "bold", exact=True)
            self._console.print(shown, soft_wrap=True, crop=False, overflow="ignore")

    def _table(self, table: Table) -> None:
        rows = table.rows
        if table.all_with and self._medium.width is not None:
            rows = rows[:_ROWS]
        grid = _grid((0, 2))
        if table.marks:
            grid.add_column(no_wrap=True)
        for number in range(len(table.rows[0])):
            right = number in table.numbers
            justify: JustifyMethod = "right" if right else "left"
            grid.add_column(justify=justify, no_wrap=right, overflow="fold")
        margin = [""] if table.marks else []
        if table.head:
            grid.add_row(*margin, *(self._text(title, "dim") for title in table.head))
        marks = [self._mark(status) for status in table.marks]
        for number, row in enumerate(rows):
            grid.add_row(*marks[number : number + 1], *(self._text(cell) for cell in row))
        if table.marks:
            self._console.print(grid)
        else:
            self._indented(grid)
        more = len(table.rows) - len(rows)
        if more:
            rest = f"and {more:,} more; {table.all_with} lists all of them"
            self._indented(self._text(rest))

    def _mark(self, status: Status) -> Text:
        words = _SYMBOLS if self._medium.symbols else _WORDS
        return self._text(words.get(status, ""), _STYLES.get(status, ""))

    def _text(self, text: str, style: str = "", *, exact: bool = False) -> Text:
        from rich.text import Text

        shown = printable_lines(text)
        if not (exact or self._medium.symbols):
            shown = shown.translate(_ASCII)
        return Text(shown, style, overflow="fold")

    def _indented(self, content: RenderableType) -> None:
        from rich.padding import Padding

        self._console.print(Padding(content, (0, 0, 0, 2), expand=False))


def _grid(padding: tuple[int, int]) -> Grid:
    from rich.table import Table as Grid

    return Grid.grid(padding=padding)


def _filled(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the blocks that show something: a table or a list of facts may be empty."""
    return (block for block in blocks if isinstance(block, Note) or block.rows)


def _is_finding(block: Block | None) -> bool:
    return isinstance(block, Note) and bool(block.status)


def _has_paste(block: Block | None) -> bool:
    return isinstance(block, Note) and bool(block.paste)


def html(page: Page) -> str:
    """Return a page as an HTML document that stands alone; nothing is left out."""
    return "".join(html_pieces(page))


def html_pieces(page: Page, more: Iterable[str] = ()) -> Iterator[str]:
    """Yield a page as an HTML document that stands alone, piece by piece.

    Args:
        page: The page.
        more: HTML below its blocks, such as a table of millions of rows.
    """
    where = f"<p>{escape(_safe(' · '.join(page.where)))}</p>" if page.where else ""
    badge = f" {_badge(page.status)}" if page.status else ""
    head = f"<header><h1>{escape(_safe(page.headline))}{badge}</h1>{where}</header>"
    steps = "".join(map(_html_note, page.next_steps))
    body = itertools.chain(
        (head, *_html_sections(_filled(page.blocks))), more, (markup.section("Next", steps),)
    )
    yield from markup.document(_safe(page.headline), filter(None, body))


def _html_sections(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield a section for each block, and one for findings that follow one another."""
    findings = ""
    for block in blocks:
        if _is_finding(block):
            findings += _html_block(block)
            continue
        if findings:
            yield f"<section>{findings}</section>"
            findings = ""
        yield f"<section>{_html_block(block)}</section>"
    if findings:
        yield f"<section>{findings}</section>"


def _html_block(block: Block) -> Markup:
    if isinstance(block, Note):
        return _html_note(block)
    if isinstance(block, Facts):
        return markup.definitions((_safe(name), _safe(value)) for name, value in block.rows)
    margin = ("",) if block.marks else ()
    head = (*margin, *map(_safe, block.head)) if block.head else ()
    badges = [_badge(status) if status else Markup() for status in block.marks]
    rows: list[list[str]] = [list(map(_safe, row)) for row in block.rows]
    for row, badge in zip(rows, badges, strict=False):
        row.insert(0, badge)
    columns = range(len(block.rows[0]))
    classes = ("number" if number in block.numbers else "" for number in columns)
    return Markup("".join(markup.table(head, rows, classes=(*margin, *classes))))


def _html_note(note: Note) -> Markup:
    badge = f"{_badge(note.status)} " if note.status else ""
    paragraphs = [f'<p class="fact">{badge}{escape(_safe(note.text))}</p>\n']
    paragraphs += [f"<p>{escape(_safe(detail))}</p>\n" for detail in note.details]
    paste = f"<pre><code>{escape(_safe(note.paste))}</code></pre>\n" if note.paste else ""
    return Markup("".join(paragraphs) + paste)


def _badge(status: Status) -> Markup:
    """Return a mark as symbol and word, in the colours of the page of doctor."""
    names: dict[str, str] = {"ok": "OK", "warning": "WARNING", "problem": "CRITICAL"}
    css_class = names.get(status, "UNKNOWN")
    words = {"unknown": "not checked"}
    word = words.get(status, status)
    return Markup(f'<b class="badge {css_class}">{_SYMBOLS[status]} {word}</b>')


def _safe(text: str) -> str:
    """Escape what a browser would obey or hide, such as bidirectional overrides."""
    return printable_lines(text)
