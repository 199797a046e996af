"""Logarithmic axes: enough ticks in short ranges, few enough in long ones."""

import math
import random

import pytest

from textgen_experiments.reporting.axes import MAX_TICKS, log_axis, log_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 2.4, [1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.4]),
        (2.1, 2.31, [2.1, 2.15, 2.2, 2.25, 2.3]),
        (0.013, 0.0131, [0.013, 0.01302, 0.01304, 0.01306, 0.01308, 0.0131]),
        (4000, 9600, [4000, 5000, 6000, 7000, 8000, 9000]),
        (1, 30, [1, 2, 5, 10, 20]),
        (1, 1000, [1, 10, 100, 1000]),
        (1, 1e12, [1, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert log_ticks(low, high * (1 + 1e-9)) == pytest.approx(ticks)


def test_every_range_has_some_ticks_and_not_many():
    draw = random.Random(0)
    for _ in range(2000):
        low = 10 ** draw.uniform(-4, 6)
        high = low * 10 ** draw.uniform(0.001, 19)
        ticks = log_ticks(low, high)
        assert 3 <= len(ticks) <= MAX_TICKS
        assert ticks == sorted(set(ticks))
        assert low <= ticks[0]
        assert ticks[-1] <= high


@pytest.mark.parametrize("figures", [[3.0], [1.0, 1.0], [1.0, 2.4], [0.02, 700.0]])
def test_all_figures_are_within_the_range_with_room_for_their_names(figures):
    axis = log_axis(figures)
    low, high = axis["range"]
    assert low + 0.005 < math.log10(min(figures))
    assert math.log10(max(figures)) < high - 0.005
    assert len(axis["ticktext"]) == len(axis["tickvals"]) >= 3
    assert [float(text.replace(",", "")) for text in axis["ticktext"]] == axis["tickvals"]


def test_without_figures_the_axis_is_plotlys():
    assert log_axis([]) == {"type": "log"}
