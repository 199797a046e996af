"""Marks of the student's tokens by the reference, and what is learned from them."""

import itertools

import pytest
import torch

from tests.support.copying import CopyTable
from tests.support.toy import SPECIAL, Given, record
from tests.support.updates import context_of, learn, loss_and_gradients
from textgen_agents.contrastive_markings import ContrastiveMarkings, right_tokens
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_env.experts.expert import NoExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import Writer


def test_marks_and_loss_by_hand(env, tiny_student):
    agent = ContrastiveMarkings(right_weight=0.25, wrong_weight=2.0)
    states, loss, _ = learn(agent, env, tiny_student)
    logits = tiny_student.sequence_logits(states.source, states.actions).detach().double()
    right, total = right_tokens(states, env.special), 0.0
    kinds = set()
    for row, column in states.mask.nonzero().tolist():
        probability = logits[row, column].softmax(-1)[states.actions[row, column]]
        kind = (
            int(states.writer[row, column]) == Writer.STUDENT,
            bool(right[row, column]),
        )
        kinds.add(kind)
        total -= {
            (False, True): probability.log(),
            (True, True): 0.25 * probability.log(),
            (True, False): 2.0 * (1 - probability).log(),
        }[kind]
    assert len(kinds) == 3, "the test wants tokens of each kind"
    assert loss.item() == pytest.approx(float(total / states.mask.sum()), rel=1e-5)


def test_without_weight_it_is_mle_over_more_tokens(env, tiny_student):
    states, loss, gradients = learn(ContrastiveMarkings(None, 0.0, 0.0), env, tiny_student)
    data = states.select(torch.arange(len(states) // 2))
    alone, expected = loss_and_gradients(MLE(), LabelledBatch(data), tiny_student, env.expert)
    share = data.mask.sum() / states.mask.sum()
    torch.testing.assert_close(loss, share * alone)
    torch.testing.assert_close(gradients, {name: share * g for name, g in expected.items()})


def test_a_certain_mistake_has_a_finite_gradient(env, tiny_student):
    states = record([3, SPECIAL.end])
    student = Given(torch.tensor([[[0.0, 0.0, 0.0, 200.0], [0.0, 0.0, 200.0, 0.0]]]))
    states.writer.fill_(Writer.STUDENT)
    batch = LabelledBatch(states, {"right": torch.tensor([[False, False]])})
    loss = ContrastiveMarkings().loss(batch, student, NoExpert())
    loss.backward()
    assert loss.isfinite()
    torch.testing.assert_close(student.table.grad[0, 0, 3].item(), 0.25)  # half of a mean of two


@pytest.mark.parametrize("field", ["right_weight", "wrong_weight"])
def test_negative_weights_are_refused(field):
    with pytest.raises(ValueError, match=rf"^{field} must be at least 0"):
        ContrastiveMarkings(**{field: -0.1})


AFTER, READ, WRONG = 4, 6, 7


def unlearned(agent, make_env):
    """Return the probabilities of a copying student with one corrupted bigram, and those learned.

    Both are (V, V, V), by the token written last, the one to copy and the next one.
    """
    task = copy_task(CopyConfig(6, min_length=3, max_length=6, num_train=400))
    student = CopyTable(task.tokenizer.vocab_size, right=4.0)
    student.corrupt(AFTER, READ, WRONG, excess=2.0)
    env, before = make_env(task, 32), student.probabilities()
    optimizer = torch.optim.SGD(student.parameters(), lr=60.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        indices = torch.randint(len(env.examples), (32,), generator=generator)
        batch = agent.collect(context_of(env, student, indices, seed=generator))
        optimizer.zero_grad()
        agent.loss(batch, student, env.expert).backward()
        optimizer.step()
    return before, student.probabilities()


def test_a_corrupted_bigram_is_unlearned_and_nothing_else(make_env):
    """The experiment with a known answer: a student that copies, and errs after one word."""
    before, learned = unlearned(ContrastiveMarkings(), make_env)
    assert before[AFTER, READ, WRONG] > 0.8
    assert learned[AFTER, READ, WRONG] < 0.1
    words = range(3, len(before))
    for previous, token in itertools.product((SPECIAL.start, *words), (*words, SPECIAL.end)):
        assert learned[previous, token, token] >= before[previous, token, token] - 1e-6
    _, by_references = unlearned(ContrastiveMarkings(None, 0.0, 0.0), make_env)
    assert by_references[AFTER, READ, WRONG] > 1.4 * learned[AFTER, READ, WRONG]
