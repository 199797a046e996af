import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode

SMALL = CopyConfig(
    num_words=3, min_length=2, max_length=4, num_train=20, num_validation=9, num_test=7
)


def all_pairs(task):
    return [*task.train, *task.validation, *task.test]


def test_reference_repeats_source():
    assert all(pair.source == pair.reference for pair in all_pairs(copy_task()))


def test_sizes_and_limits_are_as_configured():
    task = copy_task(SMALL)
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 9, 7)
    assert task.max_source_length == task.max_target_length == 5
    assert task.tokenizer.vocab_size == 6
    assert not task.dropped


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_sources_are_distinct_and_within_limits(seed, num_words, min_length, more):
    possible = sum(num_words**length for length in range(min_length, min_length + more + 1))
    if possible < 3:
        return
    config = CopyConfig(num_words, min_length, min_length + more, possible - 2, 1, 1, seed)
    sources = [pair.source.split() for pair in all_pairs(copy_task(config))]
    assert len({tuple(source) for source in sources}) == possible  # every source that there is
    assert {len(source) for source in sources} <= set(range(min_length, min_length + more + 1))
    assert {word for source in sources for word in source} <= {f"w{n}" for n in range(num_words)}


def test_every_length_is_in_every_split():
    task = copy_task(CopyConfig(num_words=10, min_length=1, max_length=3, num_train=700))
    assert all(
        {len(pair.source.split()) for pair in split} == {1, 2, 3}
        for split in (task.train, task.validation, task.test)
    )


def test_seed_decides():
    assert all_pairs(copy_task(SMALL)) == all_pairs(copy_task(SMALL))
    assert all_pairs(copy_task()) != all_pairs(copy_task(CopyConfig(seed=1)))


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    copy_task()
    assert torch.rand(1) == expected


def test_encoded_source_is_encoded_reference():
    task = copy_task(SMALL)
    examples = encode(task.train, task)
    assert torch.equal(examples.source, examples.reference)
    assert examples.source.shape[1] <= task.max_source_length


@pytest.mark.parametrize(
    "name", ["num_words", "min_length", "num_train", "num_validation", "num_test"]
)
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CopyConfig(**{name: 0})


def test_lengths_must_be_ordered():
    with pytest.raises(ValueError, match="max_length must be at least min_length = 3, got 2"):
        CopyConfig(max_length=2)


def test_more_pairs_than_sources():
    with pytest.raises(ValueError, match=r"must be at most 12, .*, got 13: raise num_words"):
        CopyConfig(
            num_words=3, min_length=1, max_length=2, num_train=11, num_validation=1, num_test=1
        )
