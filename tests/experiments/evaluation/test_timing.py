"""Order of the rounds, and ratios by round."""

import pytest

from textgen_experiments.evaluation import timing
from textgen_experiments.evaluation.timing import interleaved_rates, rates_and_ratios


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by a list with the current second, to be increased."""
    time = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: time[0])
    return time


def taking(clock, seconds, log=None, name=None):
    """Return a workload of 8 steps that takes these seconds, one number for each round."""
    left = iter(seconds)

    def work():
        clock[0] += next(left)
        if log is not None:
            log.append(name)
        return 8

    return work


def test_a_ratio_is_taken_round_by_round(clock):
    group = {"first": taking(clock, [9, 1, 4, 2]), "second": taking(clock, [9, 2, 8, 1])}
    assert rates_and_ratios(group, rounds=3) == {"first": (4.0, 1.0), "second": (4.0, 0.5)}


def test_the_first_round_is_not_counted(clock):
    rates = interleaved_rates(
        {"one": taking(clock, [100, 1, 2]), "two": taking(clock, [100, 4, 8])}, 2
    )
    assert rates == {"one": [8, 4], "two": [2, 1]}


def test_every_other_round_goes_backwards(clock):
    log = []
    group = {name: taking(clock, [1] * 5, log, name) for name in "abc"}
    interleaved_rates(group, rounds=4)
    assert "".join(log) == "cbaabccbaabccba"
