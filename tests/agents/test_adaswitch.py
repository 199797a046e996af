import math
from dataclasses import replace

import pytest
import torch

from tests.support.updates import ROWS, assert_learn_the_same, collect, context_of
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.switch import AdaSwitch
from textgen_env.experts.expert import NeuralExpert
from textgen_env.types import Writer


def test_with_no_limit_it_is_on_policy_distillation(env, tiny_student):
    agent = AdaSwitch(factor=math.inf, window=1, sampling=None, expert_sampling=None)
    assert_learn_the_same(agent, ImitKDFull(beta=Constant(0.0)), env, tiny_student)


def divergences(student, teacher, trajectories):
    """(B, T) KL(teacher || student), in double precision."""
    inputs = trajectories.source, trajectories.actions
    with torch.no_grad():
        p, q = (
            model.sequence_logits(*inputs).double().log_softmax(-1) for model in (teacher, student)
        )
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize(("factor", "window"), [(2.0, 1), (1.2, 3)])
def test_the_teacher_writes_from_the_first_leap_on(
    tiny_task, make_env, make_table_model, factor, window
):
    student, teacher = make_table_model(tiny_task, 1), make_table_model(tiny_task, 2)
    env = make_env(tiny_task, ROWS, NeuralExpert(teacher))
    trajectories = collect(AdaSwitch(factor=factor, window=window), env, student)
    expected, writers = [], []
    rows = zip(
        divergences(student, teacher, trajectories),
        trajectories.writer,
        trajectories.mask.sum(1).tolist(),
        strict=True,
    )
    for row, writer, length in rows:
        leaps = [
            step
            for step in range(window, length)
            if row[step] > factor * row[step - window : step].mean()
        ]
        first = leaps[0] if leaps else length
        expected.append([Writer.STUDENT] * first + [Writer.EXPERT] * (length - first))
        writers.append(writer[:length].tolist())
    assert writers == expected
    assert {len(set(row)) for row in writers} == {1, 2}, "the test wants texts with and without"


def test_the_factor_that_is_found_gives_the_teacher_its_share(
    tiny_task, make_env, make_table_model
):
    student, teacher = make_table_model(tiny_task, 1), make_table_model(tiny_task, 2)
    env = make_env(tiny_task, 60, NeuralExpert(teacher))
    agent = AdaSwitch(window=1, expert_share=0.4)
    found = agent.calibrate(context_of(env, student, seed=1))
    context = replace(context_of(env, student, seed=2), calibration=found)
    states = agent.collect(context).trajectories
    written = states.writer[states.mask].eq(Writer.EXPERT).float().mean()
    assert written == pytest.approx(0.4, abs=0.1)
    assert states.writer[:, 0].eq(Writer.STUDENT).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0.0}, "^factor must be above 0, got 0.0"),
        ({"window": 0}, "^window must be at least 1, got 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaSwitch(**settings)
