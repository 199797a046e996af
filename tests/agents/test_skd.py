import pytest
import torch

from tests.support.updates import ROWS, assert_learn_the_same, collect
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd import SeqKDFull
from textgen_agents.skd import SKD
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Writer

ON_POLICY = ImitKDFull(beta=Constant(0.0))


def greedy(k):
    return SKD(k=k, sampling=None, expert_sampling=None)


def ranks(logits, actions):
    """How many tokens are more probable than each action."""
    return (logits > logits.gather(-1, actions[..., None])).sum(-1)


def best(logits):
    """Return the most probable token that may be written."""
    return logits[..., 2:].argmax(-1) + 2


def test_with_k_the_vocabulary_it_is_on_policy_distillation(env, tiny_student):
    agent = greedy(env.vocab_size)
    assert collect(agent, env, tiny_student).writer.eq(Writer.STUDENT).all()
    assert_learn_the_same(agent, ON_POLICY, env, tiny_student)


def test_with_k_1_it_is_distillation_on_the_teachers_text(tiny_task, make_env, env, tiny_student):
    # Greedy: either the student's token is the teacher's best, or the teacher writes that.
    text = SeqKDFull(beam_size=1).prepare(env.examples, env.expert, env.max_steps)
    of_teacher = make_env(tiny_task, ROWS, env.expert, text)
    assert_learn_the_same(greedy(1), SeqKDFull(), of_teacher, tiny_student)


@pytest.mark.parametrize("k", [4, 7])
def test_a_token_is_the_students_iff_the_teacher_has_it_among_its_k_best(
    tiny_task, make_env, make_table_model, k
):
    student, teacher = make_table_model(tiny_task, 1), make_table_model(tiny_task, 2)
    env = make_env(tiny_task, ROWS, NeuralExpert(teacher))
    trajectories = collect(greedy(k), env, student)
    inputs = trajectories.source, trajectories.actions
    with torch.no_grad():
        proposals = best(student.sequence_logits(*inputs))
        logits = teacher.sequence_logits(*inputs)
    stays = ranks(logits, proposals) < k
    mask = trajectories.mask
    assert 0.1 < stays[mask].float().mean() < 0.95
    assert torch.equal(trajectories.writer[mask] == Writer.STUDENT, stays[mask])
    assert torch.equal(trajectories.writer[mask] == Writer.EXPERT, ~stays[mask])
    assert torch.equal(trajectories.actions[mask], proposals.where(stays, best(logits))[mask])


def test_what_the_teacher_draws_in_place_is_from_its_own_sampling(env, tiny_student):
    agent = SKD(k=1, sampling=Sampling(temperature=9.0), expert_sampling=Sampling(top_k=2))
    trajectories = collect(agent, env, tiny_student)
    with torch.no_grad():
        logits = env.expert.model.sequence_logits(trajectories.source, trajectories.actions)
    logits[..., :2] = float("-inf")  # padding and start, which nobody writes
    by_expert = trajectories.mask & (trajectories.writer == Writer.EXPERT)
    drawn = ranks(logits, trajectories.actions)[by_expert]
    assert set(drawn.tolist()) == {0, 1}


def test_the_papers_settings_are_the_defaults():
    agent = SKD()
    assert agent.k == 25
    assert agent.sampling == Sampling(temperature=0.5, top_p=0.5)
    assert agent.expert_sampling == Sampling(temperature=0.2, top_p=0.5)


def test_k_below_1_is_refused():
    with pytest.raises(ValueError, match=r"^k must be at least 1, got 0"):
        SKD(k=0)
