"""What is kept of the expert's answers, and that a loss cannot tell it from the expert."""

import math
from itertools import product

import pytest
import torch

from tests.support.toy import SPECIAL, record
from textgen_agents.distillm import DistiLLM
from textgen_agents.gkd import GKD
from textgen_agents.kid import KID
from textgen_agents.losses.divergences import forward_kl, masked_mean, reverse_kl
from textgen_agents.losses.kl_mixtures import EntropyAwareKL, MixedKL
from textgen_agents.losses.labels import (
    Dense,
    RecordedExpert,
    Sampled,
    Top1,
    TopKWithTail,
)
from textgen_agents.losses.objectives import loss_for, token_loss
from textgen_agents.skd import SKD
from textgen_agents.switch import AdaSwitch, Switch
from textgen_env.experts.draws import draw_systematically
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.models.token_positions import TokenPositions
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

LABELS = [Top1(), TopKWithTail(k=3), Dense(), Sampled(k=3)]


@pytest.fixture
def expert(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 3))


@pytest.fixture
def student(tiny_task, make_table_model):
    return make_table_model(tiny_task, 4)


@pytest.fixture
def trajectories(tiny_task):
    examples = encode(tiny_task.validation, tiny_task)
    trajectories = Trajectories.from_examples(examples, tiny_task.tokenizer.special)
    assert not trajectories.mask.all(), "the tests want padding"
    return trajectories


def loss_and_gradient(loss_of, student):
    student.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss.detach(), student.tables.grad.clone()


@pytest.mark.parametrize(
    ("label", "divergence"),
    [*product(LABELS, [forward_kl]), *product(LABELS[:3], [reverse_kl])],
)
def test_a_loss_cannot_tell_what_was_kept_from_the_expert(
    label, divergence, trajectories, expert, student
):
    def loss_by(asked):
        return loss_and_gradient(
            lambda: loss_for(label, divergence, trajectories, student, asked), student
        )

    kept = RecordedExpert(expert.special, label.ask(trajectories, expert))
    asked = expert.queries.tokens
    loss, gradient = loss_by(kept)
    assert asked == trajectories.mask.sum()
    assert expert.queries.tokens == asked, "the expert was asked again"
    expected, expected_gradient = loss_by(expert)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)


def test_of_one_token_a_share_may_be_spread_evenly(trajectories, expert, student):
    plain, smoothed = (
        loss_for(Top1(label_smoothing=share), forward_kl, trajectories, student, expert)
        for share in (0.0, 0.2)
    )
    logits = student.sequence_logits(trajectories.source, trajectories.actions).double()
    even = -logits.log_softmax(-1).mean(-1)[trajectories.mask].mean()
    assert smoothed.item() == pytest.approx(0.8 * plain.item() + 0.2 * even.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
        Top1(label_smoothing=1.0)


def as_any_other(student_logits, teacher_logits):
    """Forward KL that `Top1` does not know for what it is."""
    return forward_kl(student_logits, teacher_logits)


@pytest.mark.parametrize("kl", [forward_kl, as_any_other])
def test_forward_kl_from_the_best_token_is_cross_entropy(trajectories, expert, student, kl):
    actual = loss_and_gradient(lambda: loss_for(Top1(), kl, trajectories, student, expert), student)
    best = expert.best_actions(trajectories)
    expected = loss_and_gradient(lambda: token_loss(trajectories, student, best), student)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("k", [None, "all"])
def test_forward_kl_from_everything_is_that_of_the_distributions(k, trajectories, expert, student):
    label = Dense() if k is None else TopKWithTail(k=expert.vocab_size)

    def expected_loss():
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        losses = forward_kl(logits, expert.logits(trajectories))
        return masked_mean(losses, trajectories.mask)

    actual = loss_and_gradient(
        lambda: loss_for(label, forward_kl, trajectories, student, expert), student
    )
    expected = loss_and_gradient(expected_loss, student)
    torch.testing.assert_close(actual, expected)


def test_top_k_with_tail_by_hand(trajectories, expert, student):
    with torch.no_grad():
        teacher = expert.logits(trajectories).double().softmax(-1)
        own = student.sequence_logits(trajectories.source, trajectories.actions)
    losses = []
    for row, column in trajectories.mask.nonzero().tolist():
        p, q = teacher[row, column], own[row, column].double().softmax(-1)
        chosen = p.argsort(descending=True)[:3].tolist()
        pairs = [(float(p[token]), float(q[token])) for token in chosen]
        tail = tuple(1 - sum(column) for column in zip(*pairs, strict=True))
        losses.append(sum(a * math.log(a / b) for a, b in [*pairs, tail]))
    loss = loss_for(TopKWithTail(k=3), forward_kl, trajectories, student, expert)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_what_was_kept_whole_answers_every_question(trajectories, expert):
    kept = RecordedExpert(expert.special, Dense().ask(trajectories, expert))
    assert torch.equal(kept.best_actions(trajectories), expert.best_actions(trajectories))
    actual, expected = kept.top_k(trajectories, 4), expert.top_k(trajectories, 4)
    for name in ("tokens", "log_probs", "tail_log_prob"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))
    assert torch.equal(
        kept.draws(trajectories, 5, 1).tokens, expert.draws(trajectories, 5, 1).tokens
    )


@pytest.mark.parametrize("label", [Top1(), TopKWithTail(k=3), Sampled(k=3)])
def test_what_was_not_kept_is_not_made_up(label, trajectories, expert):
    kept = RecordedExpert(expert.special, label.ask(trajectories, expert))
    with pytest.raises(ExpertError, match=r"label must be Dense\(\) .* got one that keeps"):
        kept.logits(trajectories)
    for ask in (
        lambda: kept.start(trajectories.source, 5),
        lambda: kept.step(None, None, None),
        lambda: kept.write(None, max_steps=5, beam_size=1),
    ):
        with pytest.raises(ExpertError, match="ask the expert"):
            ask()


def test_fewer_than_one_token_are_refused():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        TopKWithTail(k=0)


EIGHTHS = torch.tensor([0.0, 0.125, 0.5, 0.25, 0.125])  # probabilities, and so quantiles


def drawn_by_hand(uniforms, k):
    """Return the mean loss of forward KL over draws by each of these numbers, and its gradient."""
    logits = torch.tensor([0.3, -1.0, 0.5, 1.5, -0.2], dtype=torch.float64).requires_grad_()
    states = record(*[[3]] * len(uniforms))
    teacher = EIGHTHS.log().expand(len(uniforms), 1, 5)
    drawn = draw_systematically(teacher, uniforms[:, None], k)
    kept = RecordedExpert(
        SPECIAL, {"drawn_tokens": drawn["tokens"], "drawn_log_probs": drawn["log_probs"]}
    )
    answers = Sampled(k).ask_at(states, kept, TokenPositions.of(states.mask))(slice(None))
    losses = Sampled(k).losses(logits.expand(len(uniforms), 5), forward_kl, answers)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    return losses.mean().double(), gradient, logits.detach()


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_the_mean_gradient_over_all_draws_is_that_of_forward_kl(k):
    """The draws change at multiples of k / 8 only: the middles between these stand for all."""
    uniforms = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    loss, gradient, logits = drawn_by_hand(uniforms, k)
    p, q = EIGHTHS.double(), logits.softmax(-1)
    torch.testing.assert_close(gradient, q - p, rtol=0, atol=1e-6)
    exact = (p * (p / q).log()).nansum()  # 0 log 0 is 0
    torch.testing.assert_close(loss, exact, rtol=0, atol=1e-6)


def test_with_draws_at_all_quantiles_a_single_gradient_is_the_full_one():
    _, gradient, logits = drawn_by_hand(torch.tensor([0.3], dtype=torch.float64), 8)
    torch.testing.assert_close(gradient, logits.softmax(-1) - EIGHTHS.double(), rtol=0, atol=1e-6)


def test_over_seeds_the_gradient_comes_to_that_of_all_tokens(trajectories, expert, student):
    """As far as chance lets it: the mean of 200 errors is about a fourteenth of one."""

    def gradient_by(label):
        _, gradient = loss_and_gradient(
            lambda: loss_for(label, forward_kl, trajectories, student, expert), student
        )
        return gradient

    exact = gradient_by(Dense()).double()
    drawn = torch.stack([gradient_by(Sampled(k=2, seed=seed)) for seed in range(200)]).double()
    one, mean = (drawn[0] - exact).norm(), (drawn.mean(0) - exact).norm()
    assert one > 0.05 * exact.norm(), "the test wants draws that err"
    assert mean < 1.5 * drawn.std(0).norm() / 200**0.5 < 0.2 * one


@pytest.mark.parametrize("divergence", [reverse_kl, as_any_other, MixedKL(), EntropyAwareKL()])
def test_draws_are_refused_for_any_but_forward_kl(divergence, trajectories, expert, student):
    with pytest.raises(ValueError, match=r"^label must be .* for any but forward KL, got Sampled"):
        loss_for(Sampled(), divergence, trajectories, student, expert)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GKD(label=Sampled()),
        lambda: KID(label=Sampled()),
        lambda: DistiLLM(label=Sampled()),
        lambda: SKD(label=Sampled(), divergence=MixedKL()),
        lambda: Switch(label=Sampled(), divergence=MixedKL()),
        lambda: AdaSwitch(label=Sampled(), divergence=EntropyAwareKL()),
    ],
)
def test_agents_refuse_draws_for_their_divergence_before_they_learn(make):
    with pytest.raises(ValueError, match=r"^label must be .* for any but forward KL, got Sampled"):
        make()


def test_agents_that_learn_by_forward_kl_take_draws():
    assert GKD(label=Sampled(), teacher_weight=0).minimized is forward_kl
    assert DistiLLM(label=Sampled(), skew=0).divergence is forward_kl


def test_fewer_draws_than_one_are_refused():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Sampled(k=0)
