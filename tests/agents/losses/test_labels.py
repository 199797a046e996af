"""What is kept of the expert's answers, and that a loss cannot tell it from the expert."""

import math

import pytest
import torch

from textgen_agents.losses.divergences import forward_kl, masked_mean, reverse_kl
from textgen_agents.losses.labels import Dense, RecordedExpert, Top1, TopKWithTail
from textgen_agents.losses.objectives import loss_for, token_loss
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

LABELS = [Top1(), TopKWithTail(k=3), Dense()]


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


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
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


@pytest.mark.parametrize("label", [Top1(), TopKWithTail(k=3)])
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
