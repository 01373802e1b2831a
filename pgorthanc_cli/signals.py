"""How Ctrl-C, SIGTERM and SIGHUP end a command: at once, or at the next safe point."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = "Stopping {} (a few seconds). Press Ctrl-C again to abort."
_LOOK_AGAIN_S = 0.5

# Set by the first signal: a library may swallow the exception that the signal raises
# (`except:` around an optional import, a destructor), and the command would then run on.
_interrupted = False


def end_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process with KeyboardInterrupt."""
    global _interrupted
    _interrupted = False
    for number in _ending_signals():
        # The shell starts `command &` with SIGINT ignored, and that must stay so.
        is_default = signal.getsignal(number) is signal.default_int_handler
        if number != signal.SIGINT or is_default:
            signal.signal(number, _interrupt)


def _ending_signals() -> list[signal.Signals]:
    """Return the signals that end a command; under `nohup` SIGHUP stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


class SignalEvent(threading.Event):
    """An event that a signal handler may set, once and for all.

    `threading.Event.set` takes a lock. The handler runs in the main thread, which may
    hold that lock just then, in `wait`: it would wait for itself for ever. Here `wait`
    reads from a pipe.
    """

    def __init__(self) -> None:
        super().__init__()
        self._set = False
        self._reader, self._writer = os.pipe()

    def is_set(self) -> bool:
        """Whether it has been set."""
        return self._set

    def set(self) -> None:
        """Set it, and wake whoever waits."""
        if not self._set:
            self._set = True
            os.write(self._writer, b"\0")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or `timeout` seconds; return whether it is set."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        left_s = deadline - time.monotonic()
        while not self._set and left_s > 0:
            # Python runs a handler between two instructions. A signal that arrives in
            # the instant before the system call does not interrupt it.
            poll.poll(min(left_s, _LOOK_AGAIN_S) * 1000)
            left_s = deadline - time.monotonic()
        return self._set

    def close(self) -> None:
        """Close the pipe; no thread may wait any more."""
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def stop_on_signal(answer: str = "") -> Iterator[threading.Event]:
    """Set the event on the first signal, for work that ends at the next safe point.

    The second signal interrupts. `answer` is what Ctrl-C at a terminal is answered with, such
    as `STOPPING.format("after this batch")`.

    Raises:
        KeyboardInterrupt: A signal came before, and what it interrupted has swallowed the
            exception.
    """
    stop = SignalEvent()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        if answer and number == signal.SIGINT and os.isatty(2):
            # Not by sys.stderr, in whose `write` the signal may have arrived.
            os.write(2, f"\r\x1b[K{answer}\n".encode())

    before = {number: signal.signal(number, handle) for number in _ending_signals()}
    try:
        if _interrupted:
            raise KeyboardInterrupt
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
