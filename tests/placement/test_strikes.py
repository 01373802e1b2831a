"""Each phase of `storage move` survives what ends it: see `strikes`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.faults.site import disk
from tests.placement.strikes import Scene, strike

pytestmark = pytest.mark.once
COUNT = 300


@pytest.mark.parametrize("phase", ["copy", "switch", "clean"])
@pytest.mark.parametrize(
    ("kind", "to_objects"), [("kill", False), ("terminate", True), ("sessions", True)], ids=str
)
def test_a_phase_that_is_struck(
    fresh: db.Target, tmp_path: Path, phase: str, kind: str, to_objects: bool
) -> None:
    scene = Scene(fresh, tmp_path / "area", to_objects)
    scene.fill(COUNT)
    strike(scene, phase, kind, random.Random(), 1.0)


def test_a_full_disk(fresh: db.Target, tmp_path: Path) -> None:
    with disk(tmp_path, 64) as small:
        if small is None:
            pytest.skip("needs root, and the right to mount a tmpfs")
        scene = Scene(fresh, tmp_path / "area", to_objects=False)
        scene.fill(COUNT)
        strike(scene, "copy", "disk", random.Random(), 1.0)
