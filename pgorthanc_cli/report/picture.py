"""Pictures as SVG: a rate over time, and columns. All text in them is escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from html import escape

WIDTH = 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 26
_TIME_STEPS_S = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
)  # fmt: skip


def over_time(
    values: Sequence[float], width_s: float, started: datetime, *, kind: str, show: Callable[[float], str]
) -> str:
    """A rate over time as a filled curve.

    Args:
        values: The rate in each span.
        width_s: Seconds of a span.
        started: When the first one begins.
        kind: The class of the curve in the style sheet; also what it is called for screen readers.
        show: How a rate is written on the axis.
    """
    height = 190
    top = _round_up(max(values, default=0.0))
    span_s = max(width_s * len(values), width_s)
    points = [
        f"{_x(place * width_s, span_s):.1f},{_y(value, top, height):.1f}"
        for n, value in enumerate(values)
        for place in (n, n + 1)
    ]
    floor = _y(0, top, height)
    curve = " ".join(points)
    area = f"{_LEFT},{floor:.1f} {curve} {_x(span_s, span_s):.1f},{floor:.1f}"
    return _svg(
        height,
        kind,
        [
            *_lines(top, height, show),
            *_times(started, span_s, height),
            f'<polygon class="area {kind}" points="{area}"/>',
            f'<polyline class="line {kind}" points="{curve}"/>',
        ],
    )


def columns(bars: Sequence[tuple[str, int]], *, kind: str, show: Callable[[float], str]) -> str:
    """Columns with their names below; as many names as there is room for."""
    height = 190
    top = _round_up(max((value for _, value in bars), default=0))
    slot = (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    every = math.ceil(46 / slot)
    drawn = list(_lines(top, height, show))
    for n, (name, value) in enumerate(bars):
        wide = min(slot * 0.72, 64)
        left, y = _LEFT + slot * (n + 0.5) - wide / 2, _y(value, top, height)
        tip = f"{escape(name)}: {escape(show(value))}"
        drawn.append(
            f'<rect class="bar {kind}" x="{left:.1f}" y="{y:.1f}" width="{wide:.1f}" '
            f'height="{_y(0, top, height) - y:.1f}" rx="2"><title>{tip}</title></rect>'
        )
        if n % every == 0:
            drawn.append(_text(left + wide / 2, height - 8, name, "middle"))
    return _svg(height, kind, drawn)


def _svg(height: int, kind: str, content: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(kind)}">{"".join(content)}</svg>'
    )


def _lines(top: float, height: int, show: Callable[[float], str]) -> list[str]:
    """The lines across, and what they stand for."""
    drawn = []
    for n in range(5):
        value = top * n / 4
        y = _y(value, top, height)
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            + _text(_LEFT - 8, y + 4, show(value), "end")
        )
    return drawn


def _times(started: datetime, span_s: float, height: int) -> list[str]:
    """Round times below the curve, six to twelve of them; the day where a new one begins."""
    step = next((s for s in _TIME_STEPS_S if span_s / s <= 9), math.ceil(span_s / 9 / 86400) * 86400)
    midnight = started.replace(hour=0, minute=0, second=0, microsecond=0)
    first = math.ceil((started - midnight).total_seconds() / step) * step
    drawn = []
    day = None
    for at_s in range(first, int((started - midnight).total_seconds() + span_s) + 1, step):
        moment = midnight + timedelta(seconds=at_s)
        x = _x((moment - started).total_seconds(), span_s)
        if x > WIDTH - 50:
            break
        words = f"{moment:%H:%M:%S}" if step < 60 else f"{moment:%H:%M}"
        if moment.date() != (day or started.date()):
            words = f"{moment:%a %-d %b}" if step >= 43200 else f"{moment:%a %H:%M}"
        day = moment.date()
        drawn.append(_text(x, height - 8, words, "middle"))
        drawn.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{height - _BOTTOM}" y2="{height - _BOTTOM + 5}"/>'
        )
    return drawn


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _x(at_s: float, span_s: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * at_s / span_s


def _y(value: float, top: float, height: int) -> float:
    return height - _BOTTOM - (height - _BOTTOM - _TOP) * value / top


def _round_up(value: float) -> float:
    """The top of an axis: 1, 2, 4 or 8 times a power of ten, or the half of it."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * n for n in (1, 2, 4, 6, 8, 10) if value <= power * n)
