import pytest
import torch

from tests.support.updates import assert_learn_the_same, collect, learn
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.word_kd import WordKD
from textgen_env.types import Writer

ALONE = GKD(student_fraction=1.0)


def losses_of(trajectories, student, expert, weight):
    """Return the generalized divergence of every counted state in double precision."""
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    q = logits.detach().double().softmax(-1)[trajectories.mask]
    p = expert.logits(trajectories).double().softmax(-1)[trajectories.mask]
    m = weight * p + (1 - weight) * q
    return (weight * p * (p / m).log() + (1 - weight) * q * (q / m).log()).sum(-1)


def test_without_student_text_and_with_forward_kl_it_is_word_kd(env, tiny_student):
    assert_learn_the_same(GKD(student_fraction=0, teacher_weight=0), WordKD(), env, tiny_student)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_the_loss_is_the_mean_divergence_of_that_weight(env, expert, tiny_student, weight):
    agent = GKD(student_fraction=1, teacher_weight=weight)
    trajectories, loss, _ = learn(agent, env, tiny_student)
    expected = losses_of(trajectories, tiny_student, expert, weight).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_are_what_the_divergence_tends_to(env, tiny_student, end):
    trajectories = collect(ALONE, env, tiny_student)
    near = (
        GKD(teacher_weight=abs(end - 1e-3)).loss(
            LabelledBatch(trajectories), tiny_student, env.expert
        )
        / 1e-3
    )
    at = GKD(teacher_weight=end).loss(LabelledBatch(trajectories), tiny_student, env.expert)
    assert near.item() == pytest.approx(at.item(), rel=0.01)
    other = GKD(teacher_weight=1 - end).loss(LabelledBatch(trajectories), tiny_student, env.expert)
    assert other.item() != pytest.approx(at.item(), rel=0.02)


def test_at_forward_kl_it_learns_from_own_texts_as_imitkd_full_does(env, tiny_student):
    trajectories = collect(ALONE, env, tiny_student)
    losses = [
        agent.loss(LabelledBatch(trajectories), tiny_student, env.expert)
        for agent in (GKD(teacher_weight=0), ImitKDFull(beta=Constant(0.0)))
    ]
    torch.testing.assert_close(*losses)


def test_one_coin_for_each_batch(env, tiny_student):
    by_student = []
    for seed in range(40):
        batch = collect(GKD(student_fraction=0.3), env, tiny_student, seed=seed)
        writers = batch.writer[batch.mask].unique().tolist()
        assert len(writers) == 1
        by_student.append(writers == [Writer.STUDENT])
    assert 4 <= sum(by_student) <= 20  # 12 are expected; one in a thousand is outside


def test_the_ends_of_the_coin_are_sure(env, tiny_student):
    for seed in range(10):
        own = collect(ALONE, env, tiny_student, seed=seed)
        assert own.writer[own.mask].eq(Writer.STUDENT).all()
        data = collect(GKD(student_fraction=0), env, tiny_student, seed=seed)
        assert data.writer[data.mask].eq(Writer.DATA).all()


def test_the_student_draws_its_tokens(env, tiny_student):
    one, other = (collect(ALONE, env, tiny_student, seed=0) for _ in range(2))
    assert torch.equal(one.actions, other.actions)
    generators = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    rows = torch.arange(env.num_envs)
    contexts = [Context(rows, env, tiny_student, generator=each) for each in generators]
    texts = [ALONE.collect(each).trajectories.actions[:, 0] for each in contexts]
    assert not torch.equal(*texts)


@pytest.mark.parametrize("name", ["student_fraction", "teacher_weight"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_what_is_no_share_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got {value}"):
        GKD(**{name: value})
