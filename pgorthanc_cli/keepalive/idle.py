"""Idle connections in one event loop: the end of a connection is seen when it happens, not when it is used."""

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

# The SQLSTATE with which PostgreSQL terminates a session -> the cause. The message follows lc_messages. Within TLS
# the SQLSTATE cannot be read from the socket: then `trial` compares times, or the cause is UNNAMED.
_STATES = {
    "57P05": "idle_session_timeout",
    "25P03": "idle_in_transaction_session_timeout",
    "57P01": "terminated",
    "57P02": "crashed",
}
# The same by the message: within TLS with a PostgreSQL that speaks English; PgBouncer always does.
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
_PEEK_BYTES = 8192
# Causes that have nothing to do with how long a connection was idle.
ACCIDENTS = ("terminated", "crashed", "restarted")


class IdleConnection:
    """An asynchronous connection that stays idle for `age_s` seconds and is then used.

    Attributes:
        age: What became of it; None until that is known.
        deadline: When it is to be used, or to be given up as unanswered (monotonic clock).
    """

    def __init__(self, conn: Connection, age_s: float, probes: Probes) -> None:
        self._conn = conn
        # Kept: psycopg2 drops the result of a cursor without references.
        self._cursor = conn.cursor()
        self._age_s = age_s
        self._probes = probes
        self._since = time.monotonic()
        self._used_at: float | None = None
        self._sqlstate = ""
        self.deadline = self._since + age_s
        self.fd = conn.fileno()
        self.backend_pid = conn.info.backend_pid
        self.age: Age | None = None
        del conn.notices[:]

    def close(self) -> None:
        """Close the connection and keep its state."""
        self.age = self.state()
        self._conn.close()

    def on_deadline(self, answer_s: float) -> None:
        """Use the connection at the end of its idle time, or give it up `answer_s` seconds later."""
        if self._used_at is not None:
            self._finish("dropped", f"no answer within {answer_s:g} s, and no word that it is gone")
            return
        self._used_at = time.monotonic()
        self.deadline = self._used_at + answer_s
        try:
            self._cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            self._finish("closed", str(error))

    def on_readable(self) -> None:
        """Read what has arrived: an answer, the server's termination message, or the end of the stream."""
        end = self._end()
        if end:
            self._finish(*end)
            return
        try:
            done = self._conn.poll() == POLL_OK
        except psycopg2.Error as error:
            self._finish("closed", str(error))
            return
        if done and self._used_at is not None:
            self._finish("alive", f"answered in {(time.monotonic() - self._used_at) * 1000:.0f} ms")

    def state(self) -> Age:
        """Return the outcome, `pending` if there is none yet."""
        return self.age or self._age("pending", "the test was ended before")

    def _end(self) -> tuple[Outcome, str] | None:
        """Return how the connection ended, by the kernel; libpq has the same message for all of these."""
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            try:
                # The bytes stay where they are: libpq will read them.
                received = sock.recv(_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except (ConnectionResetError, BrokenPipeError):
                return (
                    "reset",
                    "reset (RST) when it was used again" if self._used_at else "reset (RST) while idle",
                )
            except OSError as error:
                return (
                    "dropped",
                    f"given up by this machine's kernel, nothing is heard any more: {error.strerror}",
                )
        self._sqlstate = wire.sqlstate(received) or self._sqlstate
        if not received:
            return "closed", "closed without a word: by a proxy, or the server's process was killed"
        return None

    def _finish(self, outcome: Outcome, detail: str) -> None:
        message = " ".join(" ".join(self._conn.notices).split())
        if message and outcome != "alive":
            causes = (cause for pattern, cause in _CAUSES if re.search(pattern, message))
            self.age = self._age("closed", message, _STATES.get(self._sqlstate) or next(causes, UNNAMED))
        else:
            self.age = self._age(outcome, " ".join(detail.split()))

    def _age(self, outcome: Outcome, detail: str, cause: str = "") -> Age:
        now = time.monotonic()
        used = self._used_at or now
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
    """Yield each connection as soon as its outcome is known."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.fd, selectors.EVENT_READ, connection)
        waiting = list(connections)
        while waiting:
            next_deadline = min(connection.deadline for connection in waiting)
            for key, _ in selector.select(max(next_deadline - time.monotonic(), 0)):
                key.data.on_readable()
            for connection in [each for each in waiting if each.age is None]:
                if connection.deadline <= time.monotonic():
                    connection.on_deadline(answer_s)
            for connection in [each for each in waiting if each.age is not None]:
                waiting.remove(connection)
                selector.unregister(connection.fd)
                connection.close()
                yield connection
