import math

import pytest

from textgen_agents.rollouts.schedules import (
    Constant,
    Exponential,
    Indicator,
    Linear,
    ReverseSigmoid,
)


def test_all_start_with_data_alone():
    assert Linear()(0.0) == Exponential()(0.0) == Constant()(0.0) == Indicator()(0.0) == 1.0
    assert ReverseSigmoid()(0.0) == pytest.approx(1.0, abs=1e-4)


def test_linear_ends_at_its_final_value():
    assert Linear(final=0.25)(1.0) == 0.25
    assert Linear(final=0.0)(0.5) == 0.5


def test_exponential_ends_at_one_over_its_base():
    assert Exponential(base=200.0)(1.0) == pytest.approx(0.005)
    assert Exponential(base=4.0)(0.5) == pytest.approx(0.5)


def test_base_200_makes_four_fifths_of_the_prefixes_the_students():
    share = sum(1 - Exponential(base=200.0)(step / 10000) for step in range(10000)) / 10000
    assert share == pytest.approx(0.81, abs=0.005)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 0.55, 1.0])
def test_reverse_sigmoid_is_the_papers(progress):
    expected = 1 / (1 + math.exp(20 * (progress - 0.5)))
    assert ReverseSigmoid()(progress) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.4, 0.5, 1.0])
def test_reverse_sigmoid_may_keep_a_share(progress):
    expected = 0.3 + 0.7 / (1 + math.exp(9 * (progress - 0.5)))
    assert ReverseSigmoid(9.0, final=0.3)(progress) == pytest.approx(expected, rel=1e-6)


def test_reverse_sigmoid_may_be_a_step():
    step = ReverseSigmoid(steepness=1e9)
    assert [step(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


def test_the_indicator_is_1_in_its_first_share_alone():
    assert [Indicator(until=0.25)(progress) for progress in (0.0, 0.249, 0.25, 1.0)] == [1, 1, 0, 0]
    assert Indicator(until=0.0)(0.0) == 0


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Constant(value=1.5), "value"),
        (lambda: Linear(final=-0.1), "final"),
        (lambda: Exponential(base=0.5), "base"),
        (lambda: ReverseSigmoid(steepness=0.0), "steepness"),
        (lambda: ReverseSigmoid(final=1.5), "final"),
        (lambda: Indicator(until=1.5), "until"),
    ],
)
def test_a_beta_outside_its_range_is_refused(make, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        make()
