"""Signals that arrive at the worst moment."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from pgorthanc_cli.signals import SignalEvent

# A timer's signals come all the time; sooner or later one arrives while `wait` is about to begin.
INTERRUPTED_WAITS = """
import signal
from pgorthanc_cli.signals import SignalEvent

def handle(number, frame):
    global handled
    handled += 1
    stop.set()

handled = 0
signal.signal(signal.SIGALRM, handle)
while handled < 500:
    stop = SignalEvent()
    signal.setitimer(signal.ITIMER_REAL, 20e-6 + handled % 50 * 2e-6)
    assert stop.wait(20)
    signal.setitimer(signal.ITIMER_REAL, 0)
    stop.close()
"""


def test_a_signal_may_set_the_event_at_any_moment_of_a_wait() -> None:
    """With `threading.Event` this waits for itself for ever."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WAITS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_wait_ends_with_its_time_or_when_another_thread_sets_the_event() -> None:
    stop = SignalEvent()
    assert not stop.wait(0.01)
    assert not stop.wait(-1)
    threading.Timer(0.05, stop.set).start()
    started = time.monotonic()
    assert stop.wait()
    assert stop.wait(0)
    assert stop.is_set()
    assert time.monotonic() - started < 10
    stop.close()


# Ctrl-C at a terminal reaches all processes of the group, these as well while they are starting.
INTERRUPTED_START = """
import operator, os, signal, sys, time
from pathlib import Path
from pgorthanc_cli import workers

started = Path(sys.argv[1], "started")
if __name__ == "__main__":
    try:
        with workers.pool(1, operator.add) as pool:
            while not started.exists():
                time.sleep(0.01)
            os.killpg(0, signal.SIGINT)
            pool.result(pool.submit(1, 1))
    except KeyboardInterrupt:
        print("interrupted")
else:  # imported by the worker
    started.touch()
    time.sleep(0.5)
"""


def test_workers_that_are_starting_leave_ctrl_c_to_the_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED_START)
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)
