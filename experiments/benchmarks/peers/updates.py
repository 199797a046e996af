"""Updates of this project's learner, timed by part beside the matrix products they consist of."""

import copy
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch

from textgen_agents.agent import Agent
from textgen_agents.imitkd_full import ImitKDFull
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd_full import SeqKDFull
from textgen_agents.training.config import LearnerConfig
from textgen_agents.training.learner import Learner
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.acceleration.precision import onednn_float32
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model, load_model, load_tokenizer
from textgen_env.tasks.task import encode, take_train_pairs
from textgen_env.types import Trajectories
from textgen_experiments.benchmarks.step_floor import (
    ProductRecorder,
    ProductShape,
    products_seconds,
)
from textgen_experiments.runs.experiment import STUDENTS, TASKS, VERSES_TEACHER
from textgen_experiments.runs.factories import build_model, build_task, learning_env

UNREACHED_UPDATES = 10**6  # updates


@dataclass(frozen=True)
class UpdateSeconds:
    """Of one update.

    Attributes:
        rollout: writing the prefixes.
        label: the teacher's answers.
        update: the student's pass, loss, gradient and optimizer.
    """

    rollout: float
    label: float
    update: float

    @classmethod
    def of(cls, whole: float, *, rollout: float, label: float) -> Self:
        """Parts of `whole`."""
        return cls(rollout, label, whole - rollout - label)

    @property
    def whole(self) -> float:
        """The sum."""
        return self.rollout + self.label + self.update


class TimedUpdates(Protocol):
    """Makes updates whenever it is called, and returns how many."""

    @property
    def seconds(self) -> Sequence[UpdateSeconds]:
        """Of each update (a mean of those made together), by part."""
        ...

    @property
    def tokens(self) -> Sequence[float]:
        """Counted actions of each, likewise."""
        ...

    def __call__(self) -> int:
        """Make them."""
        ...


class TimedExpert(NeuralExpert):
    """A teacher whose matrix products can be told from the student's.

    Attributes:
        watch: stands around each of its passes.
        seconds: that they took.
    """

    def __init__(self, model: SequenceModel) -> None:
        super().__init__(model)
        self.watch: AbstractContextManager[object] = nullcontext()
        self.seconds = 0.0

    def logits(self, trajectories: Trajectories) -> torch.Tensor:
        """As always, within `watch`; the device has finished before and after."""
        device = trajectories.actions.device
        synchronize(device)
        start = time.perf_counter()
        with self.watch:
            logits = super().logits(trajectories)
        synchronize(device)
        self.seconds += time.perf_counter() - start
        return logits


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class LearnerUpdates:
    """Updates of `learner`, as many at a time as its agent writes together.

    Args:
        learner: taught by `expert`.
        expert: of its environment.
        onednn: whether float32 products are made by oneDNN.
    """

    def __init__(self, learner: Learner, expert: TimedExpert, onednn: bool) -> None:
        self.learner, self.expert, self.onednn = learner, expert, onednn
        self.seconds: list[UpdateSeconds] = []
        self.tokens: list[float] = []
        self._rollouts = learner.rollouts()

    def __call__(self) -> int:
        """Make them; returns how many they were."""
        start, asked = time.perf_counter(), self.expert.seconds
        with onednn_float32(self.onednn):
            experience = next(self._rollouts)
            synchronize(self.learner.env.device)
            written = time.perf_counter() - start
            count = len(list(self.learner.learn(experience)))
            synchronize(self.learner.env.device)
        whole, label = time.perf_counter() - start, self.expert.seconds - asked
        self.seconds.append(
            UpdateSeconds.of(whole / count, rollout=written / count, label=label / count)
        )
        self.tokens.append(float(experience.trajectories.mask.sum()) / count)
        return count

    def floor(self) -> UpdateSeconds | None:
        """What the matrix products of an update take by themselves, each shape timed alone.

        None on an accelerator, where those of a recorded step are not seen.
        """
        if self.learner.env.device.type != "cpu":
            return None
        rollout, label, both = ProductRecorder(), ProductRecorder(), ProductRecorder()
        with rollout:
            experience = next(self._rollouts)
        self.expert.watch = label
        with both:
            count = len(list(self.learner.learn(experience)))
        self.expert.watch = nullcontext()

        def seconds(shapes: Counter[ProductShape]) -> float:
            return products_seconds(shapes, self.learner.precision) / count

        with onednn_float32(self.onednn):
            return UpdateSeconds(
                seconds(rollout.shapes), seconds(label.shapes), seconds(both.shapes - label.shapes)
            )


def endless_learner(
    agent: Agent, student: Model, env: TextGenVectorEnv, *, folder: Path, precision: torch.dtype
) -> Learner:
    """A learner that goes on for ever, without evaluation.

    Args:
        agent: the algorithm; a batch is the environment's slots divided by its pool.
        student: its weights are changed.
        env: from `learning_env`.
        folder: nothing is written there.
        precision: of autocast and of the student that writes.
    """
    config = LearnerConfig(
        updates=UNREACHED_UPDATES,
        batch_size=env.num_envs // agent.batches_per_rollout,
        evaluate_every=UNREACHED_UPDATES,
    )
    return Learner(agent, student, env, folder, config, precision)


def distillation_updates(
    folder: Path,
    batch_size: int,
    start: Path | None,
    warm_up: int,
    precision: torch.dtype,
    onednn: bool,
    device: str = "cpu",
) -> dict[str, LearnerUpdates]:
    """The demo's student, taught the same sources by `seqkd_full` and by `imitkd_full`.

    The second one's student writes every prefix itself, which in a run it does at the end alone.
    Both begin with a student that has learned some of the teacher's texts, or with one that was
    trained before: a fresh one would not end its own.

    Args:
        folder: of the runs; nothing is written there.
        batch_size: texts of an update.
        start: folder of the student that both begin with; None for a fresh one.
        warm_up: updates before, all with the teacher's texts.
        precision: of the models that only act, and of autocast.
        onednn: whether float32 products are made by oneDNN.
        device: where they learn.
    """
    by_teacher, by_student = SeqKDFull(), ImitKDFull(beta=Constant(0.0))
    task = build_task(TASKS["verses"], load_tokenizer(VERSES_TEACHER))
    task = take_train_pairs(task, by_student.batches_per_rollout * batch_size)
    expert = TimedExpert(
        with_prepacked_weights(with_cuda_graphs(load_model(VERSES_TEACHER, precision).to(device)))
    )
    references = encode(task.train, task).to(device)
    examples = by_teacher.prepare(references, expert, task.max_target_length)
    config = replace(STUDENTS["recurrent"], vocab_size=task.tokenizer.vocab_size)
    student = build_model(config, seed=0) if start is None else load_model(start)

    def updates(agent: Agent, student: Model) -> LearnerUpdates:
        slots = agent.batches_per_rollout * batch_size
        env = learning_env(task, slots, expert, examples=examples, device=device)
        learner = endless_learner(agent, student, env, folder=folder, precision=precision)
        return LearnerUpdates(learner, expert, onednn)

    first = updates(by_teacher, student)
    for _ in range(warm_up):
        first()
    return {
        "seqkd_full": updates(by_teacher, student),
        "imitkd_full": updates(by_student, copy.deepcopy(student)),
    }
