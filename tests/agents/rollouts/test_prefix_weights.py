"""Weights of states by the distance of teacher and student in the text before them."""

from dataclasses import replace

import pytest
import torch

from tests.support.updates import (
    CONFIG,
    Log,
    assert_same_bits,
    context_of,
    gradients_of_an_update,
    make,
    no_score,
    weights_of,
)
from textgen_agents import AGENTS
from textgen_agents.dagger import DAgger
from textgen_agents.distillm import DistiLLM
from textgen_agents.imitkd import ImitKDFull, ImitKDStarFull
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, LabelledBatch, Top1
from textgen_agents.losses.objectives import loss_for, mean_over_actions
from textgen_agents.rollouts.prefix_weights import prefix_weights, with_prefix_weights
from textgen_agents.rollouts.rollout import mixed_rollout
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.skd import SKD
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.types import Trajectories, Writer

WEIGHTED = {
    **{name: make(name) for name in ("gkd", "distillm2", "f_distill", "skd", "switch")},
    **{name: make(name) for name in ("adaswitch", "atkd", "minillm", "mgsr", "diverse_cfg")},
    **{name: make(name) for name in ("sampled_reverse_kl", "distillspec")},
    **{name: make(name) for name in ("every_expert_ka", "every_expert_sar")},
    "imitkd_full": ImitKDFull(beta=Constant(0.3)),
    "imitkd_star_full": ImitKDStarFull(beta=Constant(0.3)),
    "distillm": DistiLLM(student_fraction=1.0),
    "dagger": DAgger(beta=Constant(0.5), label=Dense()),
}


def test_weights_by_hand():
    discrepancy = torch.tensor([[1.0, -2.0, 0.0, 1.0], [3.0, 1.0, 50.0, 50.0], [0.0] * 4])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    weights = prefix_weights(discrepancy, mask, 0.5)
    assert weights[0].tolist() == [1.5, 1.5 - 0.125, 1.5 - 0.375, 1.5 - 0.375]
    assert weights[1, :2].tolist() == [1.5, 1.5 - 0.375]
    assert weights[2].tolist() == [1.5] * 4, "they agree about the text"


def test_a_token_without_probability_leaves_no_weight_to_those_after_it():
    discrepancy = torch.tensor([[1.0, float("-inf"), 1.0]])
    weights = prefix_weights(discrepancy, torch.ones(1, 3, dtype=torch.bool), 1.0)
    assert weights[0].tolist() == pytest.approx([2, 2 - 1 / 102, 2 - 101 / 102])


def collected(env, student, beta):
    batch = mixed_rollout(context_of(env, student), beta=beta, sampling=None)
    return batch, with_prefix_weights(batch, student, env.expert, 0.5)


def test_weights_of_texts_are_those_of_the_models_probabilities(env, tiny_student, tiny_teacher):
    batch, weighted = collected(env, tiny_student, beta=0.5)
    states = batch.trajectories
    by_student = ((states.writer == Writer.STUDENT) & states.mask).any(1)
    assert by_student.any()
    assert not by_student.all()
    log_p, log_q = (
        model.sequence_logits(states.source, states.actions)
        .double()
        .log_softmax(-1)
        .gather(2, states.actions[..., None])
        .squeeze(2)
        for model in (tiny_teacher, tiny_student)
    )
    for row, mask in enumerate(states.mask):
        found = weighted.trajectories.weight[row, mask]
        sizes = (log_p - log_q)[row, mask].detach().abs()
        before = torch.tensor([float(sizes[:t].sum()) for t in range(len(sizes))])
        expected = (
            1 + 0.5 * (1 - before / sizes.sum()) if by_student[row] else torch.ones(len(sizes))
        )
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)


def test_the_teacher_is_asked_about_texts_of_the_student_alone(env, tiny_student):
    for beta, share in ((1.0, 0), (0.0, 1)):
        before = env.expert.queries.tokens
        batch, _ = collected(env, tiny_student, beta)
        assert env.expert.queries.tokens - before == share * int(batch.trajectories.mask.sum())


def test_recorded_logits_are_not_asked_for_again(env, tiny_student):
    batch = SKD(k=3, sampling=None, expert_sampling=None).collect(context_of(env, tiny_student))
    before = env.expert.queries.tokens
    weighted = with_prefix_weights(batch, tiny_student, env.expert, 0.5)
    assert env.expert.queries.tokens == before
    asked = with_prefix_weights(LabelledBatch(batch.trajectories), tiny_student, env.expert, 0.5)
    torch.testing.assert_close(weighted.trajectories.weight, asked.trajectories.weight)


def test_the_mean_has_the_number_of_actions_below_it(env, tiny_student):
    states = collected(env, tiny_student, beta=0.0)[1].trajectories
    losses = torch.rand(states.mask.shape, generator=torch.Generator().manual_seed(0))
    expected = (losses * states.weight)[states.mask].sum() / states.mask.sum()
    assert mean_over_actions(losses, states).item() == pytest.approx(expected.item(), rel=1e-6)
    plain = mean_over_actions(losses, replace(states, weight=None))
    assert plain.item() == pytest.approx(losses[states.mask].mean().item(), rel=1e-6)


def test_a_loss_of_two_weights_is_the_sum_of_its_parts(env, tiny_student):
    """Weights reach the losses that agents share."""
    states = collected(env, tiny_student, beta=0.0)[1].trajectories
    arguments = tiny_student, env.expert

    def loss(weight):
        return loss_for(Dense(), forward_kl, replace(states, weight=weight), *arguments).item()

    half = states.weight - 1
    assert loss(states.weight) == pytest.approx(loss(None) + loss(half), rel=1e-5)
    assert loss(half) > 0


def test_weights_stay_with_their_actions(env, tiny_student):
    states = collected(env, tiny_student, beta=0.0)[1].trajectories
    rows = torch.tensor([3, 1])
    chosen = states.select(rows).trimmed(env.special)
    width = chosen.actions.shape[1]
    assert torch.equal(chosen.weight, states.weight[rows, :width])
    plain = replace(chosen, weight=None)
    both = Trajectories.cat([plain, states], env.special)
    assert both.weight[:2, :width].eq(1).all()
    assert torch.equal(both.weight[2:], states.weight)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_updates_are_the_same_in_any_number_of_parts(make_learner, name):
    agent = WEIGHTED[name]
    config = replace(CONFIG, batch_size=8, clip=1e9, prefix_weight=0.5)
    plain, _ = gradients_of_an_update(make_learner(agent, replace(config, prefix_weight=0.0), "0"))
    expected, _ = gradients_of_an_update(make_learner(agent, config, "1"))
    assert any(not torch.equal(one, two) for one, two in zip(plain, expected, strict=True))
    gradients, _ = gradients_of_an_update(make_learner(agent, replace(config, accumulate=4), "4"))
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_of_0_is_a_run_without_it(make_learner):
    agent = ImitKDFull(beta=Constant(0.0))
    runs = {}
    for name, strength in (("a", None), ("b", 0.0), ("c", 0.5)):
        config = CONFIG if strength is None else replace(CONFIG, prefix_weight=strength)
        learner = make_learner(agent, config, name)
        learner.train(no_score, Log())
        runs[name] = weights_of(learner.student)
    assert_same_bits(runs["b"], runs["a"])
    assert any(not torch.equal(runs["c"][name], weight) for name, weight in runs["a"].items())


REFUSED = {
    **{n: make(n) for n in AGENTS if n not in WEIGHTED},
    "top1": ImitKDFull(label=Top1()),
    "dagger": DAgger(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_agents_without_a_distribution_refuse_weights(make_learner, name):
    with pytest.raises(ValueError, match=r"^prefix_weight must be 0 for \w+, which asks for no"):
        make_learner(REFUSED[name], replace(CONFIG, prefix_weight=0.5))


def test_a_teacher_that_tells_a_few_tokens_is_refused(make_learner, monkeypatch):
    monkeypatch.setattr(NeuralExpert, "largest_k", 5)
    with pytest.raises(ExpertError, match=r"^prefix_weight must be 0 for a teacher that does not"):
        make_learner(
            DistiLLM(label=replace(DistiLLM().label, k=5)), replace(CONFIG, prefix_weight=1.0)
        )


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"^prefix_weight must be at least 0, got -0.5"):
        replace(CONFIG, prefix_weight=-0.5)
