"""Two imports of the same files into one archive, at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from tests.faults.importer import INSTANCES, REFUSED, REPEATED, Archive, Setting
from tests.faults.site import ROLE, Site
from tests.faults.strikes import NEVER_MIND, Scene
from tests.support.real_servers import wait_until
from tests.support.schemas import rows

pytestmark = [pytest.mark.once, pytest.mark.timeout(180)]

Expected = dict[int, dict[str, Any]]
ALONE = Setting(large_objects=False, jobs=1, concurrent=False, superuser=True, revision=10)


def test_the_second_one_is_refused_and_told_who_is_at_work(
    place: Site, sources: Path, expected: Expected, tmp_path: Path
) -> None:
    """The first one waits for the names of its files, and holds the index meanwhile."""
    with place.database(10, superuser=True) as target, ExitStack() as stack:
        archive = Archive(target, tmp_path / "area", ALONE, sources)
        first = stack.enter_context(archive.importing("--files-from", "-", sources=[], stdin=subprocess.PIPE))
        held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND granted"
        wait_until(lambda: bool(rows(target, held)))
        with archive.importing() as second:
            _, errors = second.communicate()
        assert second.returncode == 5
        [(pid,)] = rows(target, held)
        holder = f"the command pgorthanc import at the local socket (pid {pid}) holds the index lock"
        assert holder in json.loads(errors)["message"]
        assert archive.stored() == 0
        report, _ = first.communicate(f"{sources}\n")
        assert first.returncode == NEVER_MIND
        assert json.loads(report)["imported"] == INSTANCES
        archive.check_finished(expected[10])


def pair(
    place: Site, number: int, random: Random, sources: Path, folder: Path, target: db.Target
) -> list[Archive]:
    """The same archive twice, for two roles: one may switch the triggers off, the other one may not."""
    setting = replace(Setting.drawn(random, number), concurrent=True)
    area = None if setting.large_objects else folder
    owner = db.Target(make_dsn(target.dsn, user=ROLE))
    return [
        Archive(who, area, setting, sources) for who in random.choice(([target, owner], [target, target]))
    ]


@pytest.mark.parametrize("revision", [1, 10])
@pytest.mark.parametrize("killed", [False, True], ids=["both end", "one is killed"])
def test_side_by_side(
    place: Site,
    sources: Path,
    expected: Expected,
    tmp_path: Path,
    seed: str,
    number: int,
    revision: int,
    killed: bool,
) -> None:
    """No duplicate, nothing twice in the counters, nothing left over; only the order of the changes is their own."""
    random = Random(f"{seed}/two {revision} {killed}/{number}")
    backwards = tmp_path / "backwards"
    backwards.write_text("".join(f"{path}\n" for path in every(sources)[::-1]))
    with place.database(revision, superuser=True) as target, ExitStack() as stack:
        first, second = pair(place, number, random, sources, tmp_path / "area", target)
        print(f"PGORTHANC_FAULT_SEED={seed}", number, first, second)
        at_work = [
            stack.enter_context(first.importing()),
            stack.enter_context(second.importing("--files-from", str(backwards), sources=[])),
        ]
        if killed:
            Scene(place, first, at_work[0], random).await_moment()
            at_work.pop(0).kill()
        ended = [json.loads(process.communicate()[0]) for process in at_work]
        assert [process.returncode for process in at_work] == [NEVER_MIND] * len(at_work)
        first.await_end_of_sessions()
        first.check_whole()
        for report in ended:
            assert report["imported"] + report["known"] == INSTANCES + REPEATED
            assert report["refused"] == REFUSED
        if not killed:
            assert sum(report["imported"] for report in ended) == INSTANCES
        report = first.complete()
        assert (report.imported, report.known, report.refused) == (0, INSTANCES + REPEATED, REFUSED)
        first.check_finished(expected[revision], in_order=False)


def every(folder: Path) -> list[str]:
    """The files in a folder, as an import takes them."""
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
