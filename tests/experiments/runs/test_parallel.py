"""Runs in processes of their own end as they would have ended one after the other."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.mle import MLE
from textgen_agents.training.learner import LearnerConfig, TrainingError
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.train import read_outcome, train

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
    train_in_parallel(runs)
    for folder, experiment in runs.items():
        train(experiment, tmp_path / "alone" / folder.name, lambda update, record: None)
        once, again = (
            load_file(run / "model" / "model.safetensors")
            for run in (folder, tmp_path / "alone" / folder.name)
        )
        assert all(torch.equal(again[name], once[name]) for name in once)
    train_in_parallel(runs)  # finished runs have nothing left to do
    assert [read_outcome(folder).best_update for folder in runs]


def test_a_run_that_fails_stops_the_others_and_is_named(tmp_path):
    runs = {
        tmp_path / "long": with_learner(updates=100_000),
        tmp_path / "bad": with_learner(learning_rate=1e30),
    }
    with pytest.raises(TrainingError, match="loss and gradient must be finite"):
        train_in_parallel(runs)
    assert not (tmp_path / "long" / "outcome.json").exists()


ENDLESS = """
from pathlib import Path
import sys
from tests.experiments.runs.test_parallel import with_learner
from textgen_experiments.runs.parallel import train_in_parallel

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train_in_parallel({folder / str(n): with_learner(updates=10**7, seed=n) for n in (0, 1)})
"""


def test_runs_end_when_the_process_that_began_them_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ENDLESS)
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    ) as began:
        last = tmp_path / "1" / "checkpoints" / "last.safetensors"
        wait_for(last.exists)
        began.kill()
    before = time.time()
    wait_for(lambda: time.time() - last.stat().st_mtime > 5)
    assert time.time() - before < 60


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
