"""What a run prepares once and reads back."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from agents.seqkd import SeqKD
from experiments.configs import Experiment
from experiments.train import _prepare
from textgen_env.expert import NeuralExpert, NoExpert
from textgen_env.tasks.task import Pair
from textgen_env.types import tensors


@pytest.mark.parametrize("two_views", [False, True])
def test_what_was_prepared_is_read_back(tiny_task, tiny_teacher, tmp_path, two_views):
    path, experiment = tmp_path / "prepared.safetensors", Experiment(agent=SeqKD(beam_size=2))
    pairs = [
        Pair(pair.source, pair.reference, f"{pair.source} {pair.source}" if two_views else None)
        for pair in tiny_task.train
    ]
    task, expert = replace(tiny_task, train=pairs), NeuralExpert(tiny_teacher)
    made, asked = _prepare(experiment, task, expert, path)
    read, asked_then = _prepare(experiment, task, NoExpert(), path)
    assert asked == asked_then
    for name, tensor in tensors(made).items():
        assert torch.equal(getattr(read, name), tensor), name
    views = {"source", "expert_source"} if two_views else {"source"}
    assert set(load_file(path)) == set(tensors(read)) == {"reference"} | views
