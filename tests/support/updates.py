"""What an update sees of an agent and what it does, for the tests of agents and of the learner."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from textgen_agents import AGENTS
from textgen_agents.agent import Agent
from textgen_agents.skd import SKD
from textgen_agents.training.learner import LearnerConfig
from textgen_env.types import Trajectories

ROWS = 12
FITTED = {"skd": SKD(k=3)}  # to a vocabulary of ten tokens
CONFIG = LearnerConfig(updates=12, batch_size=6, learning_rate=0.01, warmup=3, evaluate_every=4)


def make(name):
    """The agent of that name, fit for the tests' tasks."""
    return FITTED.get(name) or AGENTS[name]()


def collect(agent, env, student, progress=0.5, seed=0):
    """Trajectories of examples that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return agent.collect(draw(env, generator), env, student, progress, generator)


def experience(agent, env, student, progress=0.5, seed=0):
    """The same with the expert's answers as far as they are known."""
    generator, buffer = torch.Generator().manual_seed(seed), agent.make_buffer(env)
    indices = draw(env, generator)
    return agent.experience(indices, env, student, progress, generator, buffer)


def draw(env, generator):
    """An example for each slot."""
    return torch.randint(len(env.examples), (env.num_envs,), generator=generator)


def learn(agent, env, student):
    """What an update sees: the trajectories, the loss and the gradient of each parameter."""
    seen = experience(agent, env, student)
    return seen.trajectories, *loss_and_gradients(agent, seen, student, seen.expert(env.expert))


def loss_and_gradients(agent, seen, student, expert):
    """The loss on what was seen, labelled by `expert`, and the gradient of each parameter."""
    student.zero_grad()
    loss = agent.loss(seen.trajectories, student, expert)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    return loss.detach(), gradients


def assert_learn_the_same(one, other, env, student):
    """Equal losses and equal gradients from the same seed."""
    _, loss, gradients = learn(one, env, student)
    _, other_loss, other_gradients = learn(other, env, student)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradients, other_gradients)


class StoppedError(Exception):
    """Stands for whatever stops a run."""


class Log(dict):
    """Keeps the figures of updates and of evaluations, and may stop the run after an update."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after
        self.validation = {}

    def __call__(self, update, record):
        kept = self.validation if "bleu" in record else self
        assert update not in kept, "an update is logged once"
        kept[update] = dict(record)
        if update == self.stop_after:
            raise StoppedError


def no_score(model):
    del model
    return 0.0


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def gradients_of_an_update(learner):
    """What the first update hands to the optimizer, and its figures."""
    seen, log = [], Log(stop_after=1)
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in learner.student.parameters())
    )
    with pytest.raises(StoppedError):
        learner.train(no_score, log)
    return seen, log[1]


@dataclass(frozen=True)
class Sorted(Agent):
    """Learns as `inner` does, from rows sorted by length: parts of a batch differ in length."""

    inner: Agent

    def collect(self, indices, env, student, progress, generator) -> Trajectories:
        lengths = (env.examples.reference != env.special.pad).sum(1)
        spread = lengths.argsort()[:: len(lengths) // len(indices)][: len(indices)]
        return self.inner.collect(spread, env, student, progress, generator)

    def loss(self, trajectories, student, expert) -> Tensor:
        return self.inner.loss(trajectories, student, expert)
