"""Worker processes, each with a pipe of its own and one call at a time.

They are forked where that is safe, which is immediate; else they are spawned (0.2 s).

concurrent.futures has one pipe for the results of all processes: if one is killed while it sends a result, the parent
waits for the rest of it for ever. Here the pipe ends with its process. And the end of a run never takes longer than a
few seconds: a process that does not stop when asked is killed.
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
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pgorthanc_cli.errors import PgOrthancError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

T = TypeVar("T")

# A terminal sends them to all its processes, but the parent alone decides.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FINISH_S = 1.0  # a call that takes no longer is still finished after a stop
GRACE_S = 2.0  # for the running calls of workers after `halt`
_POLL_S = 0.2
# For the end of a killed process; one that hangs in the kernel does not end.
_KILL_S = 1.0


class Stopped(Exception):
    """A call was given up because of a stop."""


class Checkpoint:
    """Called regularly in long work: raises Stopped once an event has been set for `FINISH_S`."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._seen = 0.0

    def __call__(self) -> None:
        """Raise Stopped if the time is up."""
        if self._stop.is_set():
            self._seen = self._seen or time.monotonic()
            if time.monotonic() - self._seen > FINISH_S:
                raise Stopped


class Pool(Generic[T]):
    """Worker processes, or this process if there are none; see `pool`."""

    def __init__(self, call: Callable[..., T], stop: threading.Event) -> None:
        """Take the function that does the work, and the event that ends the run."""
        self.call = call
        self.stop = stop
        self.checkpoint = Checkpoint(stop)  # for work in this process
        self._queue: queue.SimpleQueue[tuple[Future[T], Any] | None] = queue.SimpleQueue()
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
                f"no worker processes can be started: {error.strerror}", "allow more of them (ulimit -u)"
            ) from None
        for process in self._processes:
            threading.Thread(target=self._attend, args=(process,), name="worker", daemon=True).start()

    def submit(self, *arguments: Any, **options: Any) -> Future[T]:
        """Run `call(*arguments, **options)` in a free process.

        The future raises the exception of the call, Stopped, or PgOrthancError if the process was killed.
        """
        future: Future[T] = Future()
        if self._processes:
            self._queue.put((future, (arguments, options)))
            return future
        try:
            future.set_result(self.call(*arguments, **options))
        except Exception as error:  # noqa: BLE001 - raised by future.result()
            future.set_exception(error)
        return future

    def result(self, future: Future[T]) -> T:
        """Return the result of a future; after a stop wait little longer than `GRACE_S` for it.

        Raises:
            Stopped: The call was given up.
            PgOrthancError: The process was killed.
        """
        while True:
            try:
                return future.result(timeout=_POLL_S)
            except CancelledError:
                raise Stopped from None
            except FutureTimeoutError:
                if future.done():
                    # Done just now; or the call itself raised it, as the next turn will.
                    continue
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
        """Kill processes that should have stopped; return whether they still run after that."""
        late = time.monotonic() - self._deadline
        if late > 0:
            for process in self._processes:
                process.kill()
        return late > _KILL_S

    def close(self) -> None:
        """End all processes: idle ones immediately, the others as `halt` does. It may be called again."""
        if any(process.busy for process in self._processes):
            self.halt()
        for _ in self._processes:
            self._queue.put(None)
        deadline = time.monotonic() + GRACE_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def _attend(self, process: _Process) -> None:
        """Send one call after the other to a process."""
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
    call: Callable[..., T],
    stop: threading.Event | None = None,
    *,
    inline: bool = False,
    fork: bool = False,
) -> Iterator[Pool[T]]:
    """Start worker processes that run `call` with the arguments of `Pool.submit`.

    Enter it before opening anything that a forked process must not share: connections, locks.

    Args:
        jobs: The number of processes.
        call: A function of a module; its arguments and results are pickled.
        stop: Ends the run when set.
        inline: With one job, run the calls in this process.
        fork: Fork where that is safe: on Linux, while this process has one thread.

    Raises:
        PgOrthancError: No processes can be started.
    """
    workers = Pool(call, stop or threading.Event())
    try:
        if not (inline and jobs == 1):
            workers.start(jobs, fork=fork and sys.platform == "linux" and threading.active_count() == 1)
        yield workers
    finally:
        workers.close()


class _Process:
    """One worker process."""

    def __init__(self, call: Callable[..., Any], others: Sequence[_Process], *, fork: bool) -> None:
        """Start the process; `others` were started before."""
        # A fork inherits our ends of all pipes. It must close them: a pipe ends when its last copy is closed.
        context = multiprocessing.get_context("fork") if fork else multiprocessing.get_context("spawn")
        self.busy = False
        self._pipe, end = context.Pipe()
        halted, self._halt = context.Pipe(duplex=False)
        ours = [self._pipe, self._halt, *(p for other in others for p in (other._pipe, other._halt))]
        arguments = (call, end, halted, ours if fork else [])
        self._process = context.Process(target=_serve, args=arguments)
        if not fork:
            # The first start would change the signal mask below.
            resource_tracker.ensure_running()
        # The process inherits the mask: a Ctrl-C while it starts would end it with a traceback.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end.close()  # then the pipe ends with the process
        halted.close()

    def ask(self, message: object) -> Any:
        """Send a call and return its result.

        Raises:
            PgOrthancError: The process was killed.
        """
        self.busy = True
        try:
            self._pipe.send(message)
            result = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _killed() from error
        self.busy = False
        if isinstance(result, BaseException):
            raise result
        return result

    def halt(self) -> None:
        """Ask the process to stop its call."""
        self._halt.close()

    def kill(self) -> None:
        """Kill the process."""
        with suppress(ValueError):
            self._process.kill()

    def close(self) -> None:
        """Let an idle process end."""
        self._pipe.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the process; kill it after `timeout_s` seconds."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self.kill()
            self._process.join(_KILL_S)
        # It hangs in the kernel: multiprocessing must not wait for it either when the interpreter exits.
        if self._process.exitcode is None:
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
    """Register an action, run in another thread when this worker is asked to stop, such as cancelling a query."""
    _at_halt.append(action)


def _serve(call: Callable[..., Any], pipe: Pipe, halted: Pipe, inherited: Iterable[Pipe]) -> None:
    """Run a worker process: receive arguments, send results or exceptions, until the pipe ends.

    `inherited` are the parent's ends of pipes, which a fork has copied.
    """
    # The parent decides what a signal ends.
    for number in _SIGNALS:
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
    """End this process when it is asked to stop, or when the parent has died.

    A parent killed by SIGKILL cannot ask: the worker would finish its call, and store files that no journal names.
    """
    parent = multiprocessing.parent_process()
    sentinel = [parent.sentinel] if parent else []
    ready = connection.wait([halted, *sentinel])
    if halted in ready and parent and parent.is_alive():
        _halted.set()
        for action in _at_halt:
            with suppress(Exception):
                action()
        parent.join()
    # Not sys.exit, which would only end this thread: the main thread is in a call.
    os._exit(1)
