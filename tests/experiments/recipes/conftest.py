"""A copying task and an untrained teacher, in place of the verses of the recipes."""

from dataclasses import replace

import pytest

from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_model, build_task
from textgen_experiments.runs.parallel import raise_failure
from textgen_experiments.runs.train import train

COPY = CopyConfig(num_words=8, max_length=8, num_train=40, num_validation=4, num_test=30)


@pytest.fixture
def copy_teacher(tmp_path):
    """Return the folder of an untrained Transformer of three layers a side, for copying."""
    tokenizer = build_task(COPY, None).tokenizer
    size = TransformerConfig(
        tokenizer.vocab_size,
        width=8,
        num_heads=1,
        feed_forward=8,
        num_encoder_layers=3,
        num_decoder_layers=3,
    )
    save_model(build_model(size, 0), tmp_path / "teacher", tokenizer)
    return tmp_path / "teacher"


@pytest.fixture
def copying(copy_teacher):
    """Return a function that makes an experiment small: copying, a tiny student, few updates."""

    def smaller(experiment: Experiment) -> Experiment:
        learner = experiment.learner
        updates = min(learner.updates, 4)
        return replace(
            experiment,
            task=COPY,
            teacher=copy_teacher,
            student=RecurrentConfig()
            if experiment.student_from_teacher
            else RecurrentConfig(width=8),
            learner=LearnerConfig(
                updates=updates,
                batch_size=4,
                learning_rate=learner.learning_rate,
                evaluate_every=updates,
                seed=learner.seed,
            ),
            train_sources=None,
            precision="float32",
        )

    return smaller


def one_after_the_other(runs, work=train, at_most=None, on_failure=raise_failure):
    """Do what `train_in_parallel` does, in this process; an error is raised in any case."""
    for folder, experiment in runs.items():
        work(experiment, folder, lambda update, record: None)
