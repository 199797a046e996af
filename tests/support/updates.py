"""Single updates of agents, for their tests and those of the learner."""

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from textgen_agents import AGENTS
from textgen_agents.agent import Agent, CompanionAgent
from textgen_agents.every_expert import KnowledgeAugmentation
from textgen_agents.okd import OKD
from textgen_agents.prompt_internalization import GenPI
from textgen_agents.rollouts.context import Context
from textgen_agents.skd import SKD
from textgen_agents.switch import AdaSwitch, Switch
from textgen_agents.training.checkpoint import save_checkpoint
from textgen_agents.training.learner import LearnerConfig
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models.ensemble import Ensemble

ROWS = 12
FITTED = {
    "skd": SKD(k=3),  # to a vocabulary of ten tokens
    "switch": Switch(threshold=0.3),  # which the others find by writing the first batch anew
    "adaswitch": AdaSwitch(factor=2.0),
    "genpi": GenPI(prompt_weight=0.0),  # for a teacher that reads no prompt
    "every_expert_ka": KnowledgeAugmentation(left_out=0),  # for a mixture of one
    "okd": OKD(rank=2, learns_temperature=True),  # which a table of logits has, too
}
ACCOMPANIED = {name for name, kind in AGENTS.items() if issubclass(kind, CompanionAgent)}
OF_MIXTURES = {name for name, kind in AGENTS.items() if kind.needs_mixture}
ON_HIDDEN_STATES = {"dskd", "dskd_cma", "every_expert_ka", "every_expert_sar"}
CONFIG = LearnerConfig(updates=12, batch_size=6, learning_rate=0.01, warmup=3, evaluate_every=4)


def make(name):
    """Return the agent of that name, fit for the tests' tasks."""
    return FITTED.get(name) or AGENTS[name]()


def expert_for(agent, model):
    """Return `model` as a teacher that `agent` takes: as a mixture of two where it must be one."""
    return NeuralExpert(Ensemble((model, model)) if agent.needs_mixture else model)


def context_of(env, student, indices=None, *, progress=0.0, seed=0, buffer=None):
    """Return a context of the first examples, or of those at `indices`."""
    indices = torch.arange(env.num_envs) if indices is None else indices
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return Context(indices, env, student, progress, generator, buffer)


def collect_batch(agent, env, student, progress=0.5, seed=0):
    """Return what `agent` collects for examples that depend on the seed alone."""
    generator, buffer = torch.Generator().manual_seed(seed), agent.make_buffer(env)
    indices = draw(env, generator)
    return agent.collect(Context(indices, env, student, progress, generator, buffer))


def collect(agent, env, student, progress=0.5, seed=0):
    """Return the trajectories of `collect_batch`."""
    return collect_batch(agent, env, student, progress, seed).trajectories


def draw(env, generator):
    """Return an example for each slot."""
    return torch.randint(len(env.examples), (env.num_envs,), generator=generator)


def learn(agent, env, student):
    """Return the trajectories of an update, the loss, and the gradient of each parameter."""
    batch = collect_batch(agent, env, student)
    return batch.trajectories, *loss_and_gradients(agent, batch, student, batch.expert(env.expert))


def loss_and_gradients(agent, batch, student, expert):
    """Return the loss on `batch`, labelled by `expert`, and the gradient of each parameter."""
    student.zero_grad()
    loss = agent.loss(batch, student, expert)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    return loss.detach(), gradients


def assert_learn_the_same(one, other, env, student):
    """Assert equal losses and equal gradients from the same seed."""
    _, loss, gradients = learn(one, env, student)
    _, other_loss, other_gradients = learn(other, env, student)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradients, other_gradients)


class StoppedError(Exception):
    """Stands in for whatever stops a run."""


def stop_at_second_checkpoint(monkeypatch, begin):
    """Begin a run that stops in place of its second checkpoint."""
    actions = iter((save_checkpoint,))

    def stop(*_):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(
            "textgen_agents.training.learner.save_checkpoint",
            lambda *args: next(actions, stop)(*args),
        )
        with pytest.raises(StoppedError):
            begin()


def assert_runs_end_alike(whole, stopped):
    """Check that two runs have the same model and last checkpoint, and return the latter."""
    for file in ("model/model.safetensors", "checkpoints/last.safetensors"):
        first, second = load_file(whole / file), load_file(stopped / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file
    return first


class Log(dict):
    """Log that keeps the figures of updates and evaluations, and may stop the run."""

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
    """Return the gradients of the first update and its figures."""
    seen, log = [], Log(stop_after=1)
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in learner.student.parameters())
    )
    with pytest.raises(StoppedError):
        learner.train(no_score, log)
    return seen, log[1]


@dataclass(frozen=True)
class Sorted(Agent):
    """Agent that learns as `inner` does, from rows sorted by length."""

    inner: Agent

    def collect(self, context):
        examples = context.env.examples
        lengths = (examples.reference != context.env.special.pad).sum(1)
        count = len(context.indices)
        spread = lengths.argsort()[:: len(lengths) // count][:count]
        return self.inner.collect(replace(context, indices=spread))

    def loss(self, batch, student, expert) -> Tensor:
        return self.inner.loss(batch, student, expert)
