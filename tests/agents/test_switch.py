import math
from dataclasses import replace

import pytest
import torch

from tests.support.updates import ROWS, assert_learn_the_same, collect, context_of
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.seqkd import SeqKDFull
from textgen_agents.skd import SKD
from textgen_agents.switch import Switch
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Writer


def greedy(threshold, **settings):
    return Switch(threshold=threshold, sampling=None, expert_sampling=None, **settings)


@pytest.mark.parametrize("threshold", [math.inf, math.log(2) * 10.01])
def test_with_no_threshold_it_is_on_policy_distillation(env, tiny_student, threshold):
    # The divergence is at most ln 2, and the threshold falls to no less than a tenth.
    on_policy = ImitKDFull(beta=Constant(0.0))
    assert_learn_the_same(greedy(threshold), on_policy, env, tiny_student)


def test_so_it_is_where_both_draw(env, tiny_student):
    draws = {"sampling": Sampling(), "expert_sampling": Sampling()}
    all_stay = SKD(k=env.vocab_size, **draws), Switch(threshold=math.inf, **draws)
    assert_learn_the_same(*all_stay, env, tiny_student)


def test_at_threshold_0_the_teacher_writes_all(tiny_task, make_env, env, tiny_student):
    agent = greedy(0.0)
    trajectories = collect(agent, env, tiny_student)
    assert trajectories.writer[trajectories.mask].eq(Writer.EXPERT).all()
    text = SeqKDFull(beam_size=1).prepare(env.examples, env.expert, env.max_steps)
    of_teacher = make_env(tiny_task, ROWS, env.expert, text)
    assert_learn_the_same(agent, SeqKDFull(), of_teacher, tiny_student)


def divergences(student, teacher, trajectories):
    """(B, T) Jensen-Shannon divergences, in double precision."""
    inputs = trajectories.source, trajectories.actions
    with torch.no_grad():
        p, q = (model.sequence_logits(*inputs).double().softmax(-1) for model in (teacher, student))
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


@pytest.mark.parametrize("decay", [None, Linear(final=0.0), Constant(1.0)])
def test_the_teacher_writes_where_the_divergence_is_above_the_positions_threshold(
    tiny_task, make_env, make_table_model, decay
):
    student, teacher = make_table_model(tiny_task, 1), make_table_model(tiny_task, 2)
    env = make_env(tiny_task, ROWS, NeuralExpert(teacher))
    settings = {} if decay is None else {"decay": decay}
    trajectories = collect(Switch(threshold=0.5, **settings), env, student)
    decay = decay or (lambda progress: 10**-progress)
    steps = range(trajectories.actions.shape[1])
    thresholds = torch.tensor([0.5 * decay(step / env.max_steps) for step in steps])
    above = divergences(student, teacher, trajectories) > thresholds
    mask = trajectories.mask
    assert 0.1 < above[mask].float().mean() < 0.95
    assert torch.equal(trajectories.writer[mask] == Writer.EXPERT, above[mask])
    assert torch.equal(trajectories.writer[mask] == Writer.STUDENT, ~above[mask])


def test_a_higher_threshold_leaves_the_student_more(env, tiny_student):
    shares = []
    for threshold in (0.0, 0.02, 0.1, 7.0):
        trajectories = collect(greedy(threshold), env, tiny_student)
        shares.append(trajectories.writer[trajectories.mask].eq(Writer.STUDENT).float().mean())
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[-1] == 1


@pytest.mark.parametrize("share", [0.0, 0.53, 0.8, 1.0])
def test_the_threshold_that_is_found_gives_the_teacher_its_share(
    tiny_task, make_env, make_table_model, share
):
    student, teacher = make_table_model(tiny_task, 1), make_table_model(tiny_task, 2)
    env = make_env(tiny_task, 60, NeuralExpert(teacher))
    agent = Switch(expert_share=share)
    found = agent.calibrate(context_of(env, student, seed=1))
    context = replace(context_of(env, student, seed=2), calibration=found)
    states = agent.collect(context).trajectories
    written = states.writer[states.mask].eq(Writer.EXPERT).float().mean()
    assert written == pytest.approx(share, abs=0.1)


def test_a_threshold_that_is_given_is_kept(env, tiny_student):
    before = env.expert.queries
    assert Switch(threshold=0.2).calibrate(context_of(env, tiny_student)) == 0.2
    assert env.expert.queries == before


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_a_threshold_below_0_is_refused(threshold):
    with pytest.raises(ValueError, match=r"^threshold must be at least 0"):
        Switch(threshold=threshold)
