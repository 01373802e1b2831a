"""The site of the faults, the sources that are imported, and how often each fault strikes."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import importer
from tests.faults.site import REVISIONS, Network, Site, disk, network, site

RUNS, SEED = "PGORTHANC_FAULT_RUNS", "PGORTHANC_FAULT_SEED"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `number` runs 3 times, or as often as PGORTHANC_FAULT_RUNS says."""
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(int(os.environ.get(RUNS, "3"))))


@pytest.fixture(scope="session")
def seed() -> str:
    """Decides every run; PGORTHANC_FAULT_SEED repeats one that has failed."""
    return os.environ.get(SEED) or secrets.token_hex(4)


@pytest.fixture(scope="session")
def place() -> Iterator[Site]:
    with site() as faulty_site:
        yield faulty_site


@pytest.fixture(scope="session")
def cable() -> Iterator[Network | None]:
    with network() as cable_:
        yield cable_


@pytest.fixture(scope="session")
def small_disk(place: Site) -> Iterator[Path | None]:
    """A disk of 64 MB that the server, too, may write to."""
    folder = place.server.folder / "disk"
    folder.mkdir()
    with disk(folder, 64) as small_disk_:
        place.server.account.own(folder)
        yield small_disk_


@pytest.fixture
def folder_on_disk(small_disk: Path) -> Iterator[Path]:
    folder = small_disk / "area"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tablespace(place: Site, small_disk: Path | None) -> Iterator[str]:
    """The name of the tablespace on it."""
    if small_disk is None:
        pytest.skip("needs root, and the right to mount a tmpfs")
    folder = small_disk / "tablespace"
    folder.mkdir()
    place.server.account.own(folder)
    place.server.sql(f"CREATE TABLESPACE small LOCATION '{folder}'")
    yield "small"
    place.server.sql("DROP TABLESPACE small")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return importer.write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def expected(
    place: Site, sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Any]]:
    """The index at each revision after an undisturbed import."""
    dumps = {}
    for number in REVISIONS:
        with place.database(number, superuser=True) as target:
            folder = tmp_path_factory.mktemp("undisturbed")
            dumps[number] = importer.undisturbed(target, [sources], folder)
    return dumps
