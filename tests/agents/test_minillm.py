import math
from dataclasses import replace

import pytest
import torch

from tests.support.toy import Given, record
from tests.support.updates import collect
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.minillm import MiniLLM, mean_later_reward
from textgen_agents.rollouts.context import Context
from textgen_env.experts.expert import NeuralExpert
from textgen_env.types import Examples, Writer

BETA, DISCOUNT, CLIP = 0.3, 0.5, 0.2
AGENT = MiniLLM(beta=BETA, discount=DISCOUNT, clip_range=CLIP)
TEXTS = [3, 4, 5, 2], [6, 2], [4, 4, 3], [5, 6, 6, 4]


@pytest.fixture
def models():
    """Student and expert with logits at random for `TEXTS`."""
    generator = torch.Generator().manual_seed(0)
    return [Given(2 * torch.randn(4, 4, 7, generator=generator)) for _ in range(2)]


def by_hand(text, q, p):
    """For each token: its weight, its later rewards, whether they count, and KL(q || p)."""
    reward = [math.log(p[t][a] / q[t][a]) for t, a in enumerate(text)]
    for t, action in enumerate(text):
        weight = q[t][action] / (BETA * p[t][action] + (1 - BETA) * q[t][action])
        after = reward[t + 1 :]
        later = sum(r * DISCOUNT**k for k, r in enumerate(after)) / max(1, len(after))
        clipped = min(max(weight, 1 - CLIP), 1 + CLIP)
        kl = sum(one * math.log(one / other) for one, other in zip(q[t], p[t], strict=True))
        yield weight, later, weight * later <= clipped * later, kl, clipped


def test_the_loss_is_as_computed_by_hand(models):
    student, expert = models
    q, p = (model.table.detach().double().softmax(-1).tolist() for model in models)
    terms = [term for text, *row in zip(TEXTS, q, p, strict=True) for term in by_hand(text, *row)]
    total = sum(w * kl - min(w * later, c * later) for w, later, _, kl, c in terms)
    loss = AGENT.loss(LabelledBatch(record(*TEXTS)), student, expert)
    assert loss.item() == pytest.approx(total / len(terms), rel=1e-5)
    assert {counts for *_, counts, _, _ in terms} == {True, False}, "some are clipped, some not"


def test_the_gradient_is_that_of_kl_now_and_of_what_is_not_clipped_later(models):
    student, expert = models
    q, p = (model.table.detach().double().softmax(-1).tolist() for model in models)
    log_q = student.table.log_softmax(-1)
    log_p = expert.logits(None).log_softmax(-1)
    surrogate, count = 0.0, 0
    for row, text in enumerate(TEXTS):
        for t, (weight, later, counts, _, _) in enumerate(by_hand(text, q[row], p[row])):
            one, other = log_q[row, t], log_p[row, t]
            surrogate = surrogate + weight * (one.exp() * (one - other)).sum()
            surrogate = surrogate - counts * weight * later * one[text[t]]
            count += 1
    (expected,) = torch.autograd.grad(surrogate / count, student.table)
    AGENT.loss(LabelledBatch(record(*TEXTS)), student, expert).backward()
    torch.testing.assert_close(student.table.grad, expected)
    assert expert.table.grad is None


def all_texts_of_two(vocab_size):
    words = range(3, vocab_size)
    return [[2], *([first, second] for first in words for second in (2, *words))]


def test_alone_the_student_lowers_the_reverse_kl_of_whole_texts(tiny_task, make_table_model):
    """All texts of up to two tokens, each as often as the student writes it."""
    student, teacher = (make_table_model(tiny_task, seed) for seed in (0, 1))
    with torch.no_grad():
        for model in (student, teacher):
            model.tables[..., :2] -= 40  # what is never written has no probability
    expert = NeuralExpert(teacher)
    texts = record(*all_texts_of_two(student.vocab_size))
    source = torch.full_like(texts.source, 5)
    texts = replace(texts, source=source, expert_source=source)

    def log_prob(model):
        log_probs = model.sequence_logits(texts.source, texts.actions).log_softmax(-1)
        chosen = log_probs.gather(-1, texts.actions[..., None]).squeeze(-1)
        return chosen.where(texts.mask, 0.0).sum(1)

    own, teachers = log_prob(student), log_prob(teacher).detach()
    assert own.exp().sum().item() == pytest.approx(1, abs=1e-5), "these are all"
    (exact,) = torch.autograd.grad((own.exp() * (own - teachers)).sum(), student.tables)
    agent, losses = MiniLLM(beta=0.0, discount=1.0), []
    for row in range(len(texts)):
        text = texts.select(torch.tensor([row]))
        losses.append(agent.loss(LabelledBatch(text), student, expert) * text.mask.sum())
    expected = (own.exp().detach() * torch.stack(losses)).sum()
    (estimated,) = torch.autograd.grad(expected, student.tables)
    torch.testing.assert_close(estimated, exact, rtol=1e-4, atol=1e-5)


def test_later_rewards_by_hand():
    reward = torch.tensor([[1.0, 2.0, 4.0, 7.0], [3.0, 5.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    expected = torch.tensor([[(2 + 0.5 * 4) / 2, 4.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    assert torch.equal(mean_later_reward(reward, mask, 0.5), expected)


@pytest.mark.parametrize("far", [1e4, -1e4, float("-inf")])
def test_what_one_side_cannot_write_leaves_the_loss_finite(models, far):
    student, expert = models
    with torch.no_grad():
        expert.table[:, :, 4] = far
    loss = AGENT.loss(LabelledBatch(record(*TEXTS)), student, expert)
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
