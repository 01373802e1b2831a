"""Imports that are struck down at random moments: a rerun ends in the index of an undisturbed import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults.importer import INSTANCES, REFUSED, REPEATED, Archive, Setting
from tests.faults.site import Network, Site
from tests.faults.strikes import FAULTS, NEVER_MIND, Scene

pytestmark = [pytest.mark.once, pytest.mark.timeout(180)]

Expected = dict[int, dict[str, Any]]


@contextmanager
def archive(
    place: Site, setting: Setting, sources: Path, folder: Path, tablespace: str = "pg_default"
) -> Iterator[Archive]:
    with place.database(setting.revision, superuser=setting.superuser, tablespace=tablespace) as target:
        yield Archive(target, None if setting.large_objects else folder, setting, sources)


def strike(name: str, scene: Scene) -> int:
    """Strike the import that is at work, and say how it ended."""
    with FAULTS[name].strike(scene):
        _, errors = scene.process.communicate(timeout=90)
    code = scene.process.returncode
    assert code in (FAULTS[name].exit_code, NEVER_MIND), errors
    assert "Traceback" not in errors
    scene.archive.await_end_of_sessions()
    scene.archive.check_whole()
    return code


@pytest.mark.parametrize("name", FAULTS)
def test_a_rerun_completes_what_was_struck_down(
    request: pytest.FixtureRequest,
    place: Site,
    sources: Path,
    expected: Expected,
    tmp_path: Path,
    seed: str,
    name: str,
    number: int,
) -> None:
    random = Random(f"{seed}/{name}/{number}")
    setting = Setting.drawn(random, number)
    folder, disk, tablespace, cable = tmp_path / "area", None, "pg_default", None
    if name == "worker":
        setting = replace(setting, jobs=2)
    elif name == "storage":
        disk = small_disk(request)
        folder = Path(request.getfixturevalue("folder_on_disk"))
        setting = replace(setting, large_objects=False)
    elif name == "database":
        tablespace, disk = request.getfixturevalue("tablespace"), small_disk(request)
    elif name == "network":
        cable = laid(request)
    print(f"PGORTHANC_FAULT_SEED={seed}", name, number, setting)
    with archive(place, setting, sources, folder, tablespace) as struck:
        for _ in range(random.randint(1, 2)):
            with struck.importing(network=cable) as process:
                scene = Scene(place, struck, process, random, disk, cable)
                scene.await_moment()
                print("struck at", struck.stored(), "ended with", strike(name, scene))
        before = struck.stored()
        report = struck.complete()
        assert (report.imported, report.known, report.refused) == (
            INSTANCES - before,
            before + REPEATED,
            REFUSED,
        )
        struck.check_finished(expected[setting.revision])


@pytest.mark.parametrize("name", ["parent", "server"])
def test_overwriting_that_was_struck_down_leaves_each_instance_once(
    place: Site, sources: Path, expected: Expected, tmp_path: Path, seed: str, name: str, number: int
) -> None:
    """Old and new attachments change places in one moment, and no other trace of either is left."""
    random = Random(f"{seed}/overwriting {name}/{number}")
    setting = Setting.drawn(random, number)
    print(f"PGORTHANC_FAULT_SEED={seed}", name, number, setting)
    same = {k: v for k, v in expected[setting.revision].items() if k not in ("changes", "recycling")}
    with archive(place, setting, sources, tmp_path / "area") as struck:
        struck.complete()
        with struck.importing("--overwrite", "always") as process:
            scene = Scene(place, struck, process, random)
            scene.await_work()
            strike(name, scene)
        report = struck.complete()
        assert (report.imported, report.known, report.refused) == (0, INSTANCES + REPEATED, REFUSED)
        struck.check_finished(same)


def small_disk(request: pytest.FixtureRequest) -> Path:
    disk: Path | None = request.getfixturevalue("small_disk")
    if disk is None:
        pytest.skip("needs root, and the right to mount a tmpfs")
    return disk


def laid(request: pytest.FixtureRequest) -> Network:
    network: Network | None = request.getfixturevalue("cable")
    if network is None:
        pytest.skip("needs root, ip (apt-get install iproute2), and the right to make network namespaces")
    return network
