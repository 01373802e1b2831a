"""What the user sees, and the only user of rich: results on stdout, everything else on stderr.

Values reach rich as `Text`, never as markup: patient names contain `[`. rich is imported when something is
shown, so that `pgorthanc --help` does not pay for it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.text import printable_lines, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.table import Table

    from pgorthanc_cli.progress import Progress as Step
    from pgorthanc_cli.progress import Report

_LOG_EVERY_S = 5.0
_COLOURS = {"OK": "green", "WARNING": "yellow", "CRITICAL": "bold red", "UNKNOWN": "dim"}
_BLOCK = "\ue000"  # stands for a block of code; of Unicode's private use area
_NARROWEST = 20  # cells for the text of an error, however narrow the terminal
_LINES = 10  # of a list in a table; --json has all of it


def prepare() -> None:
    """Make the standard streams safe to use: open ones, that take any character.

    A closed one (`>&-`) is opened as /dev/null: its number would go to the next file or socket that is opened.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8


def emit(result: object, *, as_json: bool) -> None:
    """The result of a command, once, on stdout: names and values, or one JSON document of the dataclass's fields."""
    if as_json:
        _write(_json(result, indent=2))
    elif sys.stdout.isatty():
        console(sys.stdout).print(_grid(result))
    else:
        _write(_lines(result))


def _json(result: object, *, indent: int | None = None) -> str:
    """A JSON document that a terminal may show: what it would obey or hide is escaped, as JSON allows."""
    document = json.dumps(plain(result), indent=indent, ensure_ascii=False)
    if not document.replace("\n", "").isprintable():
        document = "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in document)
    return document + "\n"


def _write(content: str) -> None:
    """Write to stdout now, so that a full disk is noticed while there is something to say about it.

    Raises:
        PgOrthancError: It cannot be written. A reader that left early (`| head`) is no error.
    """
    try:
        sys.stdout.write(content)
        sys.stdout.flush()
    except OSError as error:
        close()
        if not isinstance(error, BrokenPipeError):
            raise PgOrthancError(
                f"the result cannot be written to standard output: {error.strerror}",
                "the work itself is done; free disk space, or send the output elsewhere",
            ) from None


def flush() -> None:
    """Write what is left for stdout.

    Raises:
        PgOrthancError: It cannot be written.
    """
    _write("")


def close() -> None:
    """Let go of output that cannot be written: Python would try again when it exits, and end with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def watch(
    make: Callable[[], Any],
    show: Callable[[Any], str],
    *,
    as_json: bool,
    every_s: float = 2.0,
) -> None:
    """Show `make()` again and again until Ctrl-C: a live picture on a terminal, elsewhere each state that is new.

    With `as_json` a state is one line; else `show` returns its text.
    """
    with suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            _print_changes(make, _json if as_json else show, "" if as_json else "\n", every_s)
        from rich.live import Live
        from rich.text import Text

        with Live(console=console(sys.stdout), auto_refresh=False) as live:
            while True:
                live.update(Text.from_ansi(show(make())), refresh=True)
                time.sleep(every_s)


def _print_changes(
    make: Callable[[], Any], show: Callable[[Any], str], between: str, every_s: float
) -> NoReturn:
    shown = None
    while True:
        state = make()
        if state != shown:
            _write(show(state) if shown is None else between + show(state))
            shown = state
        time.sleep(every_s)


def nagios(service: str, status: str, summary: str, figures: Mapping[str, object]) -> None:
    """The one line of a monitoring plugin on stdout: `SERVICE STATUS - summary | name=value`.

    `status` is OK, WARNING, CRITICAL or UNKNOWN; a figure may carry its unit and limits (`12s;30;60`). See the
    Monitoring Plugins Development Guidelines, "Plugin Output for Nagios".
    """
    said = " ".join(summary.replace("|", "/").split())
    measured = " ".join(
        f"'{name}'={value}" if " " in name else f"{name}={value}" for name, value in figures.items()
    )
    _write(f"{service.upper()} {status} - {printable_lines(said)}{' | ' + measured if measured else ''}\n")


def _grid(result: object) -> Table:
    """A result for a terminal: names and values, and a table for each list of records."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for field in _fields(result):
        value = getattr(result, field.name)
        shown: Table | Text = Text(cell(field.name, value))
        if _are_records(value):
            shown = Table(box=None, pad_edge=False, header_style="dim")
            for column in _fields(value[0]):
                shown.add_column(Text(_label(column.name)), overflow="fold")
            for row in _records(value):
                shown.add_row(*(Text(cell, _COLOURS.get(cell, "")) for cell in row))
        grid.add_row(Text(_label(field.name)), shown)
    return grid


def _lines(result: object) -> str:
    """A result for grep and awk: one line for a value, no folding, columns aligned."""
    rows = []
    for field in _fields(result):
        value = getattr(result, field.name)
        if _are_records(value):
            table = [[_label(column.name) for column in _fields(value[0])], *_records(value)]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines = (
                "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table
            )
            rows.append((_label(field.name), "\n".join(lines)))
        else:
            rows.append((_label(field.name), cell(field.name, value)))
    width = max(len(name) for name, _ in rows)
    margin = "\n" + " " * (width + 2)
    return "".join(f"{name:<{width}}  {value.replace(chr(10), margin)}\n" for name, value in rows)


def _are_records(value: object) -> bool:
    """Whether this is a list of dataclasses that have no words of their own."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and dataclasses.is_dataclass(value[0])
        and type(value[0]).__str__ is object.__str__
    )


def _records(value: Sequence[object]) -> list[list[str]]:
    return [[_in_table(f.name, getattr(record, f.name)) for f in _fields(record)] for record in value]


def _in_table(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):  # a statement may have several lines
        return " ".join(cell(name, value).split())
    return cell(name, value).replace("\n", "; ")


def text(content: str) -> None:
    """A result that is already text, such as a script: to stdout as it is."""
    _write(content if content.endswith("\n") else content + "\n")


def markdown(content: str) -> None:
    """A document: rendered on a terminal, elsewhere the Markdown as it is.

    Code is indented, never coloured, padded or wrapped, so that a command can be copied.
    """
    if not sys.stdout.isatty():
        text(content)
        return
    from rich.markdown import CodeBlock, Markdown
    from rich.text import Text

    blocks: list[str] = []  # rich would crop what is wider than the terminal

    class Code(CodeBlock):
        def __rich_console__(self, *_: object) -> Iterator[Text]:
            blocks.append(str(self.text).rstrip())
            yield Text(f"{_BLOCK}{len(blocks) - 1}")

    class Document(Markdown):
        elements: ClassVar = {**Markdown.elements, "fence": Code, "code_block": Code}

    screen = console(sys.stdout)
    with screen.capture() as captured:
        screen.print(Document(content, hyperlinks=False))
    lines: list[str] = []
    for line in captured.get().splitlines():
        margin, block, number = line.partition(_BLOCK)
        indent = " " * (len(Text.from_ansi(margin).plain) + 4)
        if block:
            lines += [f"{indent}{code}" for code in blocks[int(number)].splitlines()]
            lines.append("")  # within a list, rich leaves no line between items
        elif line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    _write("\n".join([*lines, ""]))


def warn(message: str) -> None:
    """A warning on stderr."""
    _line("warning: ", "yellow", message)


def note(message: str) -> None:
    """A line on stderr that `--verbose` asked for."""
    _line("", "dim", message)


def fail(error: PgOrthancError, *, as_json: bool) -> None:
    """An error on stderr; with --json as one document of the keys error, message, hint."""
    if as_json:
        document = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        sys.stderr.write(_json(document))
        return
    advice, paste = error.advice()
    _paragraph("error: ", "bold red", error.fact)
    if error.server_message:
        _paragraph("PostgreSQL: ", "bold", error.server_message)
    if advice:
        _paragraph("hint: ", "bold", advice)
    for line in paste.splitlines():
        _line(" " * len("hint: ") + "    ", "", line)


class Progress:
    """Counts files and bytes: a bar on a terminal, a line every few seconds elsewhere, nothing if quiet."""

    def __init__(self, bar: RichProgress | None, *, quiet: bool) -> None:
        self._bar = bar
        self._task = bar.add_task("files", total=None, rates="") if bar else None
        self._quiet = quiet
        self._files = self._bytes = 0
        self._started = self._told = time.monotonic()

    def add(self, files: int, count_bytes: int) -> None:
        """So many more are done."""
        self._files += files
        self._bytes += count_bytes
        now = time.monotonic()
        elapsed = max(now - self._started, 0.001)
        rates = f"{self._files / elapsed:,.0f} files/s, {size(self._bytes / elapsed)}/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._files, rates=rates)
        elif not self._quiet and now - self._told >= _LOG_EVERY_S:
            self._told = now
            note(f"{self._files:,} files, {size(self._bytes)}: {rates}")

    def expect(self, total: int) -> None:
        """The number of files is known, or known better, now."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)

    @property
    def shown(self) -> bool:
        """Whether there is a bar, and counting ahead is worth the work."""
        return self._bar is not None


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """Progress on stderr for the length of a block."""
    if quiet or not sys.stderr.isatty():
        yield Progress(None, quiet=quiet)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}", markup=False),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console(sys.stderr), transient=True) as bar:
        yield Progress(bar, quiet=quiet)


@contextmanager
def transfer(*, quiet: bool) -> Iterator[Report]:
    """Yield a callback that shows the progress of one long copy, whose steps count bytes."""
    if quiet or not sys.stderr.isatty():
        yield _LoggedTransfer(quiet=quiet)
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("bytes", total=None)
        yield lambda step: bar.update(task, completed=step.done, total=step.total)


class _LoggedTransfer:
    """A line every few seconds, unless quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._told = time.monotonic()

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._told >= _LOG_EVERY_S:
            self._told = now
            note(f"{size(step.done or 0)} of {size(step.total or 0)}")


def console(stream: TextIO) -> Console:
    """A rich console; without a terminal there is no colour, and lines are as long as they need to be."""
    from rich.console import Console

    return Console(
        file=stream, highlight=False, emoji=False, markup=False, width=None if stream.isatty() else 10_000
    )


def plain(value: object) -> Any:
    """A result as JSON knows it: dataclasses become objects, dates ISO 8601, paths and the rest text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    return str(value)


def cell(name: str, value: object) -> str:
    """A value for people, one line or several; `name` tells its unit."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.lower() in ("pid", "port"):
        return str(value)
    if isinstance(value, int):
        return f"{value:,} ({size(value)})" if name.endswith("bytes") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {cell(str(k), v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        lines = [cell("", v) for v in value[:_LINES]]
        more = [f"... and {len(value) - _LINES:,} more"] if len(value) > _LINES else []
        return "\n".join([*lines, *more]) or "none"
    return printable_lines(str(value))


def _label(name: str) -> str:
    return name.replace("_", " ").replace("mb per", "MB per")


def _fields(result: object) -> list[dataclasses.Field[Any]]:
    """Return the fields that people see.

    A field whose metadata says `shown: False` is for programs.
    """
    if not dataclasses.is_dataclass(result):
        raise TypeError(f"a result is a dataclass, not {type(result).__name__}")
    return [field for field in dataclasses.fields(result) if field.metadata.get("shown", True)]


def _paragraph(prefix: str, style: str, message: str) -> None:
    """Print a text on stderr; on a terminal, wrapped lines are aligned with its beginning."""
    lines = message.splitlines()
    if sys.stderr.isatty():
        width = max(console(sys.stderr).width - len(prefix), _NARROWEST)
        # A word that is longer, such as a path, is not broken.
        wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).wrap
        lines = [part for line in lines for part in wrap(printable_lines(line))]
    _line(prefix, style, f"\n{' ' * len(prefix)}".join(lines))


def _line(prefix: str, style: str, message: str) -> None:
    from rich.text import Text

    console(sys.stderr).print(Text.assemble((prefix, style), printable_lines(message)), soft_wrap=True)
