"""What libpq does beside its work: it reads files that others name, and prints on the terminal.

Both happen while a connection is made. A named pipe among the files would stop the program for ever, and what is
printed (the permissions of ~/.pgpass, a collation that has changed, what a login trigger says) would appear in the
middle of a report, in whatever shape.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.text import printable

_FILES = {
    "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL",
}  # fmt: skip
_MESSAGE = re.compile(r"^(?=\S+: )(?!(?:DETAIL|HINT|CONTEXT|LOCATION): )", re.MULTILINE)

_log = logging.getLogger(__name__)
_said: set[str] = set()


def refuse_pipes(parameters: Mapping[str, str]) -> None:
    """Make sure that libpq does not wait for the writer of a named pipe.

    Raises:
        UsageError: A file that libpq would read is not a regular file.
    """
    named = {word: parameters.get(word) or os.environ.get(variable) for word, variable in _FILES.items()}
    if parameters.get("service") or os.environ.get("PGSERVICE"):
        home = Path.home() / ".pg_service.conf"
        named["service file"] = os.environ.get("PGSERVICEFILE") or str(home)
    for what, path in named.items():
        try:
            mode = os.stat(path).st_mode if path else stat.S_IFREG
        except (OSError, ValueError):
            continue  # libpq says what is wrong with it
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            said = f"the {what} {printable(str(path))} is not a regular file"
            raise UsageError(said, "name a regular file; -v tells where each value came from")


@contextmanager
def overheard() -> Iterator[None]:
    """Log what libpq prints within the block, each text once, instead of letting it onto the terminal."""
    if _stderr is None:
        yield
        return
    _stderr.take()
    try:
        yield
    finally:
        for text in _messages(_stderr.give_back()):
            if (
                text not in _said and multiprocessing.parent_process() is None
            ):  # a worker's parent has said it
                _said.add(text)
                _log.warning("%s", text)


def _messages(printed: str) -> Iterator[str]:
    """Each message on one line, with the one who says it."""
    for message in filter(None, map(str.strip, _MESSAGE.split(printed))):
        # The server writes two spaces behind its severity, in any language; libpq writes one.
        kind = re.match(r"\S+:(?P<server>  | )", message)
        who = "the server warns" if kind and kind["server"] == "  " else "libpq warns"
        said = message[kind.end() :] if kind else message
        lines = (re.sub(r"^[A-Z]+:  ", "", line.strip()) for line in said.splitlines())
        yield printable(f"{who}: {'; '.join(filter(None, lines))}")


class _Stderr:
    """C's `stderr`, exchanged for a buffer while somebody connects; Python's own is not touched."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc = libc
        self._lock = threading.Lock()
        self._users = 0
        self._text, self._size = ctypes.c_char_p(), ctypes.c_size_t()
        libc.open_memstream.restype = ctypes.c_void_p
        self._variable = ctypes.c_void_p.in_dll(libc, "stderr")
        self._own: int | None = None
        self._stream: int | None = None

    def take(self) -> None:
        """From now on the buffer gets it."""
        with self._lock:
            if self._stream is None:
                self._stream = self._libc.open_memstream(ctypes.byref(self._text), ctypes.byref(self._size))
            if self._users == 0:
                self._own = self._variable.value
                self._variable.value = self._stream
            self._users += 1

    def give_back(self) -> str:
        """What has come since; the last one to call it puts the real `stderr` back."""
        with self._lock:
            stream = ctypes.c_void_p(self._stream)
            self._libc.fflush(stream)
            text = ctypes.string_at(self._text, self._size.value) if self._size.value else b""
            self._libc.rewind(stream)
            self._users -= 1
            if self._users == 0:
                self._variable.value = self._own
            return text.decode("utf-8", "replace")


def _glibc() -> ctypes.CDLL | None:
    """The C library if it is GNU's, where `stderr` is a variable; elsewhere libpq prints as it does."""
    try:
        known = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
    return ctypes.CDLL(None) if known else None


_libc = _glibc()
_stderr = _Stderr(_libc) if _libc else None
