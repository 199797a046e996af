"""Modules beside the student: trained by its optimizer, resumed with it, and not part of it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.updates import (
    CONFIG,
    Log,
    StoppedError,
    assert_same_bits,
    no_score,
    stop_at_second_checkpoint,
    weights_of,
)
from textgen_agents.agent import CompanionAgent, first_companions
from textgen_agents.losses.divergences import cross_entropy
from textgen_agents.losses.objectives import mean_over_actions
from textgen_agents.mle import MLE
from textgen_agents.rollouts.rollout import data_rollout
from textgen_agents.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Shifted(CompanionAgent):
    """Cross-entropy of the student's logits plus a trained shift of each token's logit."""

    companion_rate_factor: ClassVar[float] = 3.0
    student_writes = False

    def companions(self, student, expert):
        return nn.ModuleDict({"shift": nn.Linear(1, student.vocab_size)})

    def collect(self, context):
        return data_rollout(context)

    def joint_loss(self, batch, student, expert, companions):
        states = batch.trajectories
        logits = student.sequence_logits(states.source, states.actions)
        shifted = logits + companions["shift"](torch.ones(1))
        return mean_over_actions(cross_entropy(shifted, states.actions), states)


def test_they_are_trained_by_the_same_optimizer_at_a_rate_of_their_own(make_learner):
    learner, log = make_learner(Shifted()), Log()
    first = weights_of(learner.companions)
    rates = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: rates.append([group["lr"] for group in learner.optimizer.param_groups])
    )
    learner.train(no_score, log)
    last = weights_of(learner.companions)
    assert all(not torch.equal(last[name], first[name]) for name in first)
    logged = [record["learning_rate"] for record in log.values()]
    assert rates == [[rate, 3.0 * rate] for rate in logged]


def test_the_loss_of_an_agent_is_that_of_the_first_update(make_learner, tiny_teacher):
    agent, learner = Shifted(), make_learner(Shifted())
    again = first_companions(agent, learner.student, learner.env.expert)
    assert_same_bits(weights_of(again), weights_of(learner.companions))
    batch = next(learner._batches(next(learner.rollouts())))
    expected = agent.loss(batch, learner.student, learner.env.expert)
    found, _, _ = learner.gradients.add(agent, batch, 0)
    torch.testing.assert_close(found, expected.detach())


def test_making_them_draws_nothing_from_the_runs_own_randomness(tiny_student, make_learner):
    state = torch.random.get_rng_state()
    first_companions(Shifted(), tiny_student, None)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_gradients_do_not_depend_on_the_number_of_parts_and_are_clipped_together(make_learner):
    found = []
    for parts in (1, 2, 4):
        config = replace(CONFIG, batch_size=8, clip=0.01, accumulate=parts)
        learner, seen = make_learner(Shifted(), config, str(parts)), []
        learner.optimizer.register_step_pre_hook(
            lambda *_, seen=seen, learner=learner: seen.extend(
                parameter.grad.clone()
                for module in (learner.student, learner.companions)
                for parameter in module.parameters()
            )
        )
        with pytest.raises(StoppedError):
            learner.train(no_score, Log(stop_after=1))
        found.append(seen)
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-4, atol=1e-7)
    norm = torch.stack([gradient.norm() for gradient in found[0]]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_stopped_run_continues_to_the_same_weights(make_learner, monkeypatch, precision):
    config = replace(CONFIG, ema=0.7)
    whole = make_learner(Shifted(), config, "whole", precision=precision)
    whole.train(no_score, Log())

    def begin():
        make_learner(Shifted(), config, "stopped", precision=precision).train(no_score, Log())

    stop_at_second_checkpoint(monkeypatch, begin)
    resumed = make_learner(Shifted(), config, "stopped", precision=precision, seed=7)
    assert resumed.counters.update == CONFIG.evaluate_every
    resumed.train(no_score, Log())
    assert_same_bits(weights_of(resumed.student), weights_of(whole.student))
    assert_same_bits(weights_of(resumed.companions), weights_of(whole.companions))
    assert_same_bits(load_file(resumed.last), load_file(whole.last))


def test_they_are_in_the_checkpoint_and_in_no_model(make_learner):
    learner = make_learner(Shifted())
    learner.train(no_score, Log())
    names = {name for name in load_file(learner.last) if name.startswith("companions.")}
    assert names == {"companions.shift.weight", "companions.shift.bias"}
    assert load_file(learner.best).keys() == learner.student.state_dict().keys()
    assert learner.evaluated is learner.student


def test_agents_without_any_leave_no_trace(make_learner):
    learner = make_learner(MLE())
    learner.train(no_score, Log())
    assert len(learner.optimizer.param_groups) == 1
    assert not any(name.startswith("companions.") for name in load_file(learner.last))


def test_a_checkpoint_without_them_is_refused_by_their_names(make_learner):
    make_learner(MLE()).train(no_score, Log())
    missing = r'(?s)must hold the state of this run, got: .*"shift\.weight"'
    with pytest.raises(CheckpointError, match=missing):
        make_learner(Shifted())
