"""kill -9 in any moment: the next run goes on, and the end is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.support import indexstate, migrating, sqliteindex, sqlitestate
from tests.support.migrating import SERVER
from tests.support.real_servers import wait_until
from tests.support.schemas import run

DONE = "is not empty"


def start(target: db.Target, path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pgorthanc_cli", "migrate-sqlite", str(path), "--uri", target.dsn]
    return subprocess.Popen(
        [*command, "--server-identifier", SERVER, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(target: db.Target, path: Path, after_s: float, *words: str) -> bool:
    """Whether it got through, with a kill after so many seconds; a run after the last one refuses a full index."""
    with start(target, path, *words) as program:
        try:
            _, said = program.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGKILL)
            return False
    assert program.returncode == 0 or DONE in said, said
    return True


@pytest.mark.parametrize(
    ("kills", "restart"),
    [(3, False), *(pytest.param(*case, marks=pytest.mark.once) for case in ((30, False), (3, True)))],
)
def test_killed_again_and_again(empty: db.Target, tmp_path: Path, kills: int, restart: bool) -> None:
    """Where it gets through before all kills are spent, it begins with an empty schema again."""
    path = sqliteindex.rich(tmp_path / "index", instances=2000)
    wanted = sqlitestate.expected(path, SERVER)
    started = time.monotonic()
    assert finished(empty, path, 120)
    whole_s = time.monotonic() - started
    dice = random.Random(kills)
    killed = 0
    while killed < kills:
        run(empty, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        while killed < kills and not finished(empty, path, dice.uniform(0.2, 1) * whole_s):
            killed += 1
        assert finished(empty, path, 120, *(["--restart"] if restart else []))
        migrating.require_index(empty)
        assert indexstate.differing(wanted, migrating.state(empty)) == []


def test_a_worker_that_is_killed_ends_the_run_and_the_next_one_goes_on(
    empty: db.Target, tmp_path: Path
) -> None:
    path = sqliteindex.rich(tmp_path / "index", instances=20_000)
    with start(empty, path) as program:
        wait_until(lambda: len(migrating.workers(program.pid)) == 2)
        os.kill(migrating.workers(program.pid)[0], signal.SIGKILL)
        _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert "a worker process ended unexpectedly" in said
    assert finished(empty, path, 120)
