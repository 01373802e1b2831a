"""Side effects of libpq while it connects: it opens files, and prints to stderr.

A named pipe among the files would block the program for ever. The printed messages (permissions of ~/.pgpass, a
collation version mismatch, notices of a login trigger) would appear unescaped in the middle of a report.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.text import printable

_FILES = {
    "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL",
}  # fmt: skip
_MESSAGE = re.compile(r"^(?=\S+: )(?!(?:DETAIL|HINT|CONTEXT|LOCATION): )", re.MULTILINE)

_log = logging.getLogger(__name__)
_logged: set[str] = set()


def refuse_pipes(parameters: Mapping[str, str]) -> None:
    """Refuse files that libpq would block on: it opens a named pipe and waits for the writer.

    Raises:
        UsageError: A file that libpq would read is not a regular file.
    """
    files = {name: parameters.get(name) or os.environ.get(variable) for name, variable in _FILES.items()}
    if parameters.get("service") or os.environ.get("PGSERVICE"):
        home = Path.home() / ".pg_service.conf"
        files["service file"] = os.environ.get("PGSERVICEFILE") or str(home)
    for what, path in files.items():
        try:
            mode = os.stat(path).st_mode if path else stat.S_IFREG
        except (OSError, ValueError):
            continue  # libpq reports the problem
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            raise UsageError(
                f"the {what} {printable(str(path))} is not a regular file",
                "name a regular file; -v shows where each value came from",
            )


@contextmanager
def log_messages() -> Iterator[None]:
    """Log what libpq prints during the block, each message once, instead of letting it reach the terminal."""
    if _stderr is None:
        yield
        return
    _stderr.take()
    try:
        yield
    finally:
        if printed := _stderr.give_back():
            _log_once(_messages(printed))


def _log_once(messages: Iterable[str]) -> None:
    """Log messages, unless this is a worker process: its parent has logged the same ones."""
    from multiprocessing import parent_process  # seldom needed, and long to import

    for text in messages:
        if text not in _logged and parent_process() is None:
            _logged.add(text)
            _log.warning("%s", text)


def _messages(printed: str) -> Iterator[str]:
    """Yield each message on one line, with its source."""
    for message in filter(None, map(str.strip, _MESSAGE.split(printed))):
        # After the severity the server writes two spaces, in any language; libpq writes one.
        severity = re.match(r"\S+:(?P<spaces>  | )", message)
        source = "the server warns" if severity and severity["spaces"] == "  " else "libpq warns"
        text = message[severity.end() :] if severity else message
        lines = (re.sub(r"^[A-Z]+:  ", "", line.strip()) for line in text.splitlines())
        yield printable(f"{source}: {'; '.join(filter(None, lines))}")


class _Stderr:
    """C's `stderr`, replaced by a buffer while any thread connects; Python's `sys.stderr` is not affected."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc = libc
        self._lock = threading.Lock()
        self._users = 0
        self._text, self._size = ctypes.c_char_p(), ctypes.c_size_t()
        # By default ctypes returns an int, which cuts off half of a pointer.
        libc.open_memstream.restype = ctypes.c_void_p
        self._variable = ctypes.c_void_p.in_dll(libc, "stderr")
        self._own: int | None = None
        self._stream: int | None = None

    def take(self) -> None:
        """Redirect `stderr` to the buffer."""
        with self._lock:
            if self._stream is None:
                self._stream = self._libc.open_memstream(ctypes.byref(self._text), ctypes.byref(self._size))
            if self._users == 0:
                self._own = self._variable.value
                self._variable.value = self._stream
            self._users += 1

    def give_back(self) -> str:
        """Return the text written since `take`; the last user restores the real `stderr`."""
        with self._lock:
            stream = ctypes.c_void_p(self._stream)
            self._libc.fflush(stream)
            text = ctypes.string_at(self._text, self._size.value) if self._size.value else b""
            # Not closed: another thread may be printing to it.
            self._libc.rewind(stream)
            self._users -= 1
            if self._users == 0:
                self._variable.value = self._own
            return text.decode("utf-8", "replace")


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is GNU's, where `stderr` is a variable; elsewhere messages are not caught."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
    return ctypes.CDLL(None) if version else None


_libc = _glibc()
_stderr = _Stderr(_libc) if _libc else None
