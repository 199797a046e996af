"""Estimate of training hours on another machine, from updates measured on this one.

Two quantities are measured here: the time of an update, and the rate of matrix products. The models
and texts have their real size, with random weights and words and fewer rows. Two quantities are
stated for the accelerator: its rate of matrix products, and its least time per operator. The
estimate assumes that an update reaches the same fraction of that rate on both machines.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKDVariant
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.training.learner import Learner
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.models.acceleration.precision import measure_precision
from textgen_env.models.config import ModelConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.task import Pair, TextTask
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_model, learning_env

NUM_SPECIAL = 3  # special tokens, which stand for no word
SCHEDULE_POINTS = 1000  # points at which a schedule's mean is taken


@dataclass(frozen=True)
class MeasuredUpdate:
    """Measured cost of an update.

    Attributes:
        seconds: seconds of an update: its part of the rollout, its labels, the student's step.
        rows: rows of the measured update.
        operators: operators per update, for any number of rows.
        rate: rate of this machine's matrix products in float32, GFLOP/s.
    """

    seconds: float
    rows: int
    operators: int
    rate: float


@dataclass(frozen=True)
class Accelerator:
    """Stated speed of another machine.

    Attributes:
        rate: rate of its matrix products, GFLOP/s.
        launch: least seconds per operator.
    """

    rate: float
    launch: float


A100 = Accelerator(rate=100_000.0, launch=5e-6)  # a third of 312 TFLOP/s; PyTorch's launch


def training_hours(
    experiment: Experiment, measured: MeasuredUpdate, accelerator: Accelerator
) -> float:
    """Return the estimated hours of training: updates * (computing + launching) / 3600.

    computing = seconds * (batch size / measured rows) * (measured rate / accelerator's rate);
    launching = accumulated parts * operators * launch. Reading, evaluating and what a teacher
    writes before training are left out.
    """
    learner = experiment.learner
    computing = (
        measured.seconds * learner.batch_size / measured.rows * measured.rate / accelerator.rate
    )
    launching = learner.accumulate * measured.operators * accelerator.launch
    return learner.updates * (computing + launching) / 3600


def measure_update(
    experiment: Experiment,
    teacher: ModelConfig | None,
    *,
    source_tokens: int,
    target_tokens: int,
    rows: int,
) -> MeasuredUpdate:
    """Time updates of `experiment` in float32 and count their operators.

    Args:
        experiment: gives student, agent and vocabulary; a schedule of beta is held at its mean.
        teacher: configuration of the teacher; None for an agent without an expert.
        source_tokens: length of every source, end token included.
        target_tokens: length of every text, end token included.
        rows: rows of an update, in place of the batch size.
    """
    assert isinstance(experiment.task, HubConfig), "the paper's data sets come from the hub"
    vocab_size = experiment.task.vocab_size
    student = build_model(replace(experiment.student, vocab_size=vocab_size), 0)
    expert = NoExpert()
    if teacher is not None:
        expert = NeuralExpert(build_model(replace(teacher, vocab_size=vocab_size), 0).eval())
    agent = _at_its_mean(experiment.agent)
    task = _random_task(vocab_size, source_tokens, target_tokens, agent.batches_per_rollout * rows)
    env = learning_env(task, agent.batches_per_rollout * rows, expert)
    updates = 2 * agent.batches_per_rollout
    config = replace(
        experiment.learner, updates=updates, batch_size=rows, accumulate=1, evaluate_every=updates
    )
    rate = measure_precision(experiment.student.width).float32
    with tempfile.TemporaryDirectory() as folder, OperatorCounter() as counter:
        learner = Learner(
            agent, student, env=env, folder=Path(folder), config=config, precision=torch.float32
        )
        done = learner.train(lambda _: 0.0, lambda *_: None)
    return MeasuredUpdate(done.seconds / updates, rows, counter.operators // updates, rate)


class OperatorCounter(TorchDispatchMode):
    """Dispatch mode that counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run the operator and count it."""
        self.operators += 1
        return func(*args, **(kwargs or {}))


def _at_its_mean(agent: Agent) -> Agent:
    if not isinstance(agent, ImitKDVariant):
        return agent
    mean = (
        sum(agent.beta(step / SCHEDULE_POINTS) for step in range(SCHEDULE_POINTS)) / SCHEDULE_POINTS
    )
    return replace(agent, beta=Constant(mean))


def _random_task(vocab_size: int, source_tokens: int, target_tokens: int, count: int) -> TextTask:
    """Return a task of `count` pairs of random words, a token each, all of the same lengths."""
    words, random = [f"w{index}" for index in range(vocab_size - NUM_SPECIAL)], Random(0)

    def text(tokens: int) -> str:
        return " ".join(random.choices(words, k=tokens - 1))

    pairs = [Pair(text(source_tokens), text(target_tokens)) for _ in range(count)]
    return TextTask(
        name="random",
        tokenizer=Tokenizer.from_words(words),
        train=pairs,
        validation=pairs[:1],
        test=pairs[:1],
        max_source_length=source_tokens,
        max_target_length=target_tokens,
        dropped={},
    )
