"""Texts that the teacher corrects at one token, and the three terms that are learned from them."""

import math
from functools import partial

import pytest
import torch

from tests.support.copying import CopyTable
from tests.support.updates import context_of, learn, loss_and_gradients
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, LabelledBatch
from textgen_agents.losses.objectives import loss_for, token_loss
from textgen_agents.mgsr import MGSR, one_rest
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import Writer


def copy_the_source(source, prefix, length):
    return source.gather(1, length.clamp(max=source.shape[1] - 1)[:, None]).squeeze(1)


def test_a_student_that_errs_in_one_state_is_corrected_there(make_env):
    """The experiment with a known answer: t* is that state, the corrected text the reference."""
    task = copy_task(CopyConfig(8, min_length=4, max_length=8, num_train=1600))
    student = CopyTable(task.tokenizer.vocab_size, right=14.0)
    after, read, wrong = 4, 6, 7
    student.corrupt(after, read, wrong, excess=14.0)
    env = make_env(task, 1, ScriptedExpert(copy_the_source, task.tokenizer.vocab_size))
    reference = env.examples.reference
    erring = (reference[:, :-1] == after) & (reference[:, 1:] == read)
    once = (erring.sum(1) == 1).nonzero().squeeze(1)
    env = make_env(task, len(once), env.expert)
    states = MGSR().collect(context_of(env, student, once)).trajectories
    place = (states.writer == Writer.EXPERT).float().argmax(1)
    expected = erring[once].float().argmax(1) + 1
    assert len(once) > 100
    assert (place == expected).float().mean() > 0.99
    width = states.actions.shape[1]
    assert (states.actions == reference[once, :width]).all(1).float().mean() > 0.99
    assert (states.writer[states.mask] == Writer.EXPERT).sum() == len(once)


def test_the_text_before_the_correction_is_the_students(tiny_task, make_env, make_table_model):
    student, expert = make_table_model(tiny_task, 3), NeuralExpert(make_table_model(tiny_task, 4))
    env = make_env(tiny_task, 24, expert)
    states = MGSR(sampling=None).collect(context_of(env, student)).trajectories
    logits = student.sequence_logits(states.source, states.actions)
    own = torch.cat([logits[..., 2:].argmax(-1) + 2], -1)
    by_student = states.mask & (states.writer == Writer.STUDENT)
    assert torch.equal(states.actions[by_student], own[by_student])
    by_expert = states.mask & (states.writer == Writer.EXPERT)
    assert by_expert.sum(1).eq(1).all()
    assert torch.equal(states.actions[by_expert], expert.best_actions(states)[by_expert])
    assert len(set(by_expert.float().argmax(1).tolist())) > 1, "at different places"


def reference_loss_of(agent, states, student, expert):
    """Return the loss in double precision, token by token."""
    logits = student.sequence_logits(states.source, states.actions).detach().double()
    p, q = expert.logits(states).double().softmax(-1), logits.softmax(-1)
    total, size = 0.0, p.shape[-1]
    for row, column in states.mask.nonzero().tolist():
        ps, qs = p[row, column].tolist(), q[row, column].tolist()
        action = int(states.actions[row, column])
        ordered = sorted(ps)
        least, most = (ordered[round((size - 1) * share)] for share in (agent.lower, agent.upper))
        kept = [token for token in range(size) if least <= ps[token] <= most or token == action]
        sides = [
            [*(side[token] for token in kept), 1 - sum(side[token] for token in kept)]
            for side in (ps, qs)
        ]
        total -= math.log(qs[action])
        total += agent.clipped_weight * sum(
            a * math.log(a / b) for a, b in zip(*sides, strict=True) if a > 1e-12
        )
        if column:
            pairs = p[row, column - 1] * p[row, column] - q[row, column - 1] * q[row, column]
            total += agent.span_weight * float(pairs.square().sum())
    return total / int(states.mask.sum())


@pytest.mark.parametrize(("lower", "upper"), [(0.5, 1.0), (0.2, 0.8), (0.0, 0.3)])
def test_the_loss_against_sums_in_double_precision(env, expert, tiny_student, lower, upper):
    agent = MGSR(clipped_weight=0.7, span_weight=3.0, lower=lower, upper=upper)
    states, loss, _ = learn(agent, env, tiny_student)
    expected = reference_loss_of(agent, states, tiny_student, expert)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_without_clipping_it_is_forward_kl_and_cross_entropy(env, expert, tiny_student):
    agent = MGSR(span_weight=0.0, lower=0.0, upper=1.0)
    states, loss, gradients = learn(agent, env, tiny_student)
    tiny_student.zero_grad()
    expected = token_loss(states, tiny_student, states.actions) + loss_for(
        Dense(), forward_kl, states, tiny_student, expert
    )
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    found = {name: parameter.grad for name, parameter in tiny_student.named_parameters()}
    torch.testing.assert_close(gradients, found)


def test_without_other_terms_it_clones_the_corrected_text(env, expert, tiny_student):
    agent = MGSR(clipped_weight=0.0, span_weight=0.0)
    batch = agent.collect(context_of(env, tiny_student))
    loss, _ = loss_and_gradients(agent, batch, tiny_student, expert)
    states = batch.trajectories
    torch.testing.assert_close(loss, token_loss(states, tiny_student, states.actions).detach())


def test_a_rest_has_the_probability_of_what_it_stands_for():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    found, whole = one_rest(logits, kept).softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(found[:, :-1], whole.masked_fill(~kept, 0.0))
    torch.testing.assert_close(found[:, -1], whole.masked_fill(kept, 0.0).sum(-1))


def test_equal_models_have_nothing_to_learn_but_their_text(env, tiny_student):
    expert = NeuralExpert(tiny_student)
    states = MGSR().collect(context_of(env, tiny_student)).trajectories
    loss = MGSR().loss(LabelledBatch(states), tiny_student, expert)
    torch.testing.assert_close(loss, token_loss(states, tiny_student, states.actions))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(MGSR, lower=0.8, upper=0.5), r"upper must be at least lower = 0\.8, got 0\.5"),
        (partial(MGSR, lower=-0.1), "lower must be in"),
        (partial(MGSR, span_weight=-1.0), "span_weight must be at least 0"),
    ],
)
def test_settings_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_a_teacher_of_single_tokens_is_refused(expert, monkeypatch):
    monkeypatch.setattr(NeuralExpert, "largest_k", 1)
    with pytest.raises(ExpertError, match="must give the whole distribution"):
        MGSR().check_expert(expert)
