"""Idle connections, all waited for by one loop: an end is seen when it happens, not when the age is over."""

from __future__ import annotations

import os
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import POLL_OK

from pgorthanc_cli.db import wire
from pgorthanc_cli.keepalive.model import Age, Outcome, Probes

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# The SQLSTATE with which PostgreSQL ends a session -> what ended it; the words follow its lc_messages. Within TLS the
# SQLSTATE cannot be seen: then the time tells (`trial`), or the cause is UNNAMED, and the words are shown.
_STATES = {
    "57P05": "idle_session_timeout",
    "25P03": "idle_in_transaction_session_timeout",
    "57P01": "terminated",
    "57P02": "crashed",
}
# The same within TLS, as long as PostgreSQL speaks English, and the words of PgBouncer, which always does.
_CAUSES = (
    (r"idle-session timeout", "idle_session_timeout"),
    (r"idle-in-transaction timeout", "idle_in_transaction_session_timeout"),
    (r"administrator command", "terminated"),
    (r"crash of another server process|immediate shutdown", "crashed"),
    (r"client_idle_timeout", "PgBouncer's client_idle_timeout"),
    (r"idle transaction timeout|idle_transaction_timeout", "PgBouncer's idle_transaction_timeout"),
    (r"server conn crashed", "PgBouncer lost the server"),
)
UNNAMED = "unnamed"
_PEEKED = 8192  # bytes
# What ends connections however long they were idle.
ACCIDENTS = ("terminated", "crashed", "restarted")


class IdleConnection:
    """An asynchronous connection that is left idle for `age_s` seconds and then asked whether it lives."""

    def __init__(self, conn: Connection, age_s: float, probes: Probes) -> None:
        self._conn = conn
        self._cursor = conn.cursor()  # psycopg2 drops the answer if nobody holds the cursor
        self._age_s = age_s
        self._probes = probes
        self._since = time.monotonic()
        self._asked: float | None = None
        self._sqlstate = ""
        self._deadline = self._since + age_s
        self.fd = conn.fileno()
        self.backend_pid = conn.info.backend_pid
        self.found: Age | None = None
        del conn.notices[:]

    @property
    def due(self) -> float:
        """When something is to be done, if nothing is heard before."""
        return self._deadline

    def close(self) -> None:
        """Give it up; what is known stays."""
        self.found = self.state()
        self._conn.close()

    def on_time(self, answer_s: float) -> None:
        """Its age is over: use it; or the time for the answer is over."""
        if self._asked is not None:
            self._settle("dropped", f"no answer within {answer_s:g} s, and no word that it is gone")
            return
        self._asked = time.monotonic()
        self._deadline = self._asked + answer_s
        try:
            self._cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            self._died(str(error))

    def on_readable(self) -> None:
        """Something has come: an answer, the server's farewell, or the end."""
        end = self._end()
        if end:
            self._settle(*end)
            return
        try:
            done = self._conn.poll() == POLL_OK
        except psycopg2.Error as error:
            self._died(str(error))
            return
        if done and self._asked is not None:
            self._settle("alive", f"answered in {(time.monotonic() - self._asked) * 1000:.0f} ms")

    def state(self) -> Age:
        """What is known by now."""
        return self.found or self._age("pending", "the test was ended before")

    def _end(self) -> tuple[Outcome, str] | None:
        """How the connection has ended, as the kernel tells it; libpq has the same words for all of these."""
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            try:
                seen = sock.recv(_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except (ConnectionResetError, BrokenPipeError):
                return (
                    "reset",
                    "reset (RST) when it was used again" if self._asked else "reset (RST) while idle",
                )
            except OSError as error:
                return (
                    "dropped",
                    f"given up by this machine's kernel, nothing is heard any more: {error.strerror}",
                )
        self._sqlstate = wire.sqlstate(seen) or self._sqlstate
        if not seen:
            return "closed", "closed without a word: by a proxy, or the server's process was killed"
        return None

    def _died(self, words: str) -> None:
        self._settle("closed", words)

    def _settle(self, outcome: Outcome, detail: str) -> None:
        farewell = " ".join(" ".join(self._conn.notices).split())
        if farewell and outcome != "alive":
            named = (cause for words, cause in _CAUSES if re.search(words, farewell))
            self.found = self._age("closed", farewell, _STATES.get(self._sqlstate) or next(named, UNNAMED))
        else:
            self.found = self._age(outcome, " ".join(detail.split()))

    def _age(self, outcome: Outcome, detail: str, cause: str = "") -> Age:
        now = time.monotonic()
        used = self._asked or now
        return Age(
            age_s=self._age_s,
            keepalive=self._probes != "none",
            probes=self._probes,
            outcome=outcome,
            idle_s=round(used - self._since, 3),
            noticed_s=round(now - used, 3),
            cause=cause,
            detail=detail,
        )


def watch(connections: Sequence[IdleConnection], answer_s: float) -> Iterator[IdleConnection]:
    """Each connection as soon as it is known what became of it."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.fd, selectors.EVENT_READ, connection)
        waiting = list(connections)
        while waiting:
            next_due = min(connection.due for connection in waiting)
            for key, _ in selector.select(max(next_due - time.monotonic(), 0)):
                key.data.on_readable()
            for connection in [found for found in waiting if found.found is None]:
                if connection.due <= time.monotonic():
                    connection.on_time(answer_s)
            for connection in [found for found in waiting if found.found is not None]:
                waiting.remove(connection)
                selector.unregister(connection.fd)
                connection.close()
                yield connection
