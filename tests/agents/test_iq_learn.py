from dataclasses import replace

import pytest
import torch

from tests.support.toy import Given, record
from tests.support.updates import assert_learn_the_same, context_of, learn
from textgen_agents.iq_learn import IQLearn
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_env.experts.expert import NoExpert

TEXTS = [3, 4, 2], [5, 2], [4, 3, 3]  # the last one is cut off at the limit


def with_offset(texts, offset=0.0):
    return LabelledBatch(texts, {"offset": torch.full(texts.mask.shape, offset)})


@pytest.fixture
def student():
    return Given(2 * torch.randn(3, 3, 6, generator=torch.Generator().manual_seed(0)))


def test_without_the_regularizer_it_is_mle(env, tiny_student):
    assert_learn_the_same(IQLearn(td_weight=0), MLE(), env, tiny_student)


def test_the_loss_is_as_computed_by_hand(student):
    table = student.table.detach().double()
    values = table.logsumexp(-1)
    total = 0.0
    for row, text in enumerate(TEXTS):
        for step, action in enumerate(text):
            total += values[row, step] - table[row, step, action]
            if action == 2:
                total += 0.3 * (table[row, step, action] + 1.5) ** 2
            elif step + 1 < len(text):
                error = table[row, step, action] + 1.5 - 0.9 * (values[row, step + 1] + 1.5)
                total += 0.3 * error**2
    loss = IQLearn(td_weight=0.3, discount=0.9).loss(
        with_offset(record(*TEXTS), 1.5), student, NoExpert()
    )
    assert loss.item() == pytest.approx(total.item() / 8, rel=1e-5)


def test_what_comes_after_the_end_has_no_value(student):
    def loss():
        return IQLearn().loss(with_offset(record(*TEXTS)), student, NoExpert())

    before = loss()
    before.backward()
    assert not student.table.grad[1, 2].any()
    with torch.no_grad():
        student.table[1, 2] += 100
    assert torch.equal(loss(), before)


def test_where_the_values_agree_it_adds_nothing(student):
    """Logits made from the end: each action's value is that of the state it leads to."""
    with torch.no_grad():
        table = student.table[0]
        table[2, 2] = 0.0
        table[1, 4] = table[2].logsumexp(0)
        table[0, 3] = table[1].logsumexp(0)
    text = record(TEXTS[0])
    student.table.data = student.table.data[:1]
    losses = [
        agent.loss(with_offset(text), student, NoExpert())
        for agent in (IQLearn(td_weight=5.0), MLE())
    ]
    torch.testing.assert_close(*losses)
    with torch.no_grad():
        student.table += 1  # nothing to cross-entropy, another value unless the offset follows
    assert IQLearn(td_weight=5.0).loss(with_offset(text), student, NoExpert()) > losses[1] + 1


def squared_errors(env, student, offset, discount):
    """Sum the squared errors over the first examples, state by state, in float64."""
    examples = env.examples.select(torch.arange(env.num_envs))
    with torch.no_grad():
        table = student.sequence_logits(examples.source, examples.reference).double() + offset
    values, total = table.logsumexp(-1), 0.0
    for row, text in enumerate(examples.reference.tolist()):
        for step, action in enumerate(text):
            if action == 2:
                total += table[row, step, action].item() ** 2
            elif action > 2 and step + 1 < len(text):
                total += (table[row, step, action] - discount * values[row, step + 1]).item() ** 2
    return total


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_offset_is_the_one_of_least_squared_error(env, tiny_student, discount):
    batch = IQLearn(discount=discount).collect(context_of(env, tiny_student))
    offset = batch.labels["offset"].unique().item()
    least = squared_errors(env, tiny_student, offset, discount)
    for other in (offset - 0.1, offset + 0.1, 0.0):
        assert squared_errors(env, tiny_student, other, discount) > least


class Shifted(torch.nn.Module):
    """A model with a number added to all of its logits."""

    def __init__(self, inner, shift):
        super().__init__()
        self.inner, self.shift = inner, shift

    def sequence_logits(self, source, actions):
        return self.inner.sequence_logits(source, actions) + self.shift


def test_a_number_added_to_all_logits_changes_nothing(env, tiny_student):
    """An output layer without bias has logits at any height, 12 at the end of a text for one."""
    _, loss, gradients = learn(IQLearn(), env, tiny_student)
    _, shifted_loss, shifted = learn(IQLearn(), env, Shifted(tiny_student, 12.0))
    torch.testing.assert_close(shifted_loss, loss, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shifted[f"inner.{name}"], gradient, rtol=1e-3, atol=1e-4)


def test_padding_adds_nothing(student):
    narrow = record(*TEXTS)
    wide = replace(
        narrow,
        actions=torch.nn.functional.pad(narrow.actions, (0, 2)),
        writer=torch.nn.functional.pad(narrow.writer, (0, 2)),
        mask=torch.nn.functional.pad(narrow.mask, (0, 2)),
    )
    expected = IQLearn().loss(with_offset(narrow), student, NoExpert())
    wider = Given(torch.nn.functional.pad(student.table.detach(), (0, 0, 0, 2), value=7.0))
    torch.testing.assert_close(IQLearn().loss(with_offset(wide), wider, NoExpert()), expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"td_weight": -1.0}, "td_weight must be at least 0, got -1.0; 0 is mle"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        IQLearn(**setting)
