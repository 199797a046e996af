"""Ticks and ranges of the axes of charts, which are the same wherever the page is shown."""

import math
from collections.abc import Sequence

from textgen_experiments.reporting.schema import Json

MAX_TICKS = 8
MARGIN = 0.08  # of the range, on each side, for points and their names
NARROWEST = 0.1  # powers of ten of a logarithmic axis, where all figures are nearly one


def log_axis(figures: Sequence[float]) -> Json:
    """Return plotly's settings of a logarithmic axis with room around `figures`, all above 0."""
    if not figures:
        return {"type": "log"}
    low, high = math.log10(min(figures)), math.log10(max(figures))
    room = MARGIN * max(high - low, NARROWEST) + max(0.0, NARROWEST - (high - low)) / 2
    ticks = log_ticks(10 ** (low - room), 10 ** (high + room))
    return {
        "type": "log",
        "range": [low - room, high + room],
        "tickvals": ticks,
        "ticktext": [f"{tick:,.10g}" for tick in ticks],
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks within a range of a logarithmic axis: at least three, and few enough to be read.

    They are multiples of a round step in a range shorter than a power of ten; in longer ones they
    are powers of ten times 1, 2 and 5, or powers of ten alone.

    Args:
        low: begin of the range, above 0.
        high: end of the range, above `low`.
    """
    if high < 10 * low:
        return _multiples(low, high)
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MAX_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / MAX_TICKS)]


def _multiples(low: float, high: float) -> list[float]:
    """Return the multiples, within a range, of the smallest round step that gives few enough."""
    power = math.floor(math.log10((high - low) / MAX_TICKS))
    for step in (digit * 10.0**p for p in (power, power + 1) for digit in (1, 2, 5)):
        numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(numbers) <= MAX_TICKS:
            return [float(f"{number * step:.10g}") for number in numbers]
    raise AssertionError("ten times the smallest step gives fewer ticks than there may be")
