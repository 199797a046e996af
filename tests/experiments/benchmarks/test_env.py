"""Tests of `benchmark-env`: all sides do the same work, and ratios are medians."""

import pytest
import torch

from textgen_env.tasks.task import encode
from textgen_experiments.benchmarks.env import (
    BARE_ENGINE,
    FLOOR,
    FULL_BATCHES,
    ROLLOUT,
    SPEED_COMPARISONS,
    STREAM,
    BenchmarkEnvOptions,
    comparison_rows,
    stepping_sides,
    writing_sides,
)


def test_all_ways_write_the_same_number_of_tokens(tiny_task, make_table_model):
    examples = encode(tiny_task.train[:12], tiny_task)
    torch.manual_seed(0)
    sides = writing_sides(tiny_task, make_table_model(tiny_task, 3), examples, slots=4)
    assert len({work() for work in sides.values()}) == 1


def test_all_environments_take_the_same_number_of_steps(tiny_task):
    pytest.importorskip("stable_baselines3")
    sides = stepping_sides(tiny_task, encode(tiny_task.train, tiny_task), slots=3, steps=9)
    assert [work() for work in sides.values()] == [27] * 3


def test_comparisons_are_medians_of_the_rounds_ratios():
    """Check that the second round, in which the machine was busy, changes no ratio."""
    rates = {
        FULL_BATCHES: [100.0, 10.0, 100.0],
        BARE_ENGINE: [160.0, 16.0, 160.0],
        ROLLOUT: [152.0, 16.0, 144.0],
        STREAM: [170.0, 17.0, 170.0],
        FLOOR: [200.0, 20.0, 200.0],
    }
    assert list(comparison_rows(rates)) == [
        ("rollout over the bare engine, decoding.greedy", "", "0.95", "0.95"),
        ("streaming over batches run to their longest", "", "1.70", "1.3"),
        ("decoding.greedy over batches run to their longest", "", "1.60", ""),
        ("fraction of the floor: streaming", "", "0.85", ""),
        ("fraction of the floor: rollout", "", "0.76", ""),
    ]


def test_every_comparison_has_both_sides(tiny_task, make_table_model):
    pytest.importorskip("stable_baselines3")
    examples = encode(tiny_task.train[:4], tiny_task)
    stepping = stepping_sides(tiny_task, examples, slots=1, steps=1)
    writing = writing_sides(tiny_task, make_table_model(tiny_task, 3), examples, slots=4)
    for each in SPEED_COMPARISONS:
        assert any({each.side, each.base} <= sides.keys() for sides in (stepping, writing))


def test_sentences_fill_the_slots():
    with pytest.raises(ValueError, match=r"multiple of slots \(64\), got 100"):
        BenchmarkEnvOptions(sentences=100)
