"""What the user sees, and the only user of rich: results on stdout, everything else on stderr.

Values reach rich as `Text`, never as markup: patient names contain `[`. rich is imported when something is
shown, so that `pgorthanc --help` does not pay for it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, TextIO

from pgorthanc_cli.errors import PgOrthancError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

_LOG_EVERY_S = 5.0
_LINES = 10  # of a list in a table; --json has all of it


def emit(result: object, *, as_json: bool) -> None:
    """The result of a command, once, on stdout: names and values, or one JSON document of the dataclass's fields."""
    if as_json:
        sys.stdout.write(json.dumps(plain(result), indent=2, ensure_ascii=False) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    rows = [(_label(field.name), cell(field.name, getattr(result, field.name))) for field in _fields(result)]
    if not sys.stdout.isatty():  # no folding, no padding: made for grep and awk
        width = max(len(name) for name, _ in rows)
        margin = "\n" + " " * (width + 2)
        sys.stdout.writelines(f"{name:<{width}}  {value.replace(chr(10), margin)}\n" for name, value in rows)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console(sys.stdout).print(table)


def text(content: str) -> None:
    """A result that is already text, such as a script: to stdout as it is."""
    sys.stdout.write(content if content.endswith("\n") else content + "\n")


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
        sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")
        return
    _line("error: ", "bold red", error.message)
    if error.hint:
        _line("  hint: ", "bold", error.hint)


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
    if name in ("pid", "port"):
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
    return str(value)


def _label(name: str) -> str:
    return name.replace("_", " ").replace("mb per", "MB per")


def _fields(result: object) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(result):
        raise TypeError(f"a result is a dataclass, not {type(result).__name__}")
    return dataclasses.fields(result)


def size(count: float) -> str:
    """A number of bytes for people: 1536 -> `1.5 kB` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _line(prefix: str, style: str, message: str) -> None:
    from rich.text import Text

    console(sys.stderr).print(Text.assemble((prefix, style), message), soft_wrap=True)
