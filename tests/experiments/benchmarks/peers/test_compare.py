"""Tests of `benchmark-peers`: parts of an update, their floors, rows and error messages."""

import sys
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from textgen_agents.imitkd import ImitKDFull
from textgen_agents.rollouts.schedules import Constant
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.tasks.task import encode
from textgen_experiments.benchmarks import step_floor
from textgen_experiments.benchmarks.peers import compare as command
from textgen_experiments.benchmarks.peers import updates as peers_updates
from textgen_experiments.benchmarks.peers.compare import BenchmarkPeersOptions, update_cells
from textgen_experiments.benchmarks.peers.updates import (
    LearnerUpdates,
    TimedExpert,
    UpdateSeconds,
    endless_learner,
)
from textgen_experiments.benchmarks.step_floor import (
    ProductRecorder,
    products_seconds,
    step_and_floor,
)
from textgen_experiments.cli import main
from textgen_experiments.runs.factories import learning_env


@pytest.fixture
def updates(tiny_task, tiny_teacher, tiny_student, tmp_path):
    """Return updates by `imitkd_full`, with two batches of four texts per rollout."""
    agent, expert = (
        ImitKDFull(beta=Constant(0.0), batches_per_rollout=2),
        TimedExpert(tiny_teacher),
    )
    env = learning_env(tiny_task, 8, expert, examples=encode(tiny_task.train, tiny_task))
    learner = endless_learner(agent, tiny_student, env, folder=tmp_path, precision=torch.float32)
    return LearnerUpdates(learner, expert, onednn=False)


def test_an_update_is_a_mean_of_those_made_together(updates):
    expert, learner = updates.learner.env.expert, updates.learner
    assert updates() == 2
    (seconds,), (tokens,) = updates.seconds, updates.tokens
    assert learner.counters.update == 2
    assert 2 * tokens == expert.queries.tokens == learner.counters.teacher_tokens
    assert 2 * seconds.label == pytest.approx(expert.seconds)
    assert min(seconds.rollout, seconds.label, seconds.update) > 0
    assert seconds.whole == pytest.approx(seconds.rollout + seconds.label + seconds.update)
    assert not list(learner.folder.iterdir())


def test_the_floor_has_each_product_in_its_part(updates, monkeypatch):
    recorded = []
    monkeypatch.setattr(
        peers_updates, "products_seconds", lambda shapes, dtype: recorded.append(shapes) or 1.0
    )
    assert updates.floor() == UpdateSeconds(0.5, 0.5, 0.5)
    rollout, label, update = recorded
    vocab_size = updates.learner.env.vocab_size

    def heads(part):
        """Count the products of hidden states with the output matrix."""
        return sum(count for shape, count in part.items() if shape[2:] == (vocab_size,))

    steps = updates.learner.env.max_steps
    assert steps / 2 <= heads(rollout) <= steps
    assert heads(label) == 2, "a pass of the teacher for each batch"
    assert heads(update) == 2, "a pass of the student for each batch, and none of the teacher"
    of_weights = [count for shape, count in update.items() if shape[:-2] == (vocab_size,)]
    assert sum(of_weights) == 2, "the gradient of that matrix"
    for part in recorded:
        assert any(len(shape) == 4 for shape in part), "attention's"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_are_recorded_however_they_are_computed(mode):
    left, weight, out = torch.ones(2, 3), torch.ones(5, 3), torch.ones(2, 5)
    layer = with_prepacked_weights(torch.nn.Linear(3, 5))
    with mode(), ProductRecorder() as recorder:
        assert torch.equal(F.linear(left, weight), torch.full((2, 5), 3.0))
        F.linear(left, weight, out[0])
        out.addmm_(left, weight.T)
        F.linear(left[None], weight)
        left.expand(7, 2, 3) @ weight.T.expand(7, 3, 5)
        torch.baddbmm(out, left.expand(7, 2, 3), weight.T.expand(7, 3, 5))
        layer(left.expand(4, 2, 3))
    assert recorder.shapes == {(2, 3, 5): 4, (7, 2, 3, 5): 2, (8, 3, 5): 1}


def test_products_of_each_shape_are_timed_as_they_are_computed(monkeypatch):
    timed, seconds = [], iter([2.0, 1.0, 4.0])
    monkeypatch.setattr(
        step_floor, "_median_seconds", lambda run: timed.append(run()) or next(seconds)
    )
    shapes = {(2, 3, 5): 4, (7, 2, 3, 5): 2}
    assert products_seconds(shapes, torch.bfloat16) == 12, "4 prepacked ones, 2 of attention"
    assert [product.shape for product in timed] == [(2, 5), (2, 5), (7, 2, 5)]
    assert {product.dtype for product in timed} == {torch.bfloat16}


def test_the_floor_of_a_step_has_attention_to_all_that_is_written(tiny_teacher, monkeypatch):
    monkeypatch.setattr(step_floor, "MEASURED_DECODES", 1)
    recorded = []
    monkeypatch.setattr(
        step_floor, "products_seconds", lambda shapes, dtype: recorded.append(shapes) or 64.0
    )
    _, floor = step_and_floor(tiny_teacher, 3, torch.float32)
    assert floor == 2, "of 32 steps"
    layers, heads, width = tiny_teacher.config.num_decoder_layers, 2, 8
    attention = {shape: count for shape, count in recorded[0].items() if len(shape) == 4}
    scores = {(3 * heads, 1, width, room): 16 * layers for room in (16, 32)}
    reads = {(3 * heads, 1, room, width): 16 * layers for room in (16, 32)}
    source = {(3 * heads, 1, width, 30): 32 * layers, (3 * heads, 1, 30, width): 32 * layers}
    assert attention == scores | reads | source


@dataclass
class Side:
    """Stand-in for updates that were measured before."""

    seconds: list[UpdateSeconds]
    tokens: list[float] = field(default_factory=lambda: [9.0, 7.0, 7.0, 7.0])

    def __call__(self):
        return 1


def test_cells_are_medians_without_the_first_round():
    rounds = [
        UpdateSeconds(9, 9, 9),
        UpdateSeconds(1, 2, 3),
        UpdateSeconds(1.5, 2, 4),
        UpdateSeconds(1, 8, 3),
    ]
    assert update_cells(Side(rounds)) == {
        "whole s": "7.500",
        "rollout s": "1.000",
        "label s": "2.000",
        "update s": "3.000",
        "tokens": "7",
    }


def test_rows_compare_with_the_first_and_with_the_one_above(monkeypatch, capsys):
    rates = {"one": [1.0, 1.0, 1.0], "two": [2.0, 2.0, 4.0], "three": [3.0, 6.0, 4.0]}
    sides = {name: Side([UpdateSeconds(1, 1, 1)] * 4) for name in rates}
    monkeypatch.setattr(command, "interleaved_rates", lambda group, rounds: rates)
    monkeypatch.setattr(command, "distillation_updates", lambda *_: sides)
    command.benchmark_peers(BenchmarkPeersOptions(("updates",), precisions=("float32",)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "float32" in line]
    assert ["2.00x" in line for line in lines] == [False, True, False]
    assert "4.00x" in lines[2]
    assert "1.50x" in lines[2]


def test_without_the_extra_one_line_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "textgen_experiments.benchmarks.peers.models", None)
    with pytest.raises(SystemExit):
        main(["benchmark-peers", "gkd"])
    assert "textgen-env[bench]" in capsys.readouterr().err.splitlines()[-1]


def test_rounds_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark-peers", "--rounds", "0"])
    assert "rounds must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark-peers", "--device", "cuda"])
    assert "PyTorch finds no CUDA device, got cuda" in capsys.readouterr().err
