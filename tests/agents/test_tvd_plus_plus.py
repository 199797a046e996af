"""TVD++: its gradient against that of total variation, and its variance, by enumeration."""

from dataclasses import replace

import pytest
import torch

from tests.support.toy import Given, record
from tests.support.updates import collect_batch, context_of, learn
from textgen_agents.rollouts.context import Context
from textgen_agents.tvd_plus_plus import TVDPlusPlus, action_log_probs, rewards
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.generation.speculative import SpeculativeDecoder

STATES, WORDS = 4, 6


def pair(seed):
    """Return logits of student and teacher, (1, STATES, WORDS) in float64."""
    draws = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 1, STATES, WORDS, generator=draws, dtype=torch.float64)
    return student.requires_grad_(), teacher


def gradient_of_each_action(student, teacher, agent):
    """Return the gradient at one state for each action that may be drawn, and its probability."""
    states, gradients = record([3] * STATES), []
    every = [torch.full((1, STATES), action) for action in range(WORDS)]
    reward = torch.stack([rewards(student, teacher, drawn) for drawn in every])
    # The whole batch: each action at each state, as often as it is drawn.
    q = student.detach().softmax(-1).permute(2, 0, 1)
    mean = (q * reward).sum() / STATES
    deviation = ((q * (reward - mean) ** 2).sum() / STATES).sqrt()
    for drawn, own in zip(every, reward, strict=True):
        advantage = (own - mean) / deviation if agent.whiten else own
        losses = -advantage * action_log_probs(student, drawn)
        (gradient,) = torch.autograd.grad(losses.sum() / STATES, student)
        gradients.append(gradient)
    assert states.mask.sum() == STATES
    return torch.stack(gradients), q[..., None], deviation


@pytest.mark.parametrize("seed", range(5))
def test_without_whitening_the_expected_gradient_is_that_of_total_variation(seed):
    student, teacher = pair(seed)
    gradients, q, _ = gradient_of_each_action(student, teacher, TVDPlusPlus(whiten=False))
    distance = 0.5 * (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1)
    (exact,) = torch.autograd.grad(distance.mean(), student)
    torch.testing.assert_close((q * gradients).sum(0), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_whitened_it_has_that_direction_and_less_variance(seed):
    """Variance for the same expected gradient: that of the whitened one times the deviation."""
    student, teacher = pair(seed)
    variances, means = [], []
    for whiten in (False, True):
        gradients, q, deviation = gradient_of_each_action(
            student, teacher, TVDPlusPlus(whiten=whiten)
        )
        gradients = gradients * deviation if whiten else gradients
        means.append((q * gradients).sum(0))
        variances.append(((q * gradients**2).sum(0) - means[-1] ** 2).sum())
    torch.testing.assert_close(*means, rtol=0, atol=1e-8)
    assert variances[1] < variances[0]


def test_the_agents_loss_is_what_was_enumerated():
    student, teacher = pair(0)
    states, drawn = record([3] * STATES), torch.tensor([[3, 4, 5, 3]])
    reward = rewards(student.detach(), teacher, drawn)
    agent = TVDPlusPlus()
    labels = agent.decide(states, drawn, reward, lambda values: values)
    assert labels["advantage"].mean().item() == pytest.approx(0, abs=1e-9)
    assert labels["advantage"].std(correction=0).item() == pytest.approx(1, abs=1e-3)
    raw = replace(agent, whiten=False).decide(states, drawn, reward, lambda values: values)
    assert torch.equal(raw["advantage"], reward)


def test_rewards_by_hand():
    own = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(3, 3)
    teachers = torch.tensor([[0.4, 0.3, 0.3]]).log().expand(3, 3)
    assert rewards(own, teachers, torch.arange(3)).tolist() == [0, 0, 1]


def test_whitening_is_over_the_whole_batch_of_an_update(env, tiny_student):
    """Values of other processes count, and parts of the batch keep what the whole has said."""
    agent, gathered = TVDPlusPlus(), []

    def gather(values):
        gathered.append(values)
        return torch.cat([values, torch.ones(100)])

    batch = agent.collect(replace(context_of(env, tiny_student), gather=gather))
    states, advantage = batch.trajectories, batch.labels["advantage"]
    assert len(gathered[0]) == int(states.mask.sum())
    every = torch.cat([gathered[0], torch.ones(100)])
    found = advantage[states.mask] * (every.std(correction=0) + 1e-4) + every.mean()
    torch.testing.assert_close(found, gathered[0])
    whole = agent.loss(batch, tiny_student, env.expert) * states.mask.sum()
    parts = [batch.select(rows) for rows in torch.arange(len(batch)).split(5)]
    summed = sum(
        agent.loss(part, tiny_student, env.expert) * part.trajectories.mask.sum() for part in parts
    )
    torch.testing.assert_close(whole, summed)


def test_the_students_draws_are_kept_with_the_batch(env, tiny_student):
    batch = collect_batch(TVDPlusPlus(), env, tiny_student)
    assert set(batch.labels) == {"drawn", "advantage"}
    assert batch.labels["drawn"].shape == batch.trajectories.actions.shape
    assert (batch.labels["drawn"] >= env.special.end).all()


def test_the_teacher_draws_its_texts_once(env, expert, tiny_student):
    prepared = TVDPlusPlus().prepare(env.examples, expert, env.max_steps)
    again = TVDPlusPlus().prepare(env.examples, expert, env.max_steps)
    other = TVDPlusPlus(seed=1).prepare(env.examples, expert, env.max_steps)
    assert torch.equal(prepared.reference, again.reference)
    assert not torch.equal(prepared.reference, other.reference)
    assert torch.equal(prepared.source, env.examples.source)


def test_a_teacher_with_the_students_distribution_teaches_nothing(env, tiny_student):
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    student, texts = Given(logits), record([3, 4, 2], [5, 2])
    drawn = texts.actions
    reward = rewards(logits, student.logits(texts), drawn)
    labels = TVDPlusPlus().decide(texts, drawn, reward, lambda values: values)
    assert labels["advantage"].eq(0).all()


def test_training_raises_what_the_teacher_accepts(tiny_task, make_env, make_table_model):
    student, teacher = (make_table_model(tiny_task, seed) for seed in (0, 1))
    expert, agent = NeuralExpert(teacher), TVDPlusPlus()
    examples = agent.prepare(make_env(tiny_task, 48).examples, expert, tiny_task.max_target_length)
    env = make_env(tiny_task, 48, expert, examples)

    def acceptance():
        decoder = SpeculativeDecoder(student, 3, Sampling(), torch.Generator().manual_seed(1))
        decoder(teacher, examples.source.repeat(4, 1), env.max_steps)
        return decoder.counts.acceptance

    before, generator = acceptance(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    for _ in range(100):
        rows = torch.arange(env.num_envs)
        batch = agent.collect(Context(rows, env, student, generator=generator))
        optimizer.zero_grad()
        agent.loss(batch, student, expert).backward()
        optimizer.step()
    assert acceptance() > before + 0.15


def test_the_loss_of_an_update_is_finite(env, tiny_student):
    _, loss, gradients = learn(TVDPlusPlus(), env, tiny_student)
    assert loss.isfinite()
    assert any(gradient.any() for gradient in gradients.values())
