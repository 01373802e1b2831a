"""Charts as SVG: a rate over time, and columns. All text in them is escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from html import escape

WIDTH = 1000
_HEIGHT = 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 26
_TIME_STEPS_S = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
)  # fmt: skip


def over_time(
    values: Sequence[float],
    width_s: float,
    started: datetime,
    *,
    kind: str,
    label: Callable[[float], str],
) -> str:
    """Return a rate over time as a filled curve.

    Args:
        values: The rate in each span.
        width_s: Seconds of a span.
        started: The start of the first span.
        kind: The CSS class of the curve; also its name for screen readers.
        label: Returns the label of a rate on the axis.
    """
    height = _HEIGHT
    top = _round_up(max(values, default=0.0))
    span_s = max(width_s * len(values), width_s)
    points = [
        f"{_x(edge * width_s, span_s):.1f},{_y(value, top, height):.1f}"
        for n, value in enumerate(values)
        for edge in (n, n + 1)
    ]
    floor = _y(0, top, height)
    curve = " ".join(points)
    area = f"{_LEFT},{floor:.1f} {curve} {_x(span_s, span_s):.1f},{floor:.1f}"
    return _svg(
        height,
        kind,
        [
            *_grid(top, height, label),
            *_times(started, span_s, height),
            f'<polygon class="area {kind}" points="{area}"/>',
            f'<polyline class="line {kind}" points="{curve}"/>',
        ],
    )


def columns(bars: Sequence[tuple[str, int]], *, kind: str, label: Callable[[float], str]) -> str:
    """Return columns with their names below; as many names as there is room for."""
    height = _HEIGHT
    top = _round_up(max((value for _, value in bars), default=0))
    slot = (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    every = math.ceil(46 / slot)
    elements = list(_grid(top, height, label))
    for n, (name, value) in enumerate(bars):
        width = min(slot * 0.72, 64)
        left, y = _LEFT + slot * (n + 0.5) - width / 2, _y(value, top, height)
        tip = f"{escape(name)}: {escape(label(value))}"
        elements.append(
            f'<rect class="bar {kind}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{_y(0, top, height) - y:.1f}" rx="2"><title>{tip}</title></rect>'
        )
        if n % every == 0:
            elements.append(_text(left + width / 2, height - 8, name, "middle"))
    return _svg(height, kind, elements)


def _svg(height: int, kind: str, content: Sequence[str]) -> str:
    attributes = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(kind)}"'
    return f"<svg {attributes}>{''.join(content)}</svg>"


def _grid(top: float, height: int, label: Callable[[float], str]) -> list[str]:
    """Return the horizontal lines and their labels."""
    elements = []
    for n in range(5):
        value = top * n / 4
        y = _y(value, top, height)
        elements.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>' + _text(_LEFT - 8, y + 4, label(value), "end")
        )
    return elements


def _times(started: datetime, span_s: float, height: int) -> list[str]:
    """Return six to twelve round times below the curve; a new day by its name."""
    step = next((s for s in _TIME_STEPS_S if span_s / s <= 9), None)
    if step is None:
        step = math.ceil(span_s / 9 / 86400) * 86400
    midnight = started.replace(hour=0, minute=0, second=0, microsecond=0)
    first = math.ceil((started - midnight).total_seconds() / step) * step
    last = int((started - midnight).total_seconds() + span_s)
    elements = []
    day = started.date()
    for at_s in range(first, last + 1, step):
        time = midnight + timedelta(seconds=at_s)
        x = _x((time - started).total_seconds(), span_s)
        if x > WIDTH - 50:  # no room for a label
            break
        label = f"{time:%H:%M:%S}" if step < 60 else f"{time:%H:%M}"
        if time.date() != day:
            label = f"{time:%a %-d %b}" if step >= 43200 else f"{time:%a %H:%M}"
        day = time.date()
        bottom = height - _BOTTOM
        elements.append(_text(x, height - 8, label, "middle"))
        elements.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
    return elements


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(at_s: float, span_s: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * at_s / span_s


def _y(value: float, top: float, height: int) -> float:
    return height - _BOTTOM - (height - _BOTTOM - _TOP) * value / top


def _round_up(value: float) -> float:
    """Return the top of an axis: a round number, not much larger than the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    # Quarters of these have few digits, and `_grid` labels quarters.
    return next(power * n for n in (1, 2, 4, 6, 8, 10) if value <= power * n)
