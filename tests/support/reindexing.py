"""Reindexing that is killed again and again: each resource has all old rows, or all new ones."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, dicom, reindex
from tests.support.importing import dumped

Resource = tuple[Any, ...]


def rewritten(target: db.Target) -> dict[str, Resource]:
    """What a reindex decides of each resource, by public id; without revisions."""
    dump, of = dumped(target), dict[str, list[Any]]()
    for table in ("maindicomtags", "dicomidentifiers", "metadata"):
        for public_id, *row in dump[table]:
            of.setdefault(public_id, []).append((table, *(row[:2] if table == "metadata" else row)))
    return {public_id: tuple(rows) for public_id, rows in of.items()}


def killed(
    target: db.Target,
    area: Path,
    profiles: tuple[dicom.Profile, dicom.Profile],
    folder: Path,
    runs: int,
    *,
    seed: int = 1,
    report: Callable[[str], None] = lambda _: None,
) -> list[int]:
    """Reindex from one profile to the other, killed at random moments some times, then completed; and back.

    Returns:
        How many resources were new after each kill.

    Raises:
        AssertionError: A resource has rows of both profiles, or a completed run has left one out.
    """
    states: list[dict[str, Resource]] = []
    for profile in reversed(profiles):
        reindex.reindex(target, reindex.Settings(area, profile, jobs=1, keep_first=True))
        states.insert(0, rewritten(target))
    chance, counts, which, now = random.Random(seed), list[int](), 1, states[0]
    different = [public_id for public_id in now if states[0][public_id] != states[1][public_id]]
    for number in range(runs):
        words = command(target, area, profiles[which], folder)
        expected_s = len(different) / _FILES_PER_S
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_for_the_journal(folder / "journal", process)
            time.sleep(chance.uniform(0, expected_s))  # any moment will do
            process.send_signal(signal.SIGKILL)
        wait_for_the_end_of_workers(target)
        before, now = now, rewritten(target)
        for public_id in different:
            assert now[public_id] in (states[0][public_id], states[1][public_id]), public_id
            assert now[public_id] == states[which][public_id] or now[public_id] == before[public_id]
        counts.append(sum(now[i] == states[which][i] for i in different))
        report(f"kill {number + 1}: {counts[-1]} of {len(different)} resources are new")
        if number % _KILLS == _KILLS - 1 or number == runs - 1:
            # The journal must not leave out what the killed runs have not done.
            subprocess.run(
                command(target, area, profiles[which], folder), stdout=subprocess.DEVNULL, check=True
            )
            now = rewritten(target)
            assert now == states[which]
            which = 1 - which
    return counts


_FILES_PER_S = 200
_KILLS = 3  # of one run, before it is completed


def wait_for_the_journal(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has begun: it writes its journal first."""
    before = path.stat().st_ino if path.exists() else 0
    while not path.exists() or path.stat().st_ino == before:
        assert process.poll() is None
        time.sleep(0.005)


def command(target: db.Target, area: Path, profile: dicom.Profile, folder: Path) -> Sequence[str]:
    """The command line of a reindex in small batches, with a journal."""
    extra = {level: list(tags) for level, tags in profile.extra_tags}
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps({"StorageDirectory": str(area), "ExtraMainDicomTags": extra}))
    return [
        sys.executable, "-m", "pgorthanc_cli", "reindex", "--uri", target.dsn, "--config", str(configuration),
        "--keep-first", "--batch-files", "3", "--journal", str(folder / "journal"),
        "--max-files", f"{_FILES_PER_S}/s",
    ]  # fmt: skip


def wait_for_the_end_of_workers(target: db.Target) -> None:
    """Until no session of a killed run is left: its last transaction has ended then."""
    others = """SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'pgorthanc reindex' AND datname = current_database()"""
    with db.session(target, autocommit=True) as conn:
        deadline = time.monotonic() + 60
        while db.value(conn, others):
            assert time.monotonic() < deadline
            time.sleep(0.02)
