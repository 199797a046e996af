import pytest
import torch

from experiments.benchmark_env import BenchmarkEnvOptions, steppers, writers
from textgen_env.tasks.task import encode


def test_all_ways_write_the_same_number_of_tokens(tiny_task, make_table_model):
    examples = encode(tiny_task.train[:12], tiny_task)
    torch.manual_seed(0)
    group = writers(tiny_task, make_table_model(tiny_task, 3), examples, slots=4)
    assert len({work() for work in group.values()}) == 1


def test_all_environments_take_the_same_number_of_steps(tiny_task):
    pytest.importorskip("stable_baselines3")
    group = steppers(tiny_task, encode(tiny_task.train, tiny_task), slots=3, steps=9)
    assert [work() for work in group.values()] == [27] * 3


def test_sentences_fill_the_slots():
    with pytest.raises(ValueError, match=r"multiple of slots \(64\), got 100"):
        BenchmarkEnvOptions(sentences=100)
