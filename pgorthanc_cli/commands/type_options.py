"""Types of option values: lengths of time, sizes, numbers."""

from __future__ import annotations

import re
from typing import Any

import click

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def _measure(text: str, units: dict[str, int]) -> float | None:
    """Return a number with its unit as a multiple of the smallest one; None if it is neither."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    return float(match[1]) * units[match[2]] if match and match[2] in units else None


class _Measure(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.3
    """A number with a unit.

    Attributes:
        units: What one of each unit is worth.
        examples: How values are written.
        suffix: What may follow, such as `/s`.
        positive: Whether 0 is refused.
    """

    def __init__(
        self, name: str, units: dict[str, int], examples: str, *, suffix: str = "", positive: bool = False
    ) -> None:
        self.name = name
        self.units = units
        self.examples = examples
        self.suffix = suffix
        self.positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value in seconds, bytes or pieces."""
        text = str(value)
        number = _measure(text.removesuffix(self.suffix), self.units)
        if number is None:
            self.fail(f'"{text}" is not a {self.name}, such as {self.examples}', param, ctx)
        if self.positive and not number:
            self.fail(f'"{text}" must be above 0', param, ctx)
        return number


class _Times(click.ParamType):  # type: ignore[type-arg]
    """Lengths of time, separated by commas."""

    name = "times"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the seconds of each, ascending."""
        texts = str(value).split(",")
        return tuple(sorted({POSITIVE_TIME.convert(text, param, ctx) for text in texts}))


class Number(click.ParamType):  # type: ignore[type-arg]
    """A whole number within limits."""

    name = "number"

    def __init__(self, what: str, lowest: int, highest: int | None = None) -> None:
        self.what = what
        self.lowest = lowest
        self.highest = highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        text = str(value)
        # Stricter than int(), which also reads 1_000 and digits of other scripts.
        number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
        if number < self.lowest or (self.highest is not None and number > self.highest):
            limits = f"{self.lowest} to {self.highest}" if self.highest else f"{self.lowest} or more"
            self.fail(f'"{text}" is not {self.what} ({limits})', param, ctx)
        return number


TIME = _Measure("length of time", _SECONDS, "90, 90s, 15m, 2h or 30d")
POSITIVE_TIME = _Measure("length of time", _SECONDS, "90, 90s, 15m, 2h or 30d", positive=True)
TIMES = _Times()
SIZE = _Measure("size", _BYTES, "500kB, 64MB or 10GB")
SIZE_RATE = _Measure("rate", _BYTES, "500kB/s or 50MB/s", suffix="/s", positive=True)
FILE_RATE = _Measure("rate", {"": 1}, "500 or 500/s", suffix="/s", positive=True)
PORT = Number("a port number", 1, 65535)
COUNT = Number("a number", 1)
