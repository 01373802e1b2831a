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
    """Reindex to one profile and the other in turns, killed at random; return how many resources were new each time.

    Raises:
        AssertionError: A resource has rows of both, or something else.
    """
    states = []
    for profile in profiles:
        settings = reindex.Settings(area, profile, jobs=1, keep_first=True)
        began = time.monotonic()
        reindex.reindex(target, settings)
        took_s = time.monotonic() - began
        states.append(rewritten(target))
    chance, counts, before = random.Random(seed), list[int](), states[1]
    for number in range(runs):
        which = number % 2
        words = command(target, area, profiles[which], folder / f"{which}.json", folder / f"{which}.journal")
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(chance.uniform(0.3, 1.5 + took_s))  # the moment does not matter, whatever it is
            process.send_signal(signal.SIGKILL)
        wait_for_the_end_of_workers(target)
        now = rewritten(target)
        for public_id, rows in now.items():
            assert rows in (states[0][public_id], states[1][public_id]), public_id
        new = sum(rows == states[which][public_id] for public_id, rows in now.items())
        assert all(now[i] == rows for i, rows in before.items() if rows == states[which][i])
        report(f"run {number + 1}: {new} of {len(now)} resources are new")
        counts.append(new)
        before = now
    for which, profile in enumerate(profiles):
        for journal in folder.glob("*.journal"):
            journal.unlink()
        reindex.reindex(target, reindex.Settings(area, profile, jobs=1, keep_first=True))
        assert rewritten(target) == states[which]
    return counts


def command(
    target: db.Target, area: Path, profile: dicom.Profile, configuration: Path, journal: Path
) -> Sequence[str]:
    """The command line of a reindex in small batches, with a journal."""
    extra = {level: list(tags) for level, tags in profile.extra_tags}
    configuration.write_text(json.dumps({"StorageDirectory": str(area), "ExtraMainDicomTags": extra}))
    return [
        sys.executable, "-m", "pgorthanc_cli", "reindex", "--uri", target.dsn, "--config", str(configuration),
        "--keep-first", "--batch-files", "3", "--journal", str(journal), "--max-files", "200/s",
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
