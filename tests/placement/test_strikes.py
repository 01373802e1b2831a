"""Each phase of `storage move` survives what ends it: see `strikes`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from tests.faults.site import disk
from tests.placement.strikes import Scene, own_server, strike
from tests.support.real_servers import Server
from tests.support.schemas import init

pytestmark = pytest.mark.once
COUNT = 300
FEW = 60


@pytest.fixture(scope="module")
def mortal() -> Iterator[Server]:
    """A server that may be killed."""
    with own_server() as server:
        server.sql("CREATE DATABASE struck")
        init(db.Target(make_dsn(server.place, dbname="struck")))
        yield server


@pytest.mark.parametrize("phase", ["copy", "switch", "clean"])
@pytest.mark.parametrize(
    ("kind", "to_objects"), [("kill", False), ("terminate", True), ("sessions", True)], ids=str
)
def test_a_phase_that_is_struck(
    fresh: db.Target, tmp_path: Path, phase: str, kind: str, to_objects: bool
) -> None:
    # One kind also with rows that change.
    scene = Scene(fresh, tmp_path / "area", to_objects, compress=kind == "kill")
    scene.fill(COUNT)
    strike(scene, phase, kind, random.Random(), 1.0)


@pytest.mark.parametrize(
    ("phase", "kind"), [("switch", "backend"), ("copy", "postmaster"), ("copy", "space")], ids=str
)
def test_a_server_that_dies(mortal: Server, tmp_path: Path, phase: str, kind: str) -> None:
    if kind == "space" and not mortal.folder.is_mount():
        pytest.skip("needs root, and the right to mount a tmpfs")
    mortal.sql("DROP DATABASE IF EXISTS struck_again", "CREATE DATABASE struck_again TEMPLATE struck")
    target = db.Target(make_dsn(mortal.place, dbname="struck_again"))
    scene = Scene(target, tmp_path / "area", to_objects=True, server=mortal)
    scene.fill(FEW)
    strike(scene, phase, kind, random.Random(), 0.5)


def test_a_full_disk(fresh: db.Target, tmp_path: Path) -> None:
    with disk(tmp_path, 64) as small:
        if small is None:
            pytest.skip("needs root, and the right to mount a tmpfs")
        scene = Scene(fresh, tmp_path / "area", to_objects=False)
        scene.fill(COUNT)
        strike(scene, "copy", "disk", random.Random(), 1.0)
