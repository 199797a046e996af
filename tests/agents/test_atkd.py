import pytest
import torch

from tests.support.updates import ROWS, assert_learn_the_same, collect, learn
from textgen_agents.atkd import ATKD
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.rollouts.schedules import Constant
from textgen_env.experts.expert import NeuralExpert
from textgen_env.types import Writer


def best(model, trajectories):
    with torch.no_grad():
        logits = model.sequence_logits(trajectories.source, trajectories.actions)
    return logits[..., 2:].argmax(-1) + 2


def test_a_coin_for_each_token_says_who_writes_its_best(env, expert, tiny_student):
    trajectories = collect(ATKD(), env, tiny_student)
    mask, writer = trajectories.mask, trajectories.writer
    for who, model in ((Writer.STUDENT, tiny_student), (Writer.EXPERT, expert.model)):
        his = mask & (writer == who)
        assert torch.equal(trajectories.actions[his], best(model, trajectories)[his])
    shares = torch.bincount(writer[mask], minlength=3) / mask.sum()
    assert shares[Writer.DATA] == 0
    assert 0.3 < shares[Writer.STUDENT] < 0.7
    assert any(len(set(row[:3].tolist())) == 2 for row in writer), "not a coin for each text"
    assert any(len(set(column.tolist())) == 2 for column in writer.T), "nor for each position"


@pytest.mark.parametrize(("share", "who"), [(1.0, Writer.STUDENT), (0.0, Writer.EXPERT)])
def test_at_the_ends_one_writes_all(env, tiny_student, share, who):
    trajectories = collect(ATKD(student_fraction=share), env, tiny_student)
    assert trajectories.writer[trajectories.mask].eq(who).all()


def test_written_by_the_student_alone_the_states_are_on_policys(env, tiny_student):
    on_policy = collect(ImitKDFull(beta=Constant(0.0)), env, tiny_student)
    trajectories = collect(ATKD(student_fraction=1.0), env, tiny_student)
    assert torch.equal(trajectories.actions, on_policy.actions)


def kl(p, q):
    return (p * (p / q).log()).sum()


def expected_loss(student, teacher, trajectories, easy_weight):
    """Token by token and in double precision, as the paper has it: a mean over each half."""
    inputs = trajectories.source, trajectories.actions
    with torch.no_grad():
        q, p = (model.sequence_logits(*inputs).double().softmax(-1) for model in (student, teacher))
    doubts, about, others = [], [], []
    for row, column in trajectories.mask.nonzero().tolist():
        token = trajectories.actions[row, column]
        rest = torch.arange(p.shape[-1]) != token
        one, other = p[row, column], q[row, column]
        pair = (
            torch.stack([one[token], one[rest].sum()]),
            torch.stack([other[token], other[rest].sum()]),
        )
        about.append(kl(*pair))
        others.append(kl(one[rest] / one[rest].sum(), other[rest] / other[rest].sum()))
        doubts.append(1 - one[token])
    median = sorted(doubts)[(len(doubts) - 1) // 2]
    easy = [rest for rest, doubt in zip(others, doubts, strict=True) if doubt < median]
    hard = [
        pair + rest
        for pair, rest, doubt in zip(about, others, doubts, strict=True)
        if doubt >= median
    ]
    total = easy_weight * sum(easy) + (1 - easy_weight) * sum(hard)
    return float(2 * total / len(doubts)), len(easy), len(hard)


@pytest.mark.parametrize("easy_weight", [0.0, 0.2, 1.0])
def test_sure_tokens_teach_the_others_alone(env, expert, tiny_student, easy_weight):
    trajectories, loss, _ = learn(ATKD(easy_weight=easy_weight), env, tiny_student)
    expected, easy, hard = expected_loss(tiny_student, expert.model, trajectories, easy_weight)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert 0 < hard - easy <= 2, "halves"


def test_a_student_that_is_the_teacher_has_nothing_to_learn(tiny_task, make_env, make_table_model):
    student, teacher = make_table_model(tiny_task, 4), make_table_model(tiny_task, 4)
    env = make_env(tiny_task, ROWS, NeuralExpert(teacher))
    _, loss, gradients = learn(ATKD(), env, student)
    assert loss == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(gradients["tables"], torch.zeros_like(gradients["tables"]))


def test_equal_doubt_everywhere_is_finite(tiny_task, make_env, make_table_model):
    teacher = make_table_model(tiny_task, 4)
    teacher.tables.data.zero_()
    env = make_env(tiny_task, ROWS, NeuralExpert(teacher))
    _, loss, gradients = learn(ATKD(), env, make_table_model(tiny_task, 1))
    assert loss.isfinite()
    assert gradients["tables"].isfinite().all()


def test_the_seed_alone_decides(env, tiny_student):
    assert_learn_the_same(ATKD(), ATKD(), env, tiny_student)
    one, other = (collect(ATKD(), env, tiny_student, seed=seed) for seed in (0, 1))
    width = min(one.writer.shape[1], other.writer.shape[1])
    assert not torch.equal(one.writer[:, :width], other.writer[:, :width])


@pytest.mark.parametrize("argument", ["student_fraction", "easy_weight"])
def test_settings_outside_their_range_are_refused(argument):
    with pytest.raises(ValueError, match=rf"^{argument} must be in \[0, 1\], got 1.5"):
        ATKD(**{argument: 1.5})
