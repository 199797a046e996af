import pytest
import torch

from tests.support.updates import collect, learn
from textgen_agents.distillm import DistiLLM2
from textgen_agents.losses.labels import LabelledBatch
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Trajectories, Writer


def expected_loss(trajectories, student, expert, skew):
    """Skewed KL at the data's states, skewed reverse KL at the student's, in double precision."""
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    q = logits.detach().double().softmax(-1)
    p = expert.logits(trajectories).double().softmax(-1)
    forward = (p * (p / (skew * p + (1 - skew) * q)).log()).sum(-1)
    reverse = (q * (q / (skew * q + (1 - skew) * p)).log()).sum(-1)
    by_student = trajectories.writer == Writer.STUDENT
    return reverse.where(by_student, forward)[trajectories.mask].mean().item()


@pytest.mark.parametrize("skew", [0.1, 0.6])
def test_each_text_has_its_skewed_divergence(env, expert, tiny_student, skew):
    trajectories, loss, _ = learn(DistiLLM2(skew=skew), env, tiny_student)
    expected = expected_loss(trajectories, tiny_student, expert, skew)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_without_skew_it_would_be_kl_both_ways(env, expert, tiny_student):
    trajectories, loss, _ = learn(DistiLLM2(skew=1e-4), env, tiny_student)
    expected = expected_loss(trajectories, tiny_student, expert, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_the_loss_of_a_batch_is_that_of_its_parts(env, expert, tiny_student):
    """However the two texts of an example are sorted and cut: one mean over all states."""
    agent = DistiLLM2()
    trajectories = collect(agent, env, tiny_student)
    whole = agent.loss(LabelledBatch(trajectories), tiny_student, expert)
    by_length = trajectories.mask.sum(1).argsort(stable=True)
    shares = []
    for rows in by_length.split(7):
        part = trajectories.select(rows).trimmed(env.special)
        shares.append(agent.loss(LabelledBatch(part), tiny_student, expert) * part.mask.sum())
    torch.testing.assert_close(sum(shares) / trajectories.mask.sum(), whole)


def test_the_teachers_texts_are_drawn_once_and_alike(tiny_task, env, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    one, other = (DistiLLM2().prepare(env.examples, expert, env.max_steps) for _ in range(2))
    assert torch.equal(one.reference, other.reference)
    assert torch.equal(one.source, env.examples.source)
    best = expert.write(env.examples, max_steps=env.max_steps, beam_size=1)
    assert not torch.equal(one.reference, best.reference)
    sure = DistiLLM2(sampling=Sampling(top_k=1)).prepare(env.examples, expert, env.max_steps)
    assert torch.equal(sure.reference, best.reference)


def test_both_draw_from_the_papers_nucleus(tiny_task, env, make_table_model):
    """None of the teacher's tokens is outside the most probable ones that reach 0.95."""
    teacher = make_table_model(tiny_task, 3)
    agent = DistiLLM2()
    assert agent.sampling == Sampling(temperature=0.8, top_p=0.95)
    expert = NeuralExpert(teacher)
    drawn = agent.prepare(env.examples, expert, env.max_steps)
    states = Trajectories.from_examples(drawn, env.special)
    logits = teacher.sequence_logits(states.source, states.actions).detach()
    logits[..., :2] = float("-inf")  # never written
    probs = (logits / 0.8).softmax(-1)
    chosen = probs.gather(-1, states.actions[..., None])
    better = probs.where(probs > chosen, 0.0).sum(-1)[states.mask]
    assert better.max() < 0.95
    assert better.max() > 0.5


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_a_skew_at_an_end_is_refused(skew):
    with pytest.raises(ValueError, match=rf"skew must be in \(0, 1\), got {skew}"):
        DistiLLM2(skew=skew)
