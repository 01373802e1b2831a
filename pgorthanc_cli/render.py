"""Pages for terminals, as plain text, and as HTML. Uses rich, as `output` does.

Texts reach rich as `Text`, never as markup: file names contain `[`. Whatever a terminal
would obey or hide is escaped once more here.
"""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from pgorthanc_cli.text import printable_lines
from pgorthanc_cli.views import html as markup
from pgorthanc_cli.views.html import Markup, escape
from pgorthanc_cli.views.page import Block, Facts, Note, Page, Status, Table

if TYPE_CHECKING:
    from rich.text import Text

_ROWS = 20  # of a table on a terminal, if its page says how to get all of them
_SYMBOLS = {"ok": "✓", "warning": "!", "problem": "✗", "unknown": "?"}
_WORDS = {"ok": "ok", "warning": "warn", "problem": "FAIL", "unknown": "?"}
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "cyan"}
_ASCII = str.maketrans({"→": "->", "…": "...", "·": "-"})


class Medium(NamedTuple):
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
        # A pipe or a file has neither width nor colours, unless one of these forces them.
        if not stream.isatty() and not (os.environ.keys() & {"FORCE_COLOR", "TTY_COMPATIBLE"}):
            return cls()
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
    """Lays out a page for a terminal, or as plain text."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        plain = medium.width is None and not medium.colour
        self._paper = _PlainPaper() if plain else _RichPaper(medium)

    def show(self, page: Page) -> str:
        self._paper.line(self._cell(page.headline, "bold"))
        if page.where:
            joint = " · " if self._medium.symbols else " - "
            self._paper.line(self._cell(joint.join(page.where), "dim"))
        before: Block | None = None
        for block in _filled(page.blocks):
            # Findings that follow one another are a list.
            if not (_is_finding(before) and _is_finding(block)) or _has_paste(before):
                self._paper.line(Cell(""))
            self._block(block)
            before = block
        for step in page.next_steps:
            self._paper.line(Cell(""))
            self._note(step)
        return self._paper.text()

    def _block(self, block: Block) -> None:
        if isinstance(block, Note):
            self._note(block)
        elif isinstance(block, Facts):
            columns = (Column(no_wrap=True, style="dim"), Column())
            rows = [(self._cell(name), self._cell(value)) for name, value in block.rows]
            self._paper.grid(columns, rows, gap=2, indent=2)
        else:
            self._table(block)

    def _note(self, note: Note) -> None:
        paragraphs = (note.text, *note.details)
        margin = 0
        if not note.status:
            for paragraph in paragraphs:
                self._paper.line(self._cell(paragraph))
        else:
            margin = 1 if self._medium.symbols else 4
            # The words have different lengths; their texts begin in one column.
            columns = (Column(no_wrap=True, min_width=margin), Column())
            marks = [self._mark(note.status), *(Cell("") for _ in note.details)]
            rows = [*zip(marks, map(self._cell, paragraphs), strict=True)]
            self._paper.grid(columns, rows, gap=1)
        indent = " " * max(4, margin + 3)
        for line in note.paste.split("\n") if note.paste else ():
            self._paper.exact(Cell(printable_lines(indent + line if line else ""), "bold"))

    def _table(self, table: Table) -> None:
        rows = table.rows
        if table.all_with and self._medium.width is not None:
            rows = rows[:_ROWS]
        numbers = [number in table.numbers for number in range(len(table.rows[0]))]
        columns = [Column(no_wrap=is_number, right=is_number) for is_number in numbers]
        grid = [[self._cell(cell) for cell in row] for row in rows]
        if table.head:
            grid.insert(0, [self._cell(title, "dim") for title in table.head])
        if table.marks:
            columns.insert(0, Column(no_wrap=True))
            marks = [Cell("")] * bool(table.head) + [self._mark(status) for status in table.marks]
            grid = [[mark, *cells] for mark, cells in zip(marks, grid, strict=False)]
        self._paper.grid(columns, grid, gap=2, indent=0 if table.marks else 2)
        more = len(table.rows) - len(rows)
        if more:
            rest = f"and {more:,} more; {table.all_with} lists all of them"
            self._paper.grid((Column(),), [[self._cell(rest)]], gap=0, indent=2)

    def _mark(self, status: Status) -> Cell:
        words = _SYMBOLS if self._medium.symbols else _WORDS
        return self._cell(words.get(status, ""), _STYLES.get(status, ""))

    def _cell(self, text: str, style: str = "") -> Cell:
        shown = printable_lines(text)
        return Cell(shown if self._medium.symbols else shown.translate(_ASCII), style)


class Cell(NamedTuple):
    """A text, harmless already, and the style of all of it."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """How the cells of a column are aligned, and whether they may be wrapped."""

    no_wrap: bool = False
    right: bool = False
    min_width: int = 0
    style: str = ""


class _RichPaper:
    """What a page is written on, from its top to its end: wraps and colours, by a console in memory."""

    def __init__(self, medium: Medium) -> None:
        from rich.console import Console

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

    def line(self, cell: Cell) -> None:
        """Write a paragraph."""
        self._console.print(_rich_text(cell))

    def exact(self, cell: Cell) -> None:
        """Write a line that is never wrapped."""
        self._console.print(_rich_text(cell), soft_wrap=True, crop=False, overflow="ignore")

    def grid(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, gap: int, indent: int = 0
    ) -> None:
        """Write rows of cells, the columns with a gap between them."""
        from rich.padding import Padding
        from rich.table import Table as Grid

        grid = Grid.grid(padding=(0, gap))
        for column in columns:
            grid.add_column(
                justify="right" if column.right else "left",
                no_wrap=column.no_wrap,
                min_width=column.min_width or None,
                style=column.style,
                overflow="fold",
            )
        for row in rows:
            grid.add_row(*map(_rich_text, row))
        self._console.print(Padding(grid, (0, 0, 0, indent), expand=False) if indent else grid)

    def text(self) -> str:
        """Return what was written."""
        return self._written.getvalue()


def _rich_text(cell: Cell) -> Text:
    from rich.text import Text

    return Text(cell.text, cell.style, overflow="fold")


class _PlainPaper:
    """The same for a pipe or a file: neither wraps nor colours.

    It does without rich, whose import takes longer than all that `status` does.
    """

    def __init__(self) -> None:
        self._written: list[str] = []

    def line(self, cell: Cell) -> None:
        self._written.append(cell.text)

    exact = line

    def grid(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, gap: int, indent: int = 0
    ) -> None:
        table = [[cell.text.split("\n") for cell in row] for row in rows]
        widths = [
            max(column.min_width, *(_width(line) for row in table for line in row[number]))
            for number, column in enumerate(columns)
        ]
        for row in table:
            for parts in itertools.zip_longest(*row, fillvalue=""):
                cells = [
                    " " * (width - _width(part)) + part
                    if column.right
                    else part + " " * (width - _width(part))
                    for part, width, column in zip(parts, widths, columns, strict=True)
                ]
                self._written.append(" " * indent + (" " * gap).join(cells))

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._written)


def _width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


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
