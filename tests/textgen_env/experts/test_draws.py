"""Draws from an expert's distributions: their frequencies, and on what they depend."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.toy import SPECIAL
from textgen_env.experts.draws import draw_systematically, state_uniforms
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models import hidden_states
from textgen_env.types import Examples, Trajectories


@pytest.fixture
def states():
    """Return 400 texts of 1 to 6 of 40 tokens."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(1, 7, (400, 1), generator=generator)
    words = torch.randint(3, 40, (400, 6), generator=generator)
    texts = words.masked_fill(torch.arange(6) >= length, SPECIAL.pad)
    return Trajectories.from_examples(Examples(texts.flip(0), texts), SPECIAL)


def test_a_token_is_drawn_as_often_as_its_probability_says_rounded_up_or_down():
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(300, 2, 9, generator=generator)
    uniforms = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    drawn = draw_systematically(logits, uniforms, 12)
    expected = 12 * logits.double().softmax(-1)
    counts = F.one_hot(drawn["tokens"], 9).sum(-2)
    assert ((counts - expected).abs() < 1 + 1e-4).all()
    assert counts.sum(-1).eq(12).all()
    log_probs = logits.log_softmax(-1).gather(-1, drawn["tokens"])
    torch.testing.assert_close(drawn["log_probs"], log_probs)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_what_cannot_be_written_is_never_drawn(uniform, k):
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 0.3, -torch.inf]).expand(1, 1, 5)
    drawn = draw_systematically(logits, torch.full((1, 1), uniform, dtype=torch.float64), k)
    assert set(drawn["tokens"].flatten().tolist()) <= {1, 3}


def test_the_number_of_states_at_a_time_does_not_matter(tiny_teacher, states, monkeypatch):
    expert, size = NeuralExpert(tiny_teacher), tiny_teacher.vocab_size
    few = states.select(torch.arange(9))
    trajectories = replace(few, source=few.source % size, actions=few.actions % size)
    whole = expert.draws(trajectories, 4, seed=0)
    monkeypatch.setattr(hidden_states, "MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr(hidden_states, "CHUNK_NUMEL_CPU", 1)
    parts = expert.draws(trajectories, 4, seed=0)
    assert torch.equal(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.log_probs, whole.log_probs)


def test_numbers_of_states_are_spread_evenly_and_apart(states):
    numbers = state_uniforms(states, SPECIAL, 0)
    assert ((numbers >= 0) & (numbers < 1)).all()
    counted = numbers[states.mask]
    counts = counted.mul(16).long().bincount(minlength=16).double()
    expected = len(counted) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 4 * 30**0.5  # 4 deviations
    both = numbers[:, :2][states.mask[:, 1]]
    assert torch.corrcoef(both.T)[0, 1].abs() < 4 / len(both) ** 0.5
    texts = torch.cat([states.source, states.actions], 1).unique(dim=0)
    assert len(counted.unique()) == (texts[:, 6:] != SPECIAL.pad).sum(), "alike in equal texts"


def test_they_depend_on_text_position_and_seed_alone(states):
    numbers = state_uniforms(states, SPECIAL, 0)
    rows = torch.tensor([30, 7])
    some = states.select(rows).trimmed(SPECIAL)
    width = some.mask.shape[1]
    assert torch.equal(state_uniforms(some, SPECIAL, 0), numbers[rows, :width])
    other = state_uniforms(states, SPECIAL, 1)
    assert (other != numbers)[states.mask].all()
    both = torch.stack([other[states.mask], numbers[states.mask]])
    assert torch.corrcoef(both)[0, 1].abs() < 4 / both.shape[1] ** 0.5
    changed = Trajectories.from_examples(
        Examples(states.source, states.actions.where(states.actions != 3, 4)), SPECIAL
    )
    has_three = (states.actions == 3).any(1)
    moved = (state_uniforms(changed, SPECIAL, 0) != numbers).any(1)
    assert torch.equal(moved, has_three)
