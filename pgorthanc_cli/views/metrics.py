"""Metrics in Prometheus' text format, version 0.0.4, for the textfile collector of the node exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Sample(NamedTuple):
    """A value of a metric, and the labels that tell it from the others."""

    labels: Mapping[str, str]
    value: float


def text(metrics: Mapping[str, list[Sample]], meanings: Mapping[str, str]) -> str:
    """Return a text file.

    Args:
        metrics: Samples by the name of the metric, without `pgorthanc_`.
        meanings: Of names that need one.
    """
    lines = []
    for name, samples in metrics.items():
        if name in meanings:
            lines.append(f"# HELP pgorthanc_{name} {meanings[name]}")
        lines.append(f"# TYPE pgorthanc_{name} gauge")
        for labels, value in samples:
            pairs = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            lines.append(f"pgorthanc_{name}{{{pairs}}} {value}")
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    # The format requires these three escapes in a label's value, and knows no others.
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
