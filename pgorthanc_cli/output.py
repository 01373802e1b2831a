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


def emit(result: object, *, as_json: bool) -> None:
    """The result of a command, once, on stdout: a table, or one JSON document with the dataclass's fields."""
    if as_json:
        sys.stdout.write(json.dumps(plain(result), indent=2, ensure_ascii=False) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in plain(result).items():
        if value is not None:
            table.add_row(Text(name.replace("_", " ")), Text(_cell(name, value)))
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
        self._task = bar.add_task("files", total=None, bytes="") if bar else None
        self._quiet = quiet
        self._files = self._bytes = 0
        self._started = self._told = time.monotonic()

    def add(self, files: int, count_bytes: int) -> None:
        """So many more are done."""
        self._files += files
        self._bytes += count_bytes
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            rate = size(self._bytes / max(now - self._started, 0.001))
            self._bar.update(self._task, completed=self._files, bytes=f"{rate}/s")
        elif not self._quiet and now - self._told >= _LOG_EVERY_S:
            self._told = now
            note(
                f"{self._files:,} files, {size(self._bytes)}, {self._files / (now - self._started):,.0f} files/s"
            )

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
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.speed:,.0f} files/s", markup=False),
        TextColumn("{task.fields[bytes]}", markup=False),
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


def _cell(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (name.endswith("_bytes") or name == "bytes"):
        return f"{value:,} ({size(value)})"
    if isinstance(value, int):
        return str(value) if name in ("pid", "port") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(k, v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "\n".join(_cell("", v) for v in value) or "none"
    return str(value)


def size(count: float) -> str:
    """A number of bytes for people: 1536 -> `1.5 kB` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _line(prefix: str, style: str, message: str) -> None:
    from rich.text import Text

    console(sys.stderr).print(Text.assemble((prefix, style), message), soft_wrap=True)
