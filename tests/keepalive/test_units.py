"""Idle times, and the limits of well-known middle boxes: no server is asked."""

from __future__ import annotations

import pytest

from pgorthanc_cli import keepalive


def test_usual_ages() -> None:
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
