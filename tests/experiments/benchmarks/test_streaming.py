"""Streaming rollouts write what batches write, whatever the number of slots."""

import pytest
import torch

from tests.agents.rollouts.test_rollout import counted_rows, mixture, text_rows, write
from textgen_env.envs import continuous_batching
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models import cache_ops
from textgen_env.types import Writer
from textgen_experiments.benchmarks import streaming
from textgen_experiments.benchmarks.streaming import stream


@pytest.fixture
def table_model(tiny_task, make_table_model):
    """Return a model that ends some of its texts early, some late and some never."""
    return make_table_model(tiny_task, 3)


def streamed(task, student, indices, slots, by_student=True):
    """Return trajectories of `indices`, written in `slots` slots."""
    env = TextGenVectorEnv(task, slots, reward=no_reward)
    who = torch.full((slots,), by_student)
    behavior = mixture(env, who)
    return stream(env, behavior, indices, student)


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("kind", ["table", "neural"])
def test_a_stream_writes_what_a_batch_writes(
    tiny_task, make_env, table_model, make_student, slots, kind
):
    student = table_model if kind == "table" else make_student(5)
    whole, indices = write(make_env(tiny_task, 40), student, [True] * 40)
    trajectories = streamed(tiny_task, student, indices, slots)
    for name in ("source", "reference"):
        assert torch.equal(getattr(trajectories, name), getattr(whole, name)), name
    assert counted_rows(trajectories) == counted_rows(whole)
    assert trajectories.writer[trajectories.mask].eq(Writer.STUDENT).all()
    assert trajectories.actions.shape[1] == trajectories.mask.sum(1).max()


def test_a_streams_neighbors_do_not_matter(tiny_task, tiny_teacher):
    some = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    forward, backward = (
        counted_rows(streamed(tiny_task, tiny_teacher, indices, 3))
        for indices in (some, some.flip(0))
    )
    assert forward == backward[::-1]


@pytest.mark.parametrize("slots", [1, 5])
def test_a_stream_of_the_data_is_the_references(tiny_task, make_env, table_model, slots):
    env, indices = make_env(tiny_task, 1), torch.tensor([7, 7, 3, 60, 0, 21, 9, 8])
    trajectories = streamed(tiny_task, table_model, indices, slots, by_student=False)
    assert counted_rows(trajectories) == text_rows(env.examples.reference[indices])
    assert trajectories.writer[trajectories.mask].eq(Writer.DATA).all()


def test_rare_synchronization_does_not_change_a_stream(tiny_task, table_model, monkeypatch):
    indices = torch.arange(20)
    often = streamed(tiny_task, table_model, indices, 3)
    monkeypatch.setattr(streaming, "sync_interval", lambda device: 7)
    monkeypatch.setattr(continuous_batching, "host_sync_is_free", lambda device: False)
    monkeypatch.setattr(cache_ops, "host_sync_is_free", lambda device: False)
    assert counted_rows(streamed(tiny_task, table_model, indices, 3)) == counted_rows(often)
