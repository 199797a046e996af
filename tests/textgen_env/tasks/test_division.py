"""Remainders with the steps of long division, and without."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textgen_env.tasks.division import DivisionConfig, answer_of, division_task, trace_of
from textgen_env.tasks.task import encode


def all_pairs(task):
    return [*task.train, *task.validation, *task.test]


def test_a_trace_by_hand():
    assert trace_of(94, 4) == "0 9 / 4 2 1 ; 1 4 / 4 3 2 = 2"
    assert trace_of(105, 5) == "0 1 / 5 0 1 ; 1 0 / 5 2 0 ; 0 5 / 5 1 0 = 0"


@given(st.integers(0, 10**9), st.integers(2, 9))
def test_the_steps_make_up_quotient_and_remainder(dividend, divisor):
    steps, answer = trace_of(dividend, divisor).split(" = ")
    quotient = int("".join(step.split()[4] for step in steps.split(" ; ")))
    assert (quotient, int(answer)) == divmod(dividend, divisor)
    for step in steps.split(" ; "):
        rest, digit, _, by, times, new = step.split()
        assert divmod(10 * int(rest) + int(digit), int(by)) == (int(times), int(new))
    assert int(by) == divisor


def test_the_same_numbers_with_traces_and_without():
    traced, bare = (all_pairs(division_task(DivisionConfig(traces=t))) for t in (True, False))
    assert [pair.source for pair in traced] == [pair.source for pair in bare]
    assert [answer_of(pair.reference) for pair in traced] == [pair.reference for pair in bare]
    for pair in bare:
        dividend, divisor = pair.source.replace(" ", "").split("%")
        assert int(pair.reference) == int(dividend) % int(divisor)
    assert len({pair.source.split(" %")[0] for pair in bare}) == len(bare), "no dividend twice"


def test_sizes_and_limits_are_as_configured():
    config = DivisionConfig(min_digits=2, max_digits=3, num_train=20, num_validation=9, num_test=7)
    for traces in (True, False):
        task = division_task(replace(config, traces=traces))
        assert (len(task.train), len(task.validation), len(task.test)) == (20, 9, 7)
        encoded = encode(all_pairs(task), task)
        assert encoded.source.shape[1] == task.max_source_length == 6
        assert encoded.reference.shape[1] == task.max_target_length == (23 if traces else 2)
    assert all_pairs(division_task(config)) != all_pairs(division_task(replace(config, seed=1)))
    assert {pair.source.split()[-1] for pair in all_pairs(task)} == {"2", "3", "4"}


def test_the_last_word_is_the_answer():
    assert answer_of("0 9 / 4 2 1 = 1") == "1"
    assert answer_of("") == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"largest_divisor": 10}, "largest_divisor must be at most 9, a single digit, got 10"),
        ({"largest_divisor": 1}, "largest_divisor must be at least 2"),
        ({"min_digits": 6}, "max_digits must be at least min_digits = 6, got 5"),
        ({"min_digits": 1}, r"num_train .* at most 9, the dividends of min_digits digits, got 500"),
        ({"num_test": 0}, "num_test must be at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DivisionConfig(**settings)
