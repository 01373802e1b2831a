"""The log file of a service: what stderr shows, with times and levels, as text or JSON lines.

Built on the standard library's `logging`. The file is opened again when a rotation has moved it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from pgorthanc_cli.errors import UsageError

_PRIVATE = 0o600  # names of files are in it
_logger = logging.getLogger("pgorthanc.log_file")
# The same messages are on stderr already.
_logger.propagate = False
_logger.setLevel(logging.INFO)


def open_log(path: Path, *, as_json: bool) -> Callable[..., None]:
    """Open the file, to append to it; return the function `write`.

    Raises:
        UsageError: It cannot be written to.
    """
    for handler in list(_logger.handlers):
        _logger.removeHandler(handler)
        with suppress(OSError):  # its disk is full
            handler.close()
    try:
        # The handler itself would create it with the mode that the umask leaves.
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _PRIVATE))
        log = _Handler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"--log-file {path} cannot be written: {error.strerror}",
            "choose a file in a folder that you may write to",
        ) from None
    log.setFormatter(_JsonLines() if as_json else _Text())
    _logger.addHandler(log)
    return write


def write(level: int, message: str, **more: str) -> None:
    """Append a record; `more` are fields of a JSON line."""
    _logger.log(level, message, extra={"more": more})


# An import that follows folders runs for months: logrotate may move its log away.
class _Handler(WatchedFileHandler):
    """Ignores a full disk: it must not end the work that is being logged."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging
        """Do nothing."""


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return `2026-11-25T22:12:30+01:00 WARNING message`, and indented lines for the rest of it."""
        lines = [record.getMessage(), *(f"{name}: {text}" for name, text in vars(record)["more"].items())]
        content = "\n".join(lines).replace("\n", "\n    ")
        return f"{_time(record)} {record.levelname} {content}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object on one line."""
        fields = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(fields | vars(record)["more"])


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
