"""Runs in processes of their own end as they would have ended one after the other."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from agents.learner import LearnerConfig, TrainingError
from agents.mle import MLE
from experiments.configs import Experiment
from experiments.side_by_side import train_side_by_side
from experiments.train import read_outcome, train
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.tasks.copy import CopyConfig

EXPERIMENT = Experiment(
    task=CopyConfig(num_words=8, max_length=4, num_train=32, num_validation=4, num_test=4),
    teacher=None,
    student=RecurrentConfig(width=16),
    agent=MLE(),
    learner=LearnerConfig(updates=6, batch_size=4, evaluate_every=3),
    precision="float32",
)


def with_learner(**settings):
    return replace(EXPERIMENT, learner=replace(EXPERIMENT.learner, **settings))


def test_they_end_as_they_would_have_alone(tmp_path):
    torch.set_num_threads(1)
    runs = {tmp_path / str(seed): with_learner(seed=seed) for seed in range(3)}
    train_side_by_side(runs)
    for folder, experiment in runs.items():
        train(experiment, tmp_path / "alone" / folder.name, lambda update, record: None)
        once, again = (
            load_file(run / "model" / "model.safetensors")
            for run in (folder, tmp_path / "alone" / folder.name)
        )
        assert all(torch.equal(again[name], once[name]) for name in once)
    train_side_by_side(runs)  # finished runs have nothing left to do
    assert [read_outcome(folder).best_update for folder in runs]


def test_a_run_that_fails_stops_the_others_and_is_named(tmp_path):
    runs = {
        tmp_path / "long": with_learner(updates=100_000),
        tmp_path / "bad": with_learner(learning_rate=1e30),
    }
    with pytest.raises(TrainingError, match="loss and gradient must be finite"):
        train_side_by_side(runs)
    assert not (tmp_path / "long" / "outcome.json").exists()
