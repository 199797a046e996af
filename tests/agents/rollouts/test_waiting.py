"""Steps of a rollout, which give an accelerator work and do not wait for it."""

import pytest
import torch

from tests.support.waiting import NoWaiting, set_sync_is_free
from textgen_agents.rollouts.behaviors import (
    BelowThreshold,
    Gated,
    InTopK,
    OneWaySwitch,
    token_mask,
    token_sampler,
)
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoding import sync_interval
from textgen_env.generation.sampling import Sampling

ROWS = 4
GATES = {
    "mask": lambda context: token_mask(context, 0.5),
    "skd": lambda context: InTopK(3),
    "switch": lambda context: BelowThreshold(torch.full((context.env.max_steps,), 0.1)),
    "adaswitch": lambda context: OneWaySwitch((ROWS, 2), 1.1, context.env.device),
}


class WatchedFromThen:
    """Behavior that has everything watched once it was asked for the first time.

    A rollout may wait before its first step, to cut padding off.
    """

    def __init__(self, behavior):
        self.behavior, self.calls, self.mode = behavior, 0, NoWaiting()

    def __call__(self, view):
        if not self.calls:
            self.mode.__enter__()
        self.calls += 1
        return self.behavior(view)


@pytest.mark.parametrize("sampling", [None, Sampling(), Sampling(top_k=3)])
@pytest.mark.parametrize("gate", GATES)
def test_no_step_waits_whoever_writes(
    tiny_task, tiny_teacher, tiny_student, make_env, monkeypatch, gate, sampling
):
    """Student, behavior, environment and expert, up to the step that looks for finished rows."""
    set_sync_is_free(monkeypatch, False)
    env = make_env(tiny_task, ROWS, NeuralExpert(tiny_teacher))
    assert env.max_steps < 8
    context = Context(torch.arange(ROWS), env, tiny_student)
    of_expert = None if gate == "mask" else token_sampler(sampling, context)
    behavior = Gated(GATES[gate](context), token_sampler(sampling, context), of_expert)
    watched = WatchedFromThen(behavior)
    try:
        rollout(context, watched, record_expert_logits=of_expert is not None)
    finally:
        watched.mode.__exit__(None, None, None)
    assert watched.calls == env.max_steps


def test_the_host_looks_at_an_accelerator_once_in_eight_steps():
    assert sync_interval(torch.device("cpu")) == 1
    assert sync_interval(torch.device("cuda")) == 8
