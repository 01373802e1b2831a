"""Reads a log of any size in constant memory, and counts the plugin's messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, TypeVar

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.orthanc_log.model import Message
from pgorthanc_cli.orthanc_log.outline import outline
from pgorthanc_cli.orthanc_log.plugin_messages import FROM_PLUGIN
from pgorthanc_cli.orthanc_log.server_messages import FROM_SERVER
from pgorthanc_cli.text import printable

_LONGEST_LINE = 8192  # bytes that are read of a line
_MOST_LINES = 12  # of one message
_MOST_UNEXPLAINED = 100  # different ones that are remembered

# Anywhere in a line: containers, journald and syslog put their own times before it.
# E1126 06:00:58.718240             MAIN PluginsManager.cpp:155] The PostgreSQL database …
_HEADER = re.compile(
    r"(?<![0-9A-Za-z])([EWIT])(\d\d)(\d\d) (\d\d:\d\d:\d\d)\.\d+ +"
    r"([^\]\n]{1,120})\] (.*)",
    re.DOTALL,
)
_PLUGIN = re.compile(r"Registering plugin 'postgresql-index' \(version (\d[\d.]{0,20})\)")
# Orthanc itself mentions the plugin when it loads and unloads it.
_ABOUT_PLUGIN = re.compile(r"main\.cpp:|OrthancConfiguration\.cpp:|(?:Unr|R)egistering plugin ")
_SERVER = "PostgreSQL error:"
# Every message of the table contains one of them; nearly all lines of a log contain none.
COMMON_WORDS = (
    "atabase",
    "PostgreSQL",
    "DB",
    "schema",
    "plugin",
    "lock",
    "Transaction",
    "housekeeping",
)


@dataclass(frozen=True)
class Explanation:
    """A known message, and how often the log contains it.

    Attributes:
        text: The message; `…` stands for names and numbers.
        status: problem, warning, consequence (of another message), or ok (for normal
            operation).
        first: Its first time, as month-day and Orthanc's clock; None if there are no times.
        last: Its last time.
        line: The number of the line that contains the first one.
        command: The command that helps, without connection options; may be empty.
    """

    text: str
    status: str
    count: int
    first: str | None
    last: str | None
    line: int
    meaning: str
    action: str
    command: str


@dataclass(frozen=True)
class Unexplained:
    """An unknown message about PostgreSQL, without the names and values in it."""

    outline: str
    level: str
    count: int
    first: str | None
    last: str | None
    line: int


@dataclass(frozen=True)
class Explained:
    """What the PostgreSQL plugin wrote into a log.

    Attributes:
        lines: How many lines were read.
        first: The time of the first line of Orthanc, as month-day and Orthanc's clock.
        last: The time of the last one.
        plugin: The release of the index plugin that was loaded last, if it is mentioned.
        messages: In the order in which they first occur.
        unexplained: In the same order; errors and warnings only.
        unexplained_more: Messages that are not counted there: there are too many kinds.
    """

    file: str
    lines: int
    first: str | None
    last: str | None
    plugin: str | None
    messages: tuple[Explanation, ...]
    unexplained: tuple[Unexplained, ...]
    unexplained_more: int

    @property
    def status(self) -> Literal["problem", "warning", "ok"]:
        """Return the judgement: an error that is not known is a problem, too."""
        statuses = {message.status for message in self.messages}
        errors = any(message.level == "E" for message in self.unexplained)
        if errors or statuses & {"problem", "consequence"}:
            return "problem"
        return "warning" if "warning" in statuses or self.unexplained else "ok"


@dataclass
class _Record:
    """A message with the lines that follow it."""

    level: str
    time: str | None
    source: str
    text: str
    line: int
    lines: int = 1


@dataclass
class _Count:
    """How often a message occurs, and when."""

    first: str | None
    last: str | None
    line: int
    count: int = 0


def explain(stream: BinaryIO, file: str) -> Explained:
    """Return the known and unknown messages of the PostgreSQL plugin in a log.

    Raises:
        PgOrthancError: It is not a log of Orthanc.
    """
    counts = _Counts()
    for record in _records(stream, counts):
        counts.add(record)
    if not (counts.is_log or counts.known):
        raise PgOrthancError(
            f"{printable(file)} contains no line of an Orthanc log",
            "use Orthanc's log, as in: journalctl -u orthanc | pgorthanc explain-log -",
        )
    return counts.explained(file)


@dataclass
class _Counts:
    """All that is remembered of a log."""

    lines: int = 0
    is_log: bool = False
    first: str | None = None
    last: str | None = None
    plugin: str | None = None
    known: dict[Message, _Count] = field(default_factory=dict)
    unknown: dict[tuple[str, str], _Count] = field(default_factory=dict)
    unknown_more: int = 0

    def add(self, record: _Record) -> None:
        if record.time:
            self.first = self.first or record.time
            self.last = record.time
        release = _PLUGIN.search(record.text)
        if release:
            self.plugin = release[1]
        message = _known(record)
        if message:
            _increment(self.known, message, record)
        elif record.level in ("E", "W") and _is_about_postgresql(record):
            kind = (record.level, outline(record.text))
            if kind in self.unknown or len(self.unknown) < _MOST_UNEXPLAINED:
                _increment(self.unknown, kind, record)
            else:
                self.unknown_more += 1

    def explained(self, file: str) -> Explained:
        messages = (
            Explanation(
                message.text,
                message.status,
                seen.count,
                seen.first,
                seen.last,
                seen.line,
                message.meaning,
                message.action,
                message.command,
            )
            for message, seen in self.known.items()
        )
        unexplained = (
            Unexplained(shown, level, seen.count, seen.first, seen.last, seen.line)
            for (level, shown), seen in self.unknown.items()
        )
        return Explained(
            file,
            self.lines,
            self.first,
            self.last,
            self.plugin,
            tuple(messages),
            tuple(unexplained),
            self.unknown_more,
        )


_Kind = TypeVar("_Kind")


def _increment(counts: dict[_Kind, _Count], kind: _Kind, record: _Record) -> None:
    seen = counts.setdefault(kind, _Count(record.time, record.time, record.line))
    seen.count += 1
    seen.last = record.time or seen.last


def _known(record: _Record) -> Message | None:
    """Return the message of the table that a record contains."""
    # Words such as "Connection refused" occur in messages about other servers as well.
    from_server = _SERVER in record.text or not record.level
    if not (from_server or any(word in record.text for word in COMMON_WORDS)):
        return None
    table = (*FROM_SERVER, *FROM_PLUGIN) if from_server else FROM_PLUGIN
    return next((message for message in table if message.matches(record.text)), None)


def _is_about_postgresql(record: _Record) -> bool:
    if "PostgreSQL" not in record.text and "PostgreSQL" not in record.source:
        return False
    return not _ABOUT_PLUGIN.search(f"{record.source}] {record.text[:60]}")


def _records(stream: BinaryIO, counts: _Counts) -> Iterator[_Record]:
    """Yield messages, each with the lines that follow it: PostgreSQL's have several."""
    record: _Record | None = None
    for line in _lines(stream):
        counts.lines += 1
        header = _HEADER.search(line)
        if header:
            if record:
                yield record
            counts.is_log = True
            level, month, day, clock, source, text = header.groups()
            record = _Record(level, f"{month}-{day} {clock}", source, text, counts.lines)
        elif not counts.is_log:
            yield _Record("", None, "", line, counts.lines)  # copied from a log
        elif record and record.lines < _MOST_LINES:
            record.text += line
            record.lines += 1
    if record:
        yield record


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Yield lines, of long ones only the beginning."""
    while line := stream.readline(_LONGEST_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(_LONGEST_LINE)
        # Container engines write each line as JSON.
        yield line.decode("utf-8", "replace").replace('\\"', '"')
