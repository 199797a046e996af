"""DistiLLM: a skewed divergence, on the student's own texts only as far as they are needed.

The student's share rises when validation says that the data's texts no longer suffice, and its
texts are used again and again. No gradient flows through its writing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from textgen_agents.bases import WithBuffer
from textgen_agents.losses.divergences import (
    Divergence,
    forward_kl,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
)
from textgen_agents.losses.labels import Label, TopKWithTail, label_loss
from textgen_agents.rollouts.buffer import Buffer, LabelledBatch
from textgen_agents.rollouts.rollout import student_or_data
from textgen_agents.rollouts.schedules import Linear, Schedule
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class DistiLLM(WithBuffer):
    """Match the teacher on the data's texts and, once they do not suffice, on the student's.

    Roll-in: a coin for each batch, student with probability `student_fraction`, data otherwise; a
    batch of the student's is written anew and added to the buffer, or drawn from it. Label: the
    teacher's k most probable tokens and the rest; with `Dense` its distribution, as in the paper.
    Loss: skewed KL.
    Differs from the paper in: the label; a stored text's is not asked for again; the share rises
    where validation loss is above its lowest since the last rise, in the authors' program above
    that at the last rise or before training, which a student from scratch never sees again; no
    loss on other text.

    Attributes:
        student_fraction: probability of a batch of the student's at first, in [0, 1].
        rise: of that probability where the data no longer suffice, at least 0.
        tolerance: nats that validation loss must be above its lowest for that, at least 0.
        fresh: progress -> share of the student's batches that are written anew, in [0, 1]; all
            are until the buffer is full.
        skew: alpha in the paper, in [0, 1); at 0 plain KL.
        reverse: skewed reverse KL instead.
        sampling: how the student writes; None for greedy.

    Source: Ko et al. 2024, algorithm 1 and eq. 4, arXiv:2402.03898.
    """

    capacity: int = 1000
    label: Label = field(default_factory=TopKWithTail)
    student_fraction: float = 0.0
    rise: float = 0.1
    tolerance: float = 0.1
    fresh: Schedule = field(default_factory=Linear)
    skew: float = 0.1
    reverse: bool = False
    sampling: Sampling | None = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.student_fraction <= 1:
            raise ValueError(f"student_fraction must be in [0, 1], got {self.student_fraction}")
        for name in ("rise", "tolerance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew must be in [0, 1), got {self.skew}; 0.1 is the authors'")

    @property
    def divergence(self) -> Divergence:
        """What `skew` and `reverse` say."""
        if not self.skew:
            return reverse_kl if self.reverse else forward_kl
        return partial(skewed_reverse_kl if self.reverse else skewed_kl, skew=self.skew)

    def adapted(self, validation_losses: Sequence[float]) -> Self:
        """With the share that these losses call for."""
        share, lowest = self.student_fraction, math.inf
        for loss in validation_losses:
            if loss >= lowest + self.tolerance:
                share, lowest = min(1.0, share + self.rise), loss
            lowest = min(lowest, loss)
        return replace(self, student_fraction=share)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """The present shares."""
        return {"student_fraction": self.student_fraction, "fresh": self.fresh(progress)}

    def experience(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
        buffer: Buffer | None,
    ) -> LabelledBatch:
        """A batch of the data's, a new one of the student's, or one from the buffer."""
        assert buffer is not None, "`make_buffer` makes one"
        coin = float(torch.rand((), generator=generator))
        if coin >= self.student_fraction:
            return LabelledBatch(self.collect(indices, env, student, progress, generator))
        if buffer.full and coin >= self.student_fraction * self.fresh(progress):
            return buffer.draw(len(indices), generator)
        written = student_or_data(
            indices, env, student, beta=0.0, sampling=self.sampling, generator=generator
        )
        buffer.add(LabelledBatch(written), env.expert)
        return buffer.latest(len(indices))

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """The divergence on all prefixes."""
        return label_loss(trajectories, student, expert, self.label, self.divergence)
