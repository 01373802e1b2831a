"""Figures with their units, as people read them."""

from __future__ import annotations

import pytest

from pgorthanc_cli.text import duration, plural, size


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (50e6, "50 MB"), (75e12, "75 TB"), (4e15, "4,000 TB")],
)
def test_sizes(count: float, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "0.2 s"), (2, "2 s"), (26.4, "26 s"), (59.7, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
        (7500, "2 h 5 min"), (200_000, "2 d 7 h"), (172_800, "2 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_plurals() -> None:
    assert [plural(count, "file") for count in (0, 1, 1204)] == ["0 files", "1 file", "1,204 files"]
    assert plural(2, "study", "studies") == "2 studies"
