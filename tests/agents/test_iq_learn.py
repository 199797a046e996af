from dataclasses import replace

import pytest
import torch

from tests.support.toy import Given, record
from tests.support.updates import assert_learn_the_same
from textgen_agents.iq_learn import IQLearn
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_env.experts.expert import NoExpert

TEXTS = [3, 4, 2], [5, 2], [4, 3, 3]  # the last one is cut off at the limit


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
                total += 0.3 * table[row, step, action] ** 2
            elif step + 1 < len(text):
                error = table[row, step, action] - 0.9 * values[row, step + 1]
                total += 0.3 * error**2
    loss = IQLearn(td_weight=0.3, discount=0.9).loss(
        LabelledBatch(record(*TEXTS)), student, NoExpert()
    )
    assert loss.item() == pytest.approx(total.item() / 8, rel=1e-5)


def test_what_comes_after_the_end_has_no_value(student):
    def loss():
        return IQLearn().loss(LabelledBatch(record(*TEXTS)), student, NoExpert())

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
        agent.loss(LabelledBatch(text), student, NoExpert())
        for agent in (IQLearn(td_weight=5.0), MLE())
    ]
    torch.testing.assert_close(*losses)
    with torch.no_grad():
        student.table += 1  # nothing to cross-entropy, another value to the regularizer
    assert IQLearn(td_weight=5.0).loss(LabelledBatch(text), student, NoExpert()) > losses[1] + 1


def test_padding_adds_nothing(student):
    narrow = record(*TEXTS)
    wide = replace(
        narrow,
        actions=torch.nn.functional.pad(narrow.actions, (0, 2)),
        writer=torch.nn.functional.pad(narrow.writer, (0, 2)),
        mask=torch.nn.functional.pad(narrow.mask, (0, 2)),
    )
    expected = IQLearn().loss(LabelledBatch(narrow), student, NoExpert())
    wider = Given(torch.nn.functional.pad(student.table.detach(), (0, 0, 0, 2), value=7.0))
    torch.testing.assert_close(IQLearn().loss(LabelledBatch(wide), wider, NoExpert()), expected)


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
