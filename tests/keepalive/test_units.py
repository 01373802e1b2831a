"""Lengths of time, and the limits of well-known middle boxes: no server is asked."""

from __future__ import annotations

import pytest

from pgorthanc_cli import keepalive
from pgorthanc_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("4m", 240), ("1.5min", 90), ("2h", 7200), (" 10 s ", 10)]
)
def test_durations(text: str, seconds: float) -> None:
    assert keepalive.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "4 minutes", "m", "1m 2s", "nan"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(UsageError, match="no length of time"):
        keepalive.duration(text)


def test_usual_ages() -> None:
    assert keepalive.ages("4m,1m,60s") == (60, 240)
    assert keepalive.ages_up_to(900) == (60, 120, 240, 300, 360, 600, 900)
    assert keepalive.ages_up_to(8) == (1, 2, 5, 8)


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [(120, 240, "Azure"), (240, 300, "Azure"), (300, 360, "AWS Network Load Balancer"), (600, 900, "IPVS")],
)
def test_known_limits_that_fit_are_named(low: float, high: float, name: str) -> None:
    from pgorthanc_cli.keepalive import verdict

    assert any(name in line for line in verdict._known_limits((low, high)))
    assert not any("known" in line.lower() for line in verdict._known_limits((1, 5)))
