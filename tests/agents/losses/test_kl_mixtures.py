"""Mixtures of forward and reverse KL: their ends, their states, and agents that take them."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.updates import assert_learn_the_same, learn
from textgen_agents.gkd import GKD
from textgen_agents.losses.divergences import entropy, forward_kl, reverse_kl
from textgen_agents.losses.kl_mixtures import EntropyAwareKL, MixedKL
from textgen_agents.skd import SKD
from textgen_agents.switch import AdaSwitch, Switch

VOCAB = 7


@pytest.fixture
def logits():
    """Return logits of student and teacher at 40 states, at about half of which it is unsure."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 40, VOCAB, generator=generator)
    return student, teacher * torch.linspace(0.1, 6, 40)[:, None]


@pytest.mark.parametrize(
    ("mixture", "end"),
    [
        (MixedKL(1.0), forward_kl),
        (MixedKL(0.0), reverse_kl),
        (EntropyAwareKL(threshold=0.0), forward_kl),
        (EntropyAwareKL(threshold=math.log(VOCAB) + 1e-3), reverse_kl),
        (EntropyAwareKL(0.0, forward_weight=0.3), MixedKL(0.3)),
        (EntropyAwareKL(1.0, forward_weight=0.0), reverse_kl),
    ],
)
def test_at_the_ends_a_mixture_is_one_of_its_parts(logits, mixture, end):
    assert torch.equal(mixture(*logits), end(*logits))


def test_each_state_is_judged_by_its_own_entropy(logits):
    student, teacher = logits
    unsure = entropy(teacher) > 1
    assert 10 < unsure.sum() < 30
    found = EntropyAwareKL(1.0)(student, teacher)
    assert torch.equal(found[unsure], forward_kl(student, teacher)[unsure])
    assert torch.equal(found[~unsure], reverse_kl(student, teacher)[~unsure])


def test_an_unsure_teacher_is_covered_and_a_sure_one_is_not():
    """Two equally good tokens of four: reverse KL is content with one of them, forward KL is not.

    The gradient of a student that writes the first alone: forward KL asks for the second one with
    its probability of 1/2, reverse KL with hardly anything.
    """
    teacher = torch.tensor([5.0, 5.0, -5.0, -5.0])
    student = torch.tensor([5.0, -5.0, -5.0, -5.0])

    def pull(divergence):
        given = student.clone().requires_grad_()
        return -torch.autograd.grad(divergence(given, teacher), given)[0][1].item()

    assert pull(EntropyAwareKL(threshold=0.5)) == pytest.approx(0.5, abs=0.01)
    assert pull(EntropyAwareKL(threshold=1.0)) < 0.01


@pytest.mark.parametrize("agent", [SKD(k=3), Switch(threshold=0.3), AdaSwitch(factor=2.0)])
def test_agents_take_a_mixture_in_the_place_of_forward_kl(env, tiny_student, agent):
    assert_learn_the_same(replace(agent, divergence=MixedKL(1.0)), agent, env, tiny_student)
    _, loss, _ = learn(replace(agent, divergence=MixedKL(0.5)), env, tiny_student)
    assert loss != learn(agent, env, tiny_student)[1]


def test_gkd_takes_one_in_the_place_of_its_own_divergence(env, tiny_student):
    for mixture, weight in ((MixedKL(1.0), 0), (EntropyAwareKL(threshold=9.0), 1)):
        mixed = GKD(student_fraction=1.0, divergence=mixture)
        assert_learn_the_same(mixed, GKD(1.0, teacher_weight=weight), env, tiny_student)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedKL(1.5), r"forward_weight must be in \[0, 1\], got 1.5"),
        (lambda: EntropyAwareKL(-1.0), "threshold must be at least 0, got -1.0"),
        (lambda: EntropyAwareKL(1.0, -0.1), r"forward_weight must be in \[0, 1\], got -0.1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
