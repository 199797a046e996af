from itertools import islice

import pytest
import torch

from textgen_agents.rollouts.batches import WINDOW, batch_indices, generator_for, seed_of

LENGTHS = torch.arange(100) % 13 + 1


def first(count, start=0, seed=0, batch_size=6):
    return torch.stack(list(islice(batch_indices(LENGTHS, batch_size, seed, start), count)))


@pytest.mark.parametrize("start", [1, 5, WINDOW - 1, WINDOW, 3 * WINDOW + 2])
def test_starting_later_gives_what_would_have_come(start):
    assert torch.equal(first(start + 4)[start:], first(4, start))


def test_every_example_is_drawn_once_before_any_is_drawn_twice():
    batches = first(WINDOW * 25)  # 48 epochs
    counts = torch.bincount(batches.flatten(), minlength=100)
    assert counts.min() == counts.max() == WINDOW * 25 * 6 // 100


def test_another_seed_gives_another_order():
    assert not torch.equal(first(WINDOW), first(WINDOW, seed=1))


def test_examples_of_a_batch_are_of_similar_length():
    spreads = LENGTHS[first(WINDOW)].float().std(1)
    assert spreads.mean() < LENGTHS.float().std() / 4


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    first(3)
    generator_for(0, "collect", 1)
    assert torch.equal(before, torch.get_rng_state())


def test_each_use_of_randomness_has_its_own_seed():
    seeds = {seed_of(s, p, c) for s in range(5) for p in ("a", "b") for c in range(50)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_several_texts_of_a_source_stand_side_by_side_in_as_many_fewer_sources():
    lengths = torch.arange(50)
    single = batch_indices(lengths, 4, seed=3)
    several = batch_indices(lengths, 12, seed=3, texts_per_source=3)
    for _ in range(40):
        assert torch.equal(next(several), next(single).repeat_interleave(3))
    resumed = batch_indices(lengths, 12, seed=3, first=40, texts_per_source=3)
    assert torch.equal(next(resumed), next(several))
