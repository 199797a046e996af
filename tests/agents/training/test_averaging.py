"""The moving average of the weights: its numbers, what it shares, what is evaluated and kept."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.updates import (
    CONFIG,
    Log,
    StoppedError,
    assert_same_bits,
    no_score,
    weights_of,
)
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.training.averaging import WeightAverage
from textgen_agents.training.checkpoint import CheckpointError
from textgen_agents.training.learner import LearnerConfig

AVERAGED = replace(CONFIG, ema=0.8)


def filled(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_average_of_three_updates_by_hand():
    """Decays 1/10, 2/11 and, instead of 3/12, the largest, 0.2."""
    student = nn.Linear(1, 1, bias=False).double()
    filled(student, 1.0)
    average = WeightAverage(student, 0.2)
    for update, (weight, expected) in enumerate(
        [
            (2.0, 0.1 * 1 + 0.9 * 2),
            (4.0, (2 * 1.9 + 9 * 4) / 11),
            (-1.0, 0.2 * (39.8 / 11) - 0.8),
        ]
    ):
        filled(student, weight)
        average.add(update)
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-12)


def test_only_weights_that_are_trained_are_copied():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    student[2].weight = student[0].weight  # tied
    student[1].weight.requires_grad_(False)
    model = WeightAverage(student, 0.5).model
    assert model[1].weight is student[1].weight
    assert model[1].running_mean is student[1].running_mean
    assert model[2].weight is model[0].weight
    assert model[0].weight is not student[0].weight
    own = set(model.parameters()) - {*student.parameters()}
    trained = {parameter for parameter in student.parameters() if parameter.requires_grad}
    assert sum(p.numel() for p in own) == sum(p.numel() for p in trained)
    assert all(parameter.requires_grad for parameter in trained)
    assert not any(parameter.requires_grad for parameter in own)


def test_with_decay_0_the_run_is_one_without_an_average(make_learner):
    plain, averaged = (
        make_learner(MLE(), CONFIG, "a"),
        make_learner(MLE(), replace(CONFIG, ema=0.0), "b"),
    )
    for learner in (plain, averaged):
        learner.train(no_score, Log())
    assert_same_bits(weights_of(averaged.student), weights_of(plain.student))
    assert_same_bits(weights_of(averaged.evaluated), weights_of(plain.student))
    assert_same_bits(load_file(averaged.best), load_file(plain.best))


def test_the_average_is_evaluated_and_kept_and_the_student_writes(make_learner):
    agent = ImitKDFull(beta=Constant(0.0), batches_per_rollout=1)
    plain, averaged = make_learner(agent, CONFIG, "a"), make_learner(agent, AVERAGED, "b")
    expected, evaluated = [weights_of(averaged.student)], []
    plain.optimizer.register_step_post_hook(lambda *_: expected.append(weights_of(plain.student)))
    plain.train(no_score, Log())
    averaged.train(lambda model: evaluated.append(weights_of(model)) or len(evaluated), Log())
    assert_same_bits(weights_of(averaged.student), weights_of(plain.student))
    mean = expected[0]
    for update, weights in enumerate(expected[1:]):
        decay = min(0.8, (1 + update) / (10 + update))
        mean = {name: decay * mean[name] + (1 - decay) * new for name, new in weights.items()}
    torch.testing.assert_close(evaluated[-1], mean)
    assert_same_bits(load_file(averaged.best), evaluated[-1])
    assert_same_bits(weights_of(averaged.evaluated), evaluated[-1])
    assert any(not torch.equal(mean[name], new) for name, new in expected[-1].items())


@pytest.mark.parametrize("stop_after", [6, 8])
def test_a_resumed_average_is_that_of_a_run_never_stopped(make_learner, stop_after):
    agent = ImitKDFull(batches_per_rollout=2)
    unbroken, stopped = (make_learner(agent, AVERAGED, name, dropout=0.3) for name in "ab")
    unbroken.train(no_score, Log())
    with pytest.raises(StoppedError):
        stopped.train(no_score, Log(stop_after))
    resumed = make_learner(agent, AVERAGED, "b", dropout=0.3, seed=7)
    assert resumed.counters.update == 4
    resumed.train(no_score, Log())
    assert_same_bits(weights_of(resumed.evaluated), weights_of(unbroken.evaluated))
    for file in ("last", "best"):
        assert_same_bits(load_file(getattr(resumed, file)), load_file(getattr(unbroken, file)))


def test_a_checkpoint_without_an_average_is_not_continued_with_one(make_learner):
    make_learner(MLE()).train(no_score, Log())
    with pytest.raises(CheckpointError, match="must hold the state of this run"):
        make_learner(MLE(), AVERAGED)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_decays_outside_their_range_are_refused(decay):
    with pytest.raises(ValueError, match=r"^ema must be .*, got"):
        LearnerConfig(ema=decay)
