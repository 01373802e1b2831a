"""`wait`: its good end."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.views import waiting as views
from pgorthanc_cli.waiting import Conditions, Reached
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "waiting"
ENDPOINT = db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")


@pytest.mark.parametrize(
    ("state", "conditions", "waited_s"),
    [
        ("immediately", Conditions(ready=True), 0.0),
        ("later", Conditions(revision=10, unlocked=True), 200.4),
    ],
)
def test_the_end(state: str, conditions: Conditions, waited_s: float) -> None:
    golden.check_view(GOLDEN, state, views.page(Reached(str(conditions), waited_s, ENDPOINT)))
