"""Worker processes: each has a pipe of its own, and a piece of work at a time.

They are forked where that is safe, which takes no time; else they are new processes (0.2 s).

concurrent.futures has one pipe for the answers of all processes: when one is killed while it answers, the parent
waits for the rest of that answer for ever. Here the pipe ends with its process, whatever it was doing. And nobody is
waited for longer than a few seconds once the work is to end: who is asked to stop and does not, is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from pgorthanc_cli.errors import PgOrthancError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

KIND_S = 1.0  # what takes no longer is still done when the run is to end
GRACE_S = 2.0  # for what a worker has in hand when it is asked to stop
_LOOK_S = 0.2
_LAST_S = 1.0  # for the end of a killed process: one that hangs in the kernel does not end


class Stopped(Exception):
    """The work was given up, because the run is to end."""


class Checkpoint:
    """Called now and then in long work: ends it by Stopped, once an event has been set for `KIND_S`."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._seen = 0.0

    def __call__(self) -> None:
        """Raise Stopped if it is time."""
        if self._stop.is_set():
            self._seen = self._seen or time.monotonic()
            if time.monotonic() - self._seen > KIND_S:
                raise Stopped


class Pool:
    """Processes, or this one if there is none; see `pool`."""

    def __init__(self, call: Callable[..., Any], stop: threading.Event) -> None:
        """`call` does the work; `stop` says that the run is to end."""
        self.call = call
        self.stop = stop
        self.checkpoint = Checkpoint(stop)  # for work of this process itself
        self._queue: queue.SimpleQueue[tuple[Future[Any], Any] | None] = queue.SimpleQueue()
        self._processes: list[_Process] = []
        self._halted = threading.Event()
        self._deadline = 0.0

    def start(self, processes: int, *, fork: bool) -> None:
        """Start the processes, and then a thread for each."""
        try:
            for _ in range(processes):
                self._processes.append(_Process(self.call, self._processes, fork=fork))
        except OSError as error:
            for process in self._processes:
                process.close()
            raise PgOrthancError(
                f"no worker processes can be started: {error.strerror}", "allow more of them (ulimit -u, -n)"
            ) from None
        for process in self._processes:
            threading.Thread(target=self._attend, args=(process,), name="worker", daemon=True).start()

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        """Have `call(*arguments, **options)` done by a process that has nothing else to do.

        The future raises what was raised there, Stopped, or PgOrthancError if the process was killed.
        """
        future: Future[Any] = Future()
        if self._processes:
            self._queue.put((future, (arguments, options)))
            return future
        try:
            future.set_result(self.call(*arguments, **options))
        except Exception as error:  # noqa: BLE001 - as a thread does it: raised by future.result()
            future.set_exception(error)
        return future

    def result(self, future: Future[Any]) -> Any:
        """The result of a future; waits for `GRACE_S` and little more once the run is to end.

        Raises:
            Stopped: The work was given up.
            PgOrthancError: The process was killed; and whatever the work raised.
        """
        while True:
            try:
                return future.result(timeout=_LOOK_S)
            except CancelledError:
                raise Stopped from None
            except NotYet:
                if future.done():
                    continue  # it has just come; or the work itself timed out, which the next turn raises
            if self.stop.is_set():
                self.halt()
            if self._halted.is_set() and self._overdue():
                raise Stopped

    def halt(self) -> None:
        """Ask all processes to stop; those that do not within `GRACE_S` are killed."""
        if not self._halted.is_set():
            self._deadline = time.monotonic() + GRACE_S
            self._halted.set()
            for process in self._processes:
                process.halt()

    def _overdue(self) -> bool:
        """Kill what should have stopped; whether even that was in vain."""
        late = time.monotonic() - self._deadline
        if late > 0:
            for process in self._processes:
                process.kill()
        return late > _LAST_S

    def close(self) -> None:
        """End all processes: at once those that have nothing to do, the others as `halt` does."""
        if any(process.busy for process in self._processes):
            self.halt()
        for _ in self._processes:
            self._queue.put(None)
        deadline = time.monotonic() + GRACE_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def _attend(self, process: _Process) -> None:
        """Hand out one piece of work after the other."""
        while (item := self._queue.get()) is not None:
            future, message = item
            if self._halted.is_set() or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                future.set_result(process.ask(message))
            except BaseException as error:  # noqa: BLE001 - raised by future.result()
                future.set_exception(Stopped() if self._halted.is_set() else error)
        process.close()


@contextmanager
def pool(
    jobs: int,
    call: Callable[..., Any],
    stop: threading.Event | None = None,
    *,
    inline: bool = False,
    fork: bool = False,
) -> Iterator[Pool]:
    """Processes that do `call` with what `Pool.submit` gets.

    Enter it before anything is opened that a forked process must not share: connections, locks.

    Args:
        jobs: How many.
        call: A function of a module; what it gets and returns is pickled.
        stop: Says that the run is to end.
        inline: A single job is done by this process.
        fork: Fork where that is safe.

    Raises:
        PgOrthancError: No processes can be started.
    """
    made = Pool(call, stop or threading.Event())
    try:
        if not (inline and jobs == 1):
            made.start(jobs, fork=fork and sys.platform == "linux" and threading.active_count() == 1)
        yield made
    finally:
        made.close()


class _Process:
    """One worker process, started at once."""

    def __init__(self, call: Callable[..., Any], others: Sequence[_Process], *, fork: bool) -> None:
        """`others` were started before."""
        context = multiprocessing.get_context("fork") if fork else multiprocessing.get_context("spawn")
        self.busy = False
        self._pipe, end = context.Pipe()
        halted, self._halt = context.Pipe(duplex=False)
        ours = [self._pipe, self._halt, *(p for other in others for p in (other._pipe, other._halt))]
        arguments = (call, end, halted, ours if fork else [])
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        end.close()  # so that the pipe ends with the process
        halted.close()

    def ask(self, message: object) -> Any:
        """Have something done.

        Raises:
            PgOrthancError: The process was killed; and whatever the work raised.
        """
        self.busy = True
        try:
            self._pipe.send(message)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _killed() from error
        self.busy = False
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def halt(self) -> None:
        """Ask it to stop what it does."""
        self._halt.close()

    def kill(self) -> None:
        """End it, whatever it does."""
        with suppress(ValueError):
            self._process.kill()

    def close(self) -> None:
        """Let it end; it has nothing to do."""
        self._pipe.close()

    def join(self, patience_s: float) -> None:
        """Wait for its end; kill it if that takes too long."""
        self._process.join(patience_s)
        if self._process.exitcode is None:
            self.kill()
            self._process.join(_LAST_S)
        if (
            self._process.exitcode is None
        ):  # it hangs in the kernel: the interpreter must not wait for it either
            with suppress(AttributeError):
                multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]


def _killed() -> PgOrthancError:
    return PgOrthancError(
        "a worker process ended unexpectedly; everything that was counted or copied is committed",
        "look for the out-of-memory killer in the system log, then run it again with fewer --jobs: it goes on",
    )


# --- in a process of its own ---------------------------------------------------------------------------------

_halted = threading.Event()
_at_halt: list[Callable[[], object]] = []


checkpoint = Checkpoint(_halted)


def at_halt(action: Callable[[], object]) -> None:
    """Have something done, in another thread, when this worker is asked to stop: such as cancelling a query."""
    _at_halt.append(action)


def _serve(call: Callable[..., Any], pipe: Pipe, halted: Pipe, inherited: Iterable[Pipe]) -> None:
    """What a worker process does: arguments in, results (or what was raised) out. It ends with the pipe.

    Signals are for the parent. `inherited` are ends of pipes that belong to it, which a fork has copied.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for other in inherited:
        other.close()
    threading.Thread(target=_watch, args=(halted,), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            arguments, options = pipe.recv()
            pipe.send(_answer(call, arguments, options))


def _answer(call: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
    try:
        return call(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        return error


def _watch(halted: Pipe) -> None:
    """A parent that was killed -9 cannot say so: a worker would finish its work, and store what nobody wants."""
    parent = multiprocessing.parent_process()
    sentinel = [parent.sentinel] if parent else []
    ready = connection.wait([halted, *sentinel])
    if halted in ready and parent and parent.is_alive():
        _halted.set()
        for action in _at_halt:
            with suppress(Exception):
                action()
        parent.join()
    os._exit(1)
