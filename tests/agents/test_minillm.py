import math
import statistics
from dataclasses import replace

import pytest
import torch

from tests.support.toy import Given, record
from tests.support.updates import collect
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.state_chunks import label_states
from textgen_agents.minillm import (
    SMALLEST_DEVIATION,
    MiniLLM,
    log_probs_of_actions,
    mean_reward_to_go,
)
from textgen_agents.rollouts.context import Context
from textgen_env.experts.expert import NeuralExpert
from textgen_env.types import Examples, Writer

BETA, DISCOUNT, CLIP = 0.3, 0.5, 0.2
AGENT = MiniLLM(beta=BETA, discount=DISCOUNT, clip_range=CLIP)
TEXTS = [3, 4, 5, 2], [6, 2], [4, 4, 3], [5, 6, 6, 4]


@pytest.fixture
def models():
    """Student and expert with logits at random for `TEXTS`."""
    generator = torch.Generator().manual_seed(1)
    return [Given(2 * torch.randn(4, 4, 7, generator=generator)) for _ in range(2)]


def alone(values):
    return values


def batch_of(agent, texts, student, expert):
    """Return `texts` with what one process decides about them."""
    return LabelledBatch(texts, agent.decide(texts, log_probs(texts, student, expert), alone))


def log_probs(texts, student, expert):
    """Return what student and expert say of the tokens of `texts`."""
    recorded = LabelledBatch(texts, {"logits": expert.logits(texts)})
    return label_states(log_probs_of_actions, recorded, student)


def by_hand(q, p):
    """For each token, text by text: its weight, its advantage, and KL(q || p)."""
    weights, values, divergences = [], [], []
    for text, own, other in zip(TEXTS, q, p, strict=True):
        reward = [math.log(other[t][a] / own[t][a]) for t, a in enumerate(text)]
        for t, action in enumerate(text):
            mixed = BETA * other[t][action] + (1 - BETA) * own[t][action]
            weights.append(own[t][action] / mixed)
            ahead = reward[t:]
            values.append(sum(r * DISCOUNT**k for k, r in enumerate(ahead)) / len(ahead))
            pairs = zip(own[t], other[t], strict=True)
            divergences.append(sum(one * math.log(one / each) for one, each in pairs))
    mean, deviation = statistics.mean(values), statistics.pstdev(values) + SMALLEST_DEVIATION
    return weights, [(value - mean) / deviation for value in values], divergences


def clip(weight):
    return min(max(weight, 1 - CLIP), 1 + CLIP)


def test_the_loss_is_as_computed_by_hand(models):
    student, expert = models
    q, p = (model.table.detach().double().softmax(-1).tolist() for model in models)
    terms = [*zip(*by_hand(q, p), strict=True)]
    total = sum(w * kl - min(w * advantage, clip(w) * advantage) for w, advantage, kl in terms)
    loss = AGENT.loss(batch_of(AGENT, record(*TEXTS), *models), student, expert)
    assert loss.item() == pytest.approx(total / len(terms), rel=1e-4)


def test_the_gradient_is_that_of_kl_now_and_of_what_is_not_clipped_later(models):
    student, expert = models
    q, p = (model.table.detach().double().softmax(-1).tolist() for model in models)
    log_q = student.table.log_softmax(-1)
    log_p = expert.logits(None).log_softmax(-1)
    surrogate, seen = 0.0, set()
    terms = zip(*by_hand(q, p), strict=True)
    for row, text in enumerate(TEXTS):
        for t, (weight, advantage, _) in zip(range(len(text)), terms, strict=False):
            one, other = log_q[row, t], log_p[row, t]
            counts = weight * advantage <= clip(weight) * advantage
            surrogate = surrogate + weight * (one.exp() * (one - other)).sum()
            surrogate = surrogate - counts * weight * advantage * one[text[t]]
            seen.add(counts)
    assert seen == {True, False}, "some are clipped, some not"
    count = sum(map(len, TEXTS))
    (expected,) = torch.autograd.grad(surrogate / count, student.table)
    AGENT.loss(batch_of(AGENT, record(*TEXTS), *models), student, expert).backward()
    torch.testing.assert_close(student.table.grad, expected, rtol=1e-4, atol=1e-6)
    assert expert.table.grad is None


def test_the_ratio_is_to_the_student_that_wrote(models):
    """Half of the probability that it had then halves the gain; a gain is bounded above."""
    student, expert = models
    agent = MiniLLM(beta=0.0, clip_range=0.2)
    batch = batch_of(agent, record(*TEXTS), *models)
    labels = {**batch.labels, "log_prob": batch.labels["log_prob"] + math.log(2)}
    mask, advantage = batch.trajectories.mask, batch.labels["advantage"]
    gain = torch.minimum(0.5 * advantage, 0.8 * advantage)[mask].mean()
    before = agent.loss(batch, student, expert) + advantage[mask].mean()
    after = agent.loss(LabelledBatch(batch.trajectories, labels), student, expert) + gain
    torch.testing.assert_close(after, before)


def test_the_advantages_of_all_processes_have_mean_0_and_deviation_1(models):
    """What another process has gathered counts as the rows here do."""
    student, expert = models
    texts = record(*TEXTS)
    gathered = []

    def gather(values):
        gathered.append(torch.cat([values, values + 10]))
        return gathered[0]

    labels = AGENT.decide(texts, log_probs(texts, student, expert), gather)
    own = labels["advantage"][texts.mask] * (gathered[0].std(correction=0) + SMALLEST_DEVIATION)
    torch.testing.assert_close(own + gathered[0].mean(), gathered[0][: len(own)])


def all_texts_of_two(vocab_size):
    words = range(3, vocab_size)
    return [[2], *([first, second] for first in words for second in (2, *words))]


def test_alone_the_student_follows_the_reverse_kl_of_each_token_and_its_advantage(
    tiny_task, make_table_model
):
    """All texts of up to two tokens, each as often as the student writes it, in float64.

    The mean that is taken from the rewards changes no expected gradient, as probabilities add up to
    one: it is that of the rewards themselves, divided by their deviation.
    """
    student, teacher = (make_table_model(tiny_task, seed) for seed in (0, 1))
    with torch.no_grad():
        for model in (student, teacher):
            model.tables[..., :2] -= 40  # what is never written has no probability
    expert = NeuralExpert(teacher)
    texts = record(*all_texts_of_two(student.vocab_size))
    source = torch.full_like(texts.source, 5)
    texts = replace(texts, source=source, expert_source=source)

    def log_probs(model):
        return model.sequence_logits(texts.source, texts.actions).double().log_softmax(-1)

    def written(table):
        return table.gather(-1, texts.actions[..., None]).squeeze(-1).where(texts.mask, 0.0)

    own, teachers = log_probs(student), log_probs(teacher).detach()
    frequency = written(own).sum(1).exp().detach()
    assert frequency.sum().item() == pytest.approx(1, abs=1e-5), "these are all"
    agent = MiniLLM(beta=0.0, discount=1.0)
    batch = batch_of(agent, texts, student, expert)
    reward = (written(teachers) - written(own)).detach()
    value = torch.stack([reward.sum(1) / texts.mask.sum(1), reward[:, 1]], 1)
    deviation = value[texts.mask].std(correction=0) + SMALLEST_DEVIATION
    exact_terms = (own.exp() * (own - teachers)).sum(-1) - value / deviation * written(own)
    exact = (frequency[:, None] * exact_terms.where(texts.mask, 0.0)).sum()
    (exact,) = torch.autograd.grad(exact, student.tables)
    losses = []
    for row in range(len(texts)):
        text = batch.select(torch.tensor([row]))
        losses.append(agent.loss(text, student, expert) * text.trajectories.mask.sum())
    (estimated,) = torch.autograd.grad((frequency * torch.stack(losses)).sum(), student.tables)
    torch.testing.assert_close(estimated, exact, rtol=1e-3, atol=1e-5)


def test_rewards_to_go_by_hand():
    reward = torch.tensor([[1.0, 2.0, 4.0, 7.0], [3.0, 5.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found = mean_reward_to_go(reward, mask, 0.5)
    expected = torch.tensor(
        [[(1 + 0.5 * 2 + 0.25 * 4) / 3, (2 + 0.5 * 4) / 2, 4.0], [5.5 / 2, 5, 0]]
    )
    torch.testing.assert_close(found[:, :3], expected)


@pytest.mark.parametrize("far", [1e4, -1e4, float("-inf")])
def test_what_one_side_cannot_write_leaves_the_loss_finite(models, far):
    student, expert = models
    with torch.no_grad():
        expert.table[:, :, 4] = far
    loss = AGENT.loss(batch_of(AGENT, record(*TEXTS), *models), student, expert)
    loss.backward()
    assert loss.isfinite()
    assert student.table.grad.isfinite().all()


def test_expert_and_student_write_as_coins_say(env, tiny_student):
    shares = []
    for seed in range(20):
        texts = collect(MiniLLM(beta=0.3), env, tiny_student, seed=seed)
        writer = texts.writer[texts.mask]
        assert set(writer.tolist()) <= {Writer.STUDENT, Writer.EXPERT}
        shares.append(writer.eq(Writer.EXPERT).float().mean())
    assert 0.25 < sum(shares) / 20 < 0.35
    alone = collect(MiniLLM(beta=0.0), env, tiny_student)
    assert alone.writer[alone.mask].eq(Writer.STUDENT).all()


@pytest.mark.parametrize("writer", [Writer.STUDENT, Writer.EXPERT])
def test_each_draws_from_its_own_distribution(tiny_task, make_env, make_table_model, writer):
    student, teacher = (make_table_model(tiny_task, seed) for seed in (0, 1))
    examples = Examples(torch.tensor([[5, 2]]), torch.tensor([[4, 2]]))
    env = make_env(tiny_task, 4000, NeuralExpert(teacher), examples)
    rows = torch.zeros(4000, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    texts = MiniLLM(beta=0.5).collect(Context(rows, env, student, generator=generator)).trajectories
    first = texts.actions[texts.writer[:, 0] == writer, 0]
    model = student if writer == Writer.STUDENT else teacher
    logits = model.sequence_logits(texts.source[:1], texts.actions[:1])[0, 0].detach()
    probs = logits.index_fill(0, torch.tensor([0, 1]), float("-inf")).softmax(0)
    shares = first.bincount(minlength=len(probs)) / len(first)
    assert (shares - probs).abs().max() < 0.04


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1.0; .*f_distill"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\), got -0.1"),
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ({"clip_range": -1.0}, "clip_range must be at least 0, got -1.0"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        MiniLLM(**setting)
