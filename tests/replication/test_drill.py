"""The failover drill: kill -9 in the middle of an import, promote, go on, bring the old primary back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.replication.basebackup import compare
from pgorthanc_cli.schema import verify
from pgorthanc_cli.server import programs
from tests.replication.site import Site, answer, crash, ids
from tests.support import samples
from tests.support.real_servers import wait_until

FILES = 2000
MAJORS = sorted({found.version[0] for found in programs.installed()})
NewSite = Callable[..., Site]


def importing(site: Site, files: Path) -> list[str | Path]:
    """Large objects: with PostgreSQL's storage area the files are replicated, too."""
    return ["import", "--uri", site.both.dsn, "--storage", "postgresql", "--jobs", "1", files]


@pytest.mark.parametrize("synchronous", [True, False], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    "major", [m if m == MAJORS[0] else pytest.param(m, marks=pytest.mark.once) for m in MAJORS]
)
def test_drill(new_site: NewSite, tmp_path: Path, major: int, synchronous: bool) -> None:
    site = new_site(major=major)
    site.prepared()
    site.standby()
    if synchronous:
        site.prepared(synchronous=True)
    files = tmp_path / "files"
    samples.folder(files, FILES)
    acknowledged = killed_in_the_middle(site, files, cut_off=not synchronous)

    promoted = answer("replication", "promote", "--dir", site.folder, "--old-primary-is-down")
    assert (promoted["timeline_before"], promoted["timeline"]) == (1, 2)
    assert promoted["lost_bytes"] is None  # the old primary has not been looked at
    there = ids(site.both)
    if synchronous:
        assert acknowledged <= there
    else:
        assert acknowledged - there  # what was cut off

    rejoined = rejoin(site, synchronous=synchronous)
    assert rejoined.method in ("rewind", "follow"), rejoined.why
    if not synchronous:
        assert rejoined.method == "rewind"
        assert rejoined.lost_bytes > 0
        assert rejoined.lost_commits > 0
    done = answer(*importing(site, files))
    assert done["imported"] == FILES - len(there)
    new, old = site.orthanc(site.port), site.orthanc(site.primary.port)
    index, difference = compare(new, old)
    assert (index["instances"], difference) == (FILES, "none")
    assert ids(new) == ids(old)
    for target in (new, old):
        with db.session(target, readonly=True) as conn:
            assert verify.schema(conn, "public", deep=True).healthy
    found = replication.status([site.standby_administrator(), site.administrator])
    assert [server.role for server in found.servers] == ["primary", "standby"]
    assert [server.timeline for server in found.servers] == [2, 2]


def killed_in_the_middle(site: Site, files: Path, *, cut_off: bool) -> set[str]:
    """Kill the primary while an import works; the instances that were committed for all to see before."""
    command = [sys.executable, "-m", "pgorthanc_cli", *map(str, importing(site, files))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        primary = site.orthanc(site.primary.port)
        wait_until(lambda: len(ids(primary)) > FILES // 10, timeout_s=120)
        if cut_off:  # what is committed from now on reaches no standby
            before = len(ids(primary))
            os.kill(int(site.primary.sql("SELECT pid FROM pg_stat_replication")), signal.SIGSTOP)
            wait_until(lambda: len(ids(primary)) > before)
        acknowledged = ids(primary)
        crash(site.primary.data)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "run the same command again" in said
    assert len(acknowledged) < FILES
    return acknowledged


def rejoin(site: Site, *, synchronous: bool) -> replication.Rejoined:
    login = db.Target(site.source(site.port))
    if not synchronous:
        said = r"holds \d+ committed transactions \([\d,]+ bytes of WAL\)"
        with pytest.raises(PgOrthancError, match=said) as refused:
            replication.rejoin(site.primary.data, login, administrator=site.standby_administrator())
        assert "--discard" in str(refused.value.hint)
    return replication.rejoin(
        site.primary.data, login, administrator=site.standby_administrator(), discard=True
    )
