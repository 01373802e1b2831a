"""Both storage areas."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["filesystem", "large objects"])
def area(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """A folder, or None for the large objects of the database."""
    return tmp_path / "area" if request.param == "filesystem" else None
