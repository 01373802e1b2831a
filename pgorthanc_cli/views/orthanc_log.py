"""The page about the messages in a log of Orthanc."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pgorthanc_cli.orthanc_log import Explained, Explanation
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Block, Note, Page, Status, Table


def page(explained: Explained, config: str, *, verbose: bool = False) -> Page:
    """Return the page; `config` is the configuration that the suggested commands name."""
    causes = _with_status(explained, "problem", "warning")
    consequences = _with_status(explained, "consequence")
    blocks: list[Block] = [_finding(message, config) for message in causes]
    if causes and consequences:
        blocks += [Note("Consequences, also logged:"), _table(consequences)]
    elif consequences:  # the reason is not in the log, or unknown
        blocks += [_finding(message, config) for message in consequences]
    if explained.unexplained:
        blocks += _unexplained_blocks(explained)
    blocks += _normal_blocks(_with_status(explained, "ok"), verbose=verbose)
    where = tuple(_where(explained))
    return Page(_headline(explained), where, tuple(blocks), status=explained.status)


def _with_status(explained: Explained, *statuses: str) -> list[Explanation]:
    return [message for message in explained.messages if message.status in statuses]


def _table(messages: list[Explanation]) -> Table:
    rows = ((f"{message.count:,}", message.text, message.meaning) for message in messages)
    return Table(tuple(rows), ("count", "message", "meaning"), numbers=(0,))


def _normal_blocks(messages: list[Explanation], *, verbose: bool) -> list[Block]:
    if not messages:
        return []
    count = sum(message.count for message in messages)
    verb = "belongs" if count == 1 else "belong"
    hint = "" if verbose else " (-v lists them)"
    note = Note(f"{plural(count, 'message')} {verb} to normal operation{hint}", "ok")
    return [note, _table(messages)] if verbose else [note]


def _headline(explained: Explained) -> str:
    if not explained.messages and not explained.unexplained:
        return "The log contains no messages of the PostgreSQL plugin."
    counts = {
        "problem": len(_with_status(explained, "problem")),
        "warning": len(_with_status(explained, "warning")),
        "unknown message": len(explained.unexplained),
    }
    if not any(counts.values()) and _with_status(explained, "consequence"):
        return "The log shows failures of the PostgreSQL plugin, but not the reason."
    parts = [plural(count, noun) for noun, count in counts.items() if count]
    if not parts:
        return "The log shows no problems of the PostgreSQL plugin."
    *others, last = parts
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"The log shows {listed} of the PostgreSQL plugin."


def _where(explained: Explained) -> Iterator[str]:
    yield printable(explained.file)
    yield plural(explained.lines, "line")
    if explained.first and explained.last:
        period = " to ".join(dict.fromkeys((explained.first, explained.last)))
        # Orthanc's log writes neither the year nor the time zone.
        yield f"{period} (month-day, Orthanc's clock)"
    if explained.plugin:
        yield f"PostgreSQL plugin {explained.plugin}"


def _finding(message: Explanation, config: str) -> Note:
    details = [_occurrences(message), message.meaning, message.action]
    command = f"{message.command} --config {shlex.quote(config)}" if message.command else ""
    status: Status = "warning" if message.status == "warning" else "problem"
    return Note(message.text, status, tuple(filter(None, details)), printable(command))


def _occurrences(message: Explanation) -> str:
    """Return how often, when (if the log has times), and where in the log."""
    if message.count == 1:
        when = f" at {message.first}" if message.first else ""
        return f"Logged once{when}, in line {message.line:,}."
    when = f" from {message.first} to {message.last}" if message.first else ""
    return f"Logged {message.count:,} times{when}, first in line {message.line:,}."


def _unexplained_blocks(explained: Explained) -> list[Block]:
    unknown = explained.unexplained
    rows = tuple((f"{m.count:,}", f"{m.line:,}", m.outline) for m in unknown)
    kinds = plural(len(rows), "message")
    verb = "is" if len(rows) == 1 else "are"
    more = explained.unexplained_more
    details = [
        "Names and values are replaced by … here, as they may be those of patients. "
        "Read the lines in the log itself."
    ]
    if more:
        details.append(f"{plural(more, 'further message')} of other kinds not listed.")
    return [
        Note(f"{kinds} about PostgreSQL {verb} not known to pgorthanc", "unknown", tuple(details)),
        Table(rows, ("count", "line", "message"), (0, 1), all_with="--json"),
    ]
