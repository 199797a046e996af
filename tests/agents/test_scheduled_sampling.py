import pytest
import torch

from tests.support.updates import ROWS, assert_learn_the_same, collect, learn
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.scheduled_sampling import ScheduledSampling
from textgen_env.types import Writer

BY_DATA, BY_STUDENT, BY_COIN = Constant(1.0), Constant(0.0), Constant(0.5)


def test_at_beta_1_it_is_mle(env, tiny_student):
    assert_learn_the_same(ScheduledSampling(beta=BY_DATA), MLE(), env, tiny_student)


def test_it_is_not_once_the_student_writes(env, tiny_student):
    _, data_loss, _ = learn(MLE(), env, tiny_student)
    _, loss, _ = learn(ScheduledSampling(beta=BY_STUDENT), env, tiny_student)
    assert loss != data_loss


@pytest.mark.parametrize("beta", [BY_COIN, BY_STUDENT])
def test_the_data_decides_where_a_text_ends(tiny_task, make_env, make_table_model, beta):
    env, student = make_env(tiny_task, ROWS), make_table_model(tiny_task, 3)
    assert ends_early(student, env), "the test wants a student that would end its texts earlier"
    trajectories = collect(ScheduledSampling(beta=beta), env, student)
    data = trajectories.reference != env.special.pad
    assert torch.equal(trajectories.mask, data[:, : trajectories.mask.shape[1]])
    last = trajectories.mask.sum(1, keepdim=True) - 1
    assert trajectories.actions.gather(1, last).eq(env.special.end).all()
    assert trajectories.writer.gather(1, last).eq(Writer.DATA).all()


def ends_early(student, env):
    """Whether the student, asked on the data's prefixes, would ever end a text before its end."""
    data = env.examples
    inside = (data.reference != env.special.pad) & (data.reference != env.special.end)
    best = student.sequence_logits(data.source, data.reference)[..., 2:].argmax(-1) + 2
    return bool((best == env.special.end)[inside].any())


def test_who_wrote_a_token_is_recorded(env, tiny_student):
    trajectories = collect(ScheduledSampling(beta=BY_COIN), env, tiny_student)
    data = trajectories.reference[:, : trajectories.actions.shape[1]]
    by_data = trajectories.mask & (trajectories.writer == Writer.DATA)
    by_student = trajectories.mask & (trajectories.writer == Writer.STUDENT)
    assert torch.equal(trajectories.actions[by_data], data[by_data])
    with torch.no_grad():
        logits = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
    best = logits[..., 2:].argmax(-1) + 2
    assert torch.equal(trajectories.actions[by_student], best[by_student])
    assert 0.25 < by_student.sum() / trajectories.mask.sum() < 0.6


@pytest.mark.parametrize("block", [2, 5])
def test_a_block_has_one_writer(env, make_student, block):
    agent = ScheduledSampling(beta=BY_COIN, block=block)
    trajectories = collect(agent, env, make_student(5))
    inside = trajectories.mask & (trajectories.actions != env.special.end)
    writers = trajectories.writer.masked_fill(~inside, -1)
    for row in writers.split(block, 1):
        assert all(len(set(some[some >= 0].tolist())) <= 1 for some in row)
    assert writers.eq(Writer.STUDENT).any()
    assert writers.eq(Writer.DATA).any()


@pytest.mark.parametrize("noisy", [False, True])
def test_the_label_is_the_datas_token_whoever_wrote_the_prefix(env, noisy_env, tiny_student, noisy):
    env = noisy_env if noisy else env
    trajectories, loss, _ = learn(ScheduledSampling(beta=BY_COIN), env, tiny_student)
    with torch.no_grad():
        logits = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
    losses, after = [], 0
    for row, column in trajectories.mask.nonzero().tolist():
        reference = [*trajectories.reference[row].tolist(), *[env.special.pad] * 9]
        label = reference[column] or env.special.end
        after += reference[column] == env.special.pad
        losses.append(-logits[row, column].double().log_softmax(-1)[label])
    assert (after > 0) == noisy, "only noise leads beyond the data's end"
    assert loss.item() == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_beyond_the_datas_end_the_student_writes_alone(noisy_env, tiny_student):
    trajectories = collect(ScheduledSampling(beta=BY_DATA), noisy_env, tiny_student)
    width = trajectories.actions.shape[1]
    data = torch.nn.functional.pad(
        trajectories.reference, (0, width - trajectories.reference.shape[1])
    )
    beyond = trajectories.mask & (data == noisy_env.special.pad)
    assert beyond.any()
    by_student = trajectories.mask & (trajectories.writer == Writer.STUDENT)
    assert torch.equal(by_student, beyond)


def test_the_coin_follows_the_schedule(env, tiny_student):
    agent = ScheduledSampling(beta=Linear(final=0.0))
    early, late = (collect(agent, env, tiny_student, progress=share) for share in (0.0, 1.0))
    assert early.writer[early.mask].eq(Writer.DATA).all()
    before_the_end = late.mask & (late.actions != env.special.end)
    assert late.writer[before_the_end].eq(Writer.STUDENT).all()
    assert agent.coefficients(0.25) == {"beta": 0.75}


def test_half_of_the_tokens_stay_the_datas_by_default():
    beta = ScheduledSampling().beta
    assert [beta(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(
        [1.0, 0.75, 0.5], abs=1e-4
    )
    assert min(beta(step / 100) for step in range(101)) >= 0.5


def test_a_block_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^block must be at least 1, got 0"):
        ScheduledSampling(block=0)
