from dataclasses import replace

import pytest
import torch

from tests.support.updates import ROWS, assert_learn_the_same, collect, learn
from textgen_agents.distillm import DistiLLM2
from textgen_agents.f_distill import JS, KL, RKL, TVD, FDistill
from textgen_agents.gkd import GKD
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import NeuralExpert
from textgen_env.experts.queries import Queries
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Trajectories, Writer

KINDS = [KL(), RKL(), JS(0.3), TVD()]


def distributions(trajectories, student, expert):
    """Return the teacher's and the student's (B, T, V) in double precision."""
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    return (each.detach().double().softmax(-1) for each in (expert.logits(trajectories), logits))


def kl(one, other):
    return (one * (one / other).log()).sum(-1)


def by_hand(kind, p, q):
    """Return the terms of a state of a teacher's text and of a student's, for each kind."""
    if isinstance(kind, KL):
        return kl(p, q), None
    if isinstance(kind, RKL):
        return None, kl(q, p)
    if isinstance(kind, TVD):
        halved = (p - q).abs().sum(-1) / 2
        return halved, halved
    m = kind.teacher_weight * p + (1 - kind.teacher_weight) * q
    return 2 * kind.teacher_weight * kl(p, m), 2 * (1 - kind.teacher_weight) * kl(q, m)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_each_text_has_its_own_term(env, expert, tiny_student, kind):
    trajectories, loss, _ = learn(FDistill(kind=kind), env, tiny_student)
    p, q = distributions(trajectories, tiny_student, expert)
    on_data, on_student = by_hand(kind, p, q)
    total = 0.0
    for row, column in trajectories.mask.nonzero().tolist():
        by_student = trajectories.writer[row, column] == Writer.STUDENT
        total += (on_student if by_student else on_data)[row, column].item()
    assert loss.item() == pytest.approx(total / int(trajectories.mask.sum()), rel=1e-4)


def on_equal_prefixes(env):
    """Return the same texts twice, once as the data's and once as the student's."""
    data = Trajectories.from_examples(env.examples, env.special)
    own = replace(data, writer=torch.full_like(data.writer, Writer.STUDENT))
    return data, Trajectories.cat([data, own], env.special)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_js_on_equal_prefixes_is_gkds(env, expert, tiny_student, weight):
    once, twice = on_equal_prefixes(env)
    loss = FDistill(kind=JS(weight)).loss(LabelledBatch(twice), tiny_student, expert)
    expected = GKD(teacher_weight=weight).loss(LabelledBatch(once), tiny_student, expert)
    parameters = list(tiny_student.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))


def test_js_of_even_weight_is_distillm2_of_even_skew(env, tiny_student):
    one = FDistill(kind=JS(0.5), sampling=Sampling())
    assert_learn_the_same(one, DistiLLM2(skew=0.5, sampling=Sampling()), env, tiny_student)


def test_kl_is_word_kd_on_the_teachers_texts(tiny_task, make_env, env, expert, tiny_student):
    agent = FDistill(kind=KL())
    prepared = make_env(tiny_task, ROWS, expert, agent.prepare(env.examples, expert, env.max_steps))
    assert not torch.equal(prepared.examples.reference, env.examples.reference)
    assert_learn_the_same(agent, WordKD(), prepared, tiny_student)


def test_rkl_is_gkd_at_that_end(env, expert, tiny_student):
    trajectories = collect(FDistill(kind=RKL()), env, tiny_student)
    assert trajectories.writer[trajectories.mask].eq(Writer.STUDENT).all()
    losses = [
        agent.loss(LabelledBatch(trajectories), tiny_student, expert)
        for agent in (FDistill(kind=RKL()), GKD(teacher_weight=1))
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("agent", [FDistill(), DistiLLM2()], ids=["f_distill", "distillm2"])
def test_both_texts_of_the_same_examples(env, tiny_student, agent):
    both = collect(agent, env, tiny_student)
    assert len(both) == 2 * ROWS
    data, own = both.select(torch.arange(ROWS)), both.select(torch.arange(ROWS, 2 * ROWS))
    assert torch.equal(data.source, own.source)
    assert torch.equal(data.reference, own.reference)
    assert data.writer[data.mask].eq(Writer.DATA).all()
    width = data.reference.shape[1]
    assert torch.equal(data.actions[:, :width], data.reference)
    assert own.writer[own.mask].eq(Writer.STUDENT).all()


def test_a_text_that_no_term_is_about_is_not_written(env, expert, tiny_student, monkeypatch):
    examples = FDistill(kind=RKL()).prepare(env.examples, expert, env.max_steps)
    assert examples is env.examples
    assert expert.queries == Queries()
    monkeypatch.setattr(type(tiny_student), "step", None)  # the student cannot write
    assert len(collect(FDistill(kind=KL()), env, tiny_student)) == ROWS


def test_the_teachers_texts_are_those_of_its_beam(tiny_task, env, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    found = FDistill().prepare(env.examples, expert, env.max_steps)
    beam = expert.write(env.examples, max_steps=env.max_steps, beam_size=5)
    assert torch.equal(found.reference, beam.reference)
    assert torch.equal(found.source, env.examples.source)
    greedy = expert.write(env.examples, max_steps=env.max_steps, beam_size=1)
    assert not torch.equal(beam.reference, greedy.reference)
    one = FDistill(beam_size=1).prepare(env.examples, expert, env.max_steps)
    assert torch.equal(one.reference, greedy.reference)


def test_the_student_draws_from_its_best_40():
    assert FDistill().sampling == Sampling(top_k=40)


@pytest.mark.parametrize("weight", [0.0, 1.0, -1.0])
def test_js_refuses_its_ends(weight):
    with pytest.raises(
        ValueError, match=rf"teacher_weight must be in \(0, 1\), got {weight}; .*KL"
    ):
        JS(weight)
