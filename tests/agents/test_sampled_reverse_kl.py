"""The reverse KL of written tokens: its expected gradient over a small vocabulary."""

from dataclasses import replace

import pytest
import torch

from tests.support.toy import Given, record
from tests.support.updates import collect, context_of
from textgen_agents.losses.divergences import reverse_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.topk import with_tail
from textgen_agents.sampled_reverse_kl import SampledReverseKL, truncated_surrogate
from textgen_env.experts.top_k import TopK
from textgen_env.types import Writer

VOCAB = 6
UNCLIPPED = SampledReverseKL(ratio_clip=float("inf"))


def logits_at_random(seed, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(VOCAB, generator=generator, dtype=torch.float64)


@pytest.fixture
def laws():
    """Return logits of the student, and log-probabilities of teacher and earlier student."""
    student = logits_at_random(0).requires_grad_()
    teacher, earlier = (logits_at_random(seed).log_softmax(-1) for seed in (1, 2))
    return student, teacher, earlier


def expected_gradient(student, behavior, advantage, ratio_clip):
    """Return the mean over all tokens of the gradient, each as often as `behavior` draws it."""
    losses = truncated_surrogate(
        student.log_softmax(-1), behavior, advantage, ratio_clip=ratio_clip
    )
    return torch.autograd.grad((behavior.exp() * losses).sum(), student)[0]


def gradient_of_reverse_kl(student, teacher):
    own = student.log_softmax(-1)
    return torch.autograd.grad((own.exp() * (own - teacher)).sum(), student)[0]


@pytest.mark.parametrize("is_stale", [False, True])
def test_the_expected_gradient_is_that_of_the_whole_reverse_kl(laws, is_stale):
    student, teacher, earlier = laws
    own = student.detach().log_softmax(-1)
    found = expected_gradient(student, earlier if is_stale else own, teacher - own, float("inf"))
    torch.testing.assert_close(found, gradient_of_reverse_kl(student, teacher), rtol=0, atol=1e-12)


def test_a_clipped_weight_is_a_token_that_would_be_drawn_less_often(laws):
    student, teacher, earlier = laws
    own = student.log_softmax(-1)
    share = torch.minimum(own.exp(), 2 * earlier.exp()).detach()
    assert (share < own.exp()).any()
    (expected,) = torch.autograd.grad((share * (own - teacher).detach() * own).sum(), student)
    found = expected_gradient(student, earlier, teacher - own.detach(), 2.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, VOCAB - 1])
def test_a_divergence_of_the_k_best_as_an_advantage_has_expected_gradient_0(laws, k):
    """It is the same whatever token was drawn, and probabilities add up to one."""
    student, teacher, _ = laws
    own = student.detach().log_softmax(-1)
    best = teacher.topk(k)
    tail = teacher.scatter(0, best.indices, float("-inf")).logsumexp(0)
    label = TopK(*(part[None, None] for part in (best.indices, best.values, tail)))
    divergence = reverse_kl(*with_tail(student.detach()[None, None], label)).item()
    assert divergence > 0.01
    found = expected_gradient(student, own, torch.full_like(own, -divergence), float("inf"))
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    assert gradient_of_reverse_kl(student, teacher).abs().max() > 0.01


def test_the_value_of_the_loss_is_the_estimate_of_the_reverse_kl(laws):
    student, teacher, _ = laws
    own = student.log_softmax(-1)
    losses = truncated_surrogate(own, own.detach(), teacher - own, ratio_clip=1.0)
    exact = (own.exp() * (own - teacher)).sum()
    torch.testing.assert_close((own.exp() * losses).sum(), exact)


TEXTS = [3, 4, 5, 2], [5, 2], [4, 4, 3], [5, 3, 3, 4]


@pytest.fixture
def batch():
    """Texts with the log-probabilities of a student that drew them some time ago."""
    states = record(*TEXTS)
    log_prob = -5 * torch.rand(states.mask.shape, generator=torch.Generator().manual_seed(3))
    return LabelledBatch(replace(states, behavior_log_prob=log_prob.where(states.mask, 0.0)))


def table(seed):
    return Given(1.5 * torch.randn(4, 4, VOCAB, generator=torch.Generator().manual_seed(seed)))


def test_the_loss_is_as_computed_by_hand(batch):
    student, expert = table(0), table(1)
    q, p = (model.table.detach().double().log_softmax(-1) for model in (student, expert))
    terms, clipped = [], set()
    for row, text in enumerate(TEXTS):
        for t, a in enumerate(text):
            ratio = (q[row, t, a] - batch.trajectories.behavior_log_prob[row, t]).exp().item()
            clipped.add(ratio > 1.2)
            terms.append(min(ratio, 1.2) * (q[row, t, a] - p[row, t, a]).item())
    assert clipped == {True, False}
    loss = SampledReverseKL(ratio_clip=1.2).loss(batch, student, expert)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    loss.backward()
    assert expert.table.grad is None


@pytest.mark.parametrize("far", [1e4, -1e4, float("-inf")])
def test_a_token_that_the_teacher_cannot_write_leaves_the_loss_finite(batch, far):
    student, expert = table(0), table(1)
    with torch.no_grad():
        expert.table[:, :, 4] = far
    loss = UNCLIPPED.loss(batch, student, expert)
    loss.backward()
    assert loss.isfinite()
    assert student.table.grad.isfinite().all()


def test_the_student_draws_every_token_and_its_weight_is_then_1(
    tiny_task, make_env, make_table_model, expert
):
    student = make_table_model(tiny_task, 0)
    with torch.no_grad():
        student.tables[..., :2] -= 40  # padding and start, which nobody writes
    env = make_env(tiny_task, 12, expert)
    texts = collect(SampledReverseKL(), env, student)
    assert texts.writer[texts.mask].eq(Writer.STUDENT).all()
    logits = student.sequence_logits(texts.source, texts.actions)
    own = logits.log_softmax(-1).gather(-1, texts.actions[..., None]).squeeze(-1)
    torch.testing.assert_close(
        texts.behavior_log_prob[texts.mask], own[texts.mask], rtol=1e-4, atol=1e-5
    )


def test_a_student_that_writes_with_another_temperature_is_corrected_for(
    tiny_task, make_env, make_table_model
):
    """The mean weight of a token is 1 whatever it was drawn from, if nothing is clipped."""
    student, agent = make_table_model(tiny_task, 0), UNCLIPPED
    with torch.no_grad():
        student.tables[..., :2] -= 40
    env = make_env(tiny_task, 4000)
    rows = torch.zeros(4000, dtype=torch.int64)
    agent = replace(agent, sampling=replace(agent.sampling, temperature=1.5))
    texts = agent.collect(context_of(env, student, rows)).trajectories
    logits = student.sequence_logits(texts.source, texts.actions)
    own = logits.log_softmax(-1).gather(-1, texts.actions[..., None]).squeeze(-1)
    weights = (own - texts.behavior_log_prob).exp()[:, 0]
    assert weights.mean().item() == pytest.approx(1, abs=5 * weights.std().item() / 4000**0.5)
    assert weights.std() > 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ratio_clip": 0.5}, "ratio_clip must be at least 1, got 0.5"),
        ({"batches_per_rollout": 0}, "batches_per_rollout must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SampledReverseKL(**setting)
