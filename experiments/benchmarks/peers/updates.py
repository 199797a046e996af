"""Updates of this project's learner, timed by part, beside the time of their matrix products."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd import SeqKDFull
from textgen_agents.training.config import LearnerConfig
from textgen_agents.training.learner import Learner
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import AnswerT, NeuralExpert
from textgen_env.models import STUDENTS
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.acceleration.precision import onednn_float32
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model, load_model, load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import encode
from textgen_env.tasks.train_subset import take_train_pairs
from textgen_env.types import Trajectories
from textgen_experiments.benchmarks.step_floor import (
    ProductRecorder,
    ProductShape,
    products_seconds,
)
from textgen_experiments.runs.experiment import VERSES_TEACHER
from textgen_experiments.runs.factories import build_model, build_task, learning_env

UNREACHED_UPDATES = 10**6  # more updates than a benchmark makes


@dataclass(frozen=True)
class UpdateSeconds:
    """Seconds of one update, by part.

    Attributes:
        rollout: seconds of writing the prefixes.
        label: seconds of the teacher's answers.
        update: seconds of the student's pass, loss, gradient and optimizer.
    """

    rollout: float
    label: float
    update: float

    @classmethod
    def of(cls, whole: float, *, rollout: float, label: float) -> Self:
        """Return the parts of an update that took `whole` seconds."""
        return cls(rollout, label, whole - rollout - label)

    @property
    def whole(self) -> float:
        """Seconds of all parts together."""
        return self.rollout + self.label + self.update


class TimedUpdates(Protocol):
    """Callable that makes updates and returns their number."""

    @property
    def seconds(self) -> Sequence[UpdateSeconds]:
        """Seconds per update of each call, by part."""
        ...

    @property
    def tokens(self) -> Sequence[float]:
        """Counted actions per update of each call."""
        ...

    def __call__(self) -> int:
        """Make updates and return their number."""
        ...


class TimedExpert(NeuralExpert):
    """Teacher whose passes are timed and can be recorded apart from the student's.

    Attributes:
        watch: context that is entered around each of its passes.
        seconds: total seconds of its passes.
    """

    def __init__(self, model: SequenceModel) -> None:
        super().__init__(model)
        self.watch: AbstractContextManager[object] = nullcontext()
        self.seconds = 0.0

    def answer(
        self, trajectories: Trajectories, forward: Callable[[Tensor, Tensor], AnswerT]
    ) -> AnswerT:
        """Return the teacher's answer, within `watch`; the device is idle before and after."""
        with self._timed(trajectories.actions.device):
            return super().answer(trajectories, forward)

    def project(self, head: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
        """Return the logits of some states, as `answer` does."""
        with self._timed(states.device):
            return super().project(head, states)

    @contextmanager
    def _timed(self, device: torch.device) -> Iterator[None]:
        synchronize(device)
        start = time.perf_counter()
        with self.watch:
            yield
        synchronize(device)
        self.seconds += time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class LearnerUpdates:
    """Timed updates of a learner, as many per call as one rollout serves.

    Args:
        learner: learner of the updates, taught by `expert`.
        expert: expert of the learner's environment.
        onednn: whether oneDNN computes float32 products.
    """

    def __init__(self, learner: Learner, expert: TimedExpert, onednn: bool) -> None:
        self.learner, self.expert, self.onednn = learner, expert, onednn
        self.seconds: list[UpdateSeconds] = []
        self.tokens: list[float] = []
        self._rollouts = learner.rollouts()

    def __call__(self) -> int:
        """Make the updates of one rollout and return their number."""
        start, label_start = time.perf_counter(), self.expert.seconds
        with onednn_float32(self.onednn):
            collected = next(self._rollouts)
            synchronize(self.learner.env.device)
            written = time.perf_counter() - start
            count = len(list(self.learner.learn(collected)))
            synchronize(self.learner.env.device)
        whole, label = time.perf_counter() - start, self.expert.seconds - label_start
        self.seconds.append(
            UpdateSeconds.of(whole / count, rollout=written / count, label=label / count)
        )
        self.tokens.append(float(collected.trajectories.mask.sum()) / count)
        return count

    def floor(self) -> UpdateSeconds | None:
        """Return the seconds of an update's matrix products alone, each shape timed by itself.

        Return None on an accelerator, where the products of a CUDA graph cannot be recorded.
        """
        if self.learner.env.device.type != "cpu":
            return None
        rollout, label, both = ProductRecorder(), ProductRecorder(), ProductRecorder()
        with rollout:
            collected = next(self._rollouts)
        self.expert.watch = label
        with both:
            count = len(list(self.learner.learn(collected)))
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
    """Return a learner that neither ends nor evaluates within a benchmark.

    Args:
        agent: the algorithm; a batch has the environment's slots divided by `batches_per_rollout`.
        student: model to train in place.
        env: environment from `learning_env`.
        folder: the learner's folder; nothing is written there.
        precision: precision of autocast and of the student that writes.
    """
    config = LearnerConfig(
        updates=UNREACHED_UPDATES,
        batch_size=env.num_envs // agent.batches_per_rollout,
        evaluate_every=UNREACHED_UPDATES,
    )
    return Learner(agent, student, env=env, folder=folder, config=config, precision=precision)


def distillation_updates(
    folder: Path,
    batch_size: int,
    start: Path | None,
    warm_up: int,
    precision: torch.dtype,
    onednn: bool,
    device: str = "cpu",
) -> dict[str, LearnerUpdates]:
    """Return updates of the demo's student by `seqkd_full` and by `imitkd_full`.

    Both learn from the same sources. For `imitkd_full`, the student writes every prefix itself,
    as it does only at the end of a run. Both begin with a student that has learned from some of
    the teacher's texts or was trained before, because a fresh one would not end its own.

    Args:
        folder: the learners' folder; nothing is written there.
        batch_size: texts of an update.
        start: folder of the student that both begin with; None for a fresh one.
        warm_up: updates on the teacher's texts before.
        precision: precision of the models that only act, and of autocast.
        onednn: whether oneDNN computes float32 products.
        device: device of both.
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
