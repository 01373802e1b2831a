"""Helpers of the tests of the embedded server: other processes, other accounts, crashes, full disks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.server import embedded, programs

ROOT = os.geteuid() == 0
USER = """
import sys
from pathlib import Path
from pgorthanc_cli.server import embedded
with embedded.attach(Path(sys.argv[1])):
    print("attached", flush=True)
    sys.stdin.read()
"""


@contextmanager
def user(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is about to attach; it leaves when its input ends."""
    command = [sys.executable, "-c", USER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def attached(process: subprocess.Popen[str]) -> bool:
    assert process.stdout
    return process.stdout.readline() == "attached\n"


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 0


def ask(target: db.Target, query: str) -> Any:
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute(query)
        if not cur.description:
            return None
        [row] = cur.fetchall()
        return row[0] if len(row) == 1 else row


def kill_server(directory: Path) -> None:
    pid = embedded.status(directory).pid
    assert pid
    os.kill(pid, signal.SIGKILL)


def fill(ballast: Path) -> None:
    """Let it grow until the disk is full."""
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def as_ordinary_user(function: Callable[[], None]) -> None:
    """Call it in a process of an ordinary user (which this one is, unless it is root's)."""
    if not ROOT:
        function()
        return
    account = programs.service_account()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
            function()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the parent tells
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
