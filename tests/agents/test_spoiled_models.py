"""Tests that logits which are not finite are one error, which names whose they are."""

import math

import pytest
import torch

from tests.support.updates import make
from textgen_agents import AGENTS
from textgen_agents.agent import LearnsFrom
from textgen_agents.training.learner import TrainingError
from textgen_env.generation.decoding import LogitsError

ASKING = [name for name, kind in AGENTS.items() if kind.learns_from is not LearnsFrom.REFERENCES]


def run(agent, make_learner):
    """Make the first updates of `agent`, from the data that it prepares."""
    learner = make_learner(agent)
    env = learner.env
    agent.prepare(env.examples, env.expert, env.max_steps)
    learner.train(lambda student: 0.0, lambda update, record: None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ASKING)
def test_a_spoiled_teacher_is_named(name, value, make_learner, tiny_teacher):
    with torch.no_grad():
        tiny_teacher.decoder_norm.bias[3] = value
    with pytest.raises((LogitsError, TrainingError), match="logits of the teacher must be finite"):
        run(make(name), make_learner)


@pytest.mark.parametrize("name", list(AGENTS))
def test_a_spoiled_student_is_named(name, make_learner):
    learner = make_learner(make(name))
    with torch.no_grad():
        next(iter(learner.student.parameters()))[4] = math.nan
    with pytest.raises((LogitsError, TrainingError), match="logits of the student must be finite"):
        learner.train(lambda student: 0.0, lambda update, record: None)
