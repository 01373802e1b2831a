"""What the user sees, and the only user of rich: results on stdout, everything else on stderr.

Values reach rich as `Text`, never as markup: patient names contain `[`. rich is imported when something is
shown, so that `pgorthanc --help` does not pay for it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.text import duration, printable_lines, progress_line, size

if TYPE_CHECKING:
    from rich.console import Console

    from pgorthanc_cli.progress import Progress as Step
    from pgorthanc_cli.progress import Report

_LOG_EVERY_S = 10.0
_BLOCK = "\ue000"  # stands for a block of code; of Unicode's private use area
_NARROWEST = 20  # cells for the text of an error, however narrow the terminal

# Writes to the file of --log-file, if there is one: level, message, more fields.
_write_log: Callable[..., None] | None = None
# Shows a line that changes: what else is printed on stderr must go through it.
_live: Console | None = None


def prepare() -> None:
    """Make the standard streams safe to use: open ones, that take any character.

    A closed one (`>&-`) is opened as /dev/null: its number would go to the next file or socket that is opened.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # POSIX gives the lowest free number, which is that of the closed stream.
            os.open(os.devnull, os.O_RDWR)
    # Python leaves None for a stream that was closed when it started.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # To a terminal that is not UTF-8, the first foreign character would raise.
            stream.reconfigure(errors="backslashreplace")


def log_to(write: Callable[..., None] | None) -> None:
    """Also write warnings, errors and progress with this function, see `log_file`."""
    global _write_log
    _write_log = write


def log(level: int, message: str, **more: str) -> None:
    """Write to the log file, if there is one."""
    if _write_log is not None:
        _write_log(level, message, **more)


def emit(result: object) -> None:
    """Print the result of a command, once, on stdout: one JSON document of the dataclass's fields."""
    _write(_json(result, indent=2))


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


def watch(make: Callable[[], Any], show: Callable[[Any], str] | None = None, *, every_s: float = 2.0) -> None:
    """Show `make()` again and again until Ctrl-C: a live picture on a terminal, elsewhere each state that is new.

    `show` returns the text of a state; without it a state is one line of JSON.
    """
    with suppress(KeyboardInterrupt):
        if show is None or not sys.stdout.isatty():
            _print_changes(make, show or _json, "\n" if show else "", every_s)
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
    # What follows the first | are figures.
    said = " ".join(summary.replace("|", "/").split())
    measured = " ".join(
        f"'{name}'={value}" if " " in name else f"{name}={value}" for name, value in figures.items()
    )
    _write(f"{service.upper()} {status} - {printable_lines(said)}{' | ' + measured if measured else ''}\n")


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

    # Rich would crop what is wider than the terminal.
    blocks: list[str] = []

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
            # Within a list, rich leaves no line between items.
            lines.append("")
        elif line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    _write("\n".join([*lines, ""]))


def warn(message: str) -> None:
    """A warning on stderr."""
    log(logging.WARNING, message)
    _line("warning: ", "yellow", message)


def note(message: str) -> None:
    """A line on stderr that `--verbose` asked for."""
    log(logging.INFO, message)
    _line("", "dim", message)


def event(message: str) -> None:
    """Report what has just happened, in a line on stderr that begins with the time."""
    log(logging.INFO, message)
    now = datetime.now().astimezone()
    stamp = f"{now:%H:%M:%S} " if sys.stderr.isatty() else now.isoformat(timespec="seconds")
    _line("", "dim", f"{stamp} {message}")


def fail(error: PgOrthancError, *, as_json: bool) -> None:
    """An error on stderr; with --json as one document of the keys error, message, hint."""
    log(logging.ERROR, error.message, **({"hint": error.hint} if error.hint else {}))
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


@contextmanager
def progress(
    line: Callable[[float], str], log_line: Callable[[float], str], *, quiet: bool
) -> Iterator[Callable[[], None]]:
    """Show on stderr how far long work is; yield what is to be called after each step.

    Args:
        line: Returns the line for a terminal, after so many seconds. It changes several times a
            second, and its last state stays.
        log_line: Returns the line for anything else, and for a log file: one every ten seconds,
            at the end of a step; the time is written before it.
        quiet: Show nothing.
    """
    started = logged = time.monotonic()
    on_terminal = sys.stderr.isatty()

    def update() -> None:
        nonlocal logged
        now = time.monotonic()
        if now - logged >= _LOG_EVERY_S:
            logged = now
            if on_terminal:
                log(logging.INFO, log_line(now - started))
            else:
                event(log_line(now - started))

    if quiet or not on_terminal:
        yield (lambda: None) if quiet else update
        return
    from rich.live import Live
    from rich.text import Text

    def render() -> Text:
        content = printable_lines(line(time.monotonic() - started))
        return Text(content, no_wrap=True, overflow="ellipsis")

    global _live
    screen = console(sys.stderr)
    try:
        # Redirected, the result on stdout would be printed on the console of stderr.
        with Live(get_renderable=render, console=screen, redirect_stdout=False, redirect_stderr=False):
            _live = screen
            yield update
    finally:
        _live = None
        screen.print()


@contextmanager
def transfer(*, quiet: bool) -> Iterator[Report]:
    """Yield a callback that shows the progress of one long copy, whose steps count bytes."""
    done, total = 0, None

    def line(elapsed_s: float) -> str:
        return progress_line("copying", done, total, elapsed_s, show=size)

    with progress(line, lambda elapsed_s: line(elapsed_s).strip(), quiet=quiet) as show:

        def report(step: Step) -> None:
            nonlocal done, total
            done, total = step.done or 0, step.total
            show()

        yield report


@contextmanager
def steps(*, quiet: bool) -> Iterator[Report]:
    """Yield a callback that shows the steps of work that is long only on a large index.

    Nothing is shown before the first call. A step without `done` is an announcement, which stays on the screen.
    """
    current = ""

    def line(elapsed_s: float) -> str:
        return f"  {current} · {duration(elapsed_s)}"

    with ExitStack() as stack:
        show: Callable[[], None] | None = None

        def report(step: Step) -> None:
            nonlocal current, show
            current = step.what if step.done is None else f"{step.what} ({step.done} of {step.total})"
            if step.done is None and not quiet:
                event(step.what)
            if show is None:
                entered = progress(line, lambda elapsed_s: line(elapsed_s).strip(), quiet=quiet)
                show = stack.enter_context(entered)
            show()

        yield report


def console(stream: TextIO) -> Console:
    """A rich console; without a terminal there is no colour, and lines are as long as they need to be."""
    from rich.console import Console

    # Without a terminal, rich would wrap at 80 columns.
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

    line = Text.assemble((prefix, style), printable_lines(message))
    (_live or console(sys.stderr)).print(line, soft_wrap=True)
