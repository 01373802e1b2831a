"""Killed at a random moment, a change of `verify storage` loses nothing; see bench/scrub_kills.py for many more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.scrub.kills import Scene, kill


@pytest.mark.once
@pytest.mark.parametrize("change", ["repair", "index", "quarantine elsewhere"])
def test_a_rerun_completes(fresh: db.Target, tmp_path: Path, change: str) -> None:
    scene = Scene.of(fresh, tmp_path, change, count=20, size=200_000)
    assert kill(scene, random.Random(), 0.1)
