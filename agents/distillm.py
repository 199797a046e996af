"""DistiLLM and DistiLLM-2: skewed divergences, on the student's own texts as far as needed.

In DistiLLM the student's share rises when validation says that the data's texts no longer suffice,
and its texts are used again and again. In DistiLLM-2 each example has a text of the teacher and one
of the student, with a divergence of its own for each. No gradient flows through the writing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import (
    Divergence,
    forward_kl,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
)
from textgen_agents.losses.labels import Label, LabelledBatch, TopKWithTail, check_divergence
from textgen_agents.losses.objectives import loss_by_writer, loss_for
from textgen_agents.rollouts.buffer import Buffer, check_capacity
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_first_rollout, data_rollout, student_rollout
from textgen_agents.rollouts.schedules import Linear, Schedule
from textgen_env.bounds import check_at_least, check_finite, check_shares
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Writer


@dataclass(frozen=True)
class DistiLLM(Agent):
    """Distillation on the data's texts and, once they do not suffice, on the student's.

    Roll-in: each batch by the student with probability `student_fraction`, else by the data; a
    batch of the student's is written anew and added to the buffer, or drawn from it; what has no
    reference is always the student's. Label: the
    teacher's k most probable tokens and the rest; with `Dense` its distribution, as in the paper.
    Loss: skewed KL.
    Differs from the paper in: the label; a stored text's label is not asked for again; the share
    rises where validation loss is above its lowest since the last rise, or since before training;
    in the authors' program above that at the last rise or before training, which a student from
    scratch never sees again; no loss on other text.

    Attributes:
        capacity: rows kept, at least those that are collected together. Each of several processes
            keeps its share.
        label: what is kept of the teacher's answers.
        student_fraction: probability of a batch of the student's at first, in [0, 1].
        rise: added to that probability where the data no longer suffice, at least 0.
        tolerance: nats by which validation loss must exceed its lowest for that, at least 0.
        fresh: progress -> share of the student's batches that are written anew, in [0, 1]; all
            are until the buffer is full.
        skew: alpha in the paper, in [0, 1); at 0 plain KL.
        reverse: skewed reverse KL in place of skewed KL.
        sampling: how the student writes; None for greedy.

    Source: Ko et al. 2024, algorithm 1 and eq. 4, arXiv:2402.03898.
    """

    expects_trained_student = True
    learns_without_references = True
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
        check_finite(self, "capacity")
        check_capacity(self.capacity)
        check_shares(self, "student_fraction")
        check_at_least(self, rise=0, tolerance=0)
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew must be in [0, 1), got {self.skew}; 0.1 is the authors'")
        check_divergence(self.label, self.divergence)

    @property
    def divergence(self) -> Divergence:
        """Divergence that `skew` and `reverse` name."""
        if not self.skew:
            return reverse_kl if self.reverse else forward_kl
        return partial(skewed_reverse_kl if self.reverse else skewed_kl, skew=self.skew)

    def adapted(self, validation_losses: Sequence[float]) -> Self:
        """Return the agent with the share of student batches that these losses call for."""
        share, lowest = self.student_fraction, math.inf
        for loss in validation_losses:
            if loss >= lowest + self.tolerance:
                share, lowest = min(1.0, share + self.rise), loss
            lowest = min(lowest, loss)
        return replace(self, student_fraction=share)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return the present shares of student batches and of new ones among them."""
        return {"student_fraction": self.student_fraction, "fresh": self.fresh(progress)}

    def make_buffer(self, env: TextGenVectorEnv, processes: int = 1) -> Buffer:
        """Return an empty buffer for this process."""
        return Buffer(env, capacity=self.capacity, label=self.label, processes=processes)

    def labelled_data_share(self, progress: float) -> float:
        """Return the present probability of a batch of the data's."""
        del progress
        return 1 - self.student_fraction

    def collect(self, context: Context) -> LabelledBatch:
        """Return a batch of the data's, a new one of the student's, or one from the buffer."""
        buffer, count = context.buffer, len(context.indices)
        assert buffer is not None, "`make_buffer` makes one"
        draw = float(torch.rand((), generator=context.generator))
        if draw >= self.student_fraction:
            return data_first_rollout(context, self.sampling)
        if buffer.full and draw >= self.student_fraction * self.fresh(context.progress):
            return buffer.draw(count, context.generator)
        buffer.add(student_rollout(context, self.sampling), context.env.expert)
        return buffer.latest(count)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the divergence from the label on all prefixes."""
        return loss_for(self.label, self.divergence, batch.trajectories, student, expert)


@dataclass(frozen=True)
class DistiLLM2(Agent):
    """Skewed KL on the teacher's texts and skewed reverse KL on the student's.

    Roll-in: for each example a text drawn from the teacher before training and one drawn from the
    student; both come into the same batch, which has twice as many rows. Label: the teacher's
    distribution. Loss: skewed KL on the teacher's text, skewed reverse KL on the student's; one
    mean over the states of both.
    Differs from the paper in: no outer iterations, in which both write all texts anew with the
    student trained last (here the student writes each batch as it is); no curricula of the skew and
    of the student's weight; the gradient flows through the student's share of the mixture too, in
    the authors' program not.

    Attributes:
        sampling: how both draw; at temperature 0.8 from a nucleus of 0.95.
        skew: of both divergences, in (0, 1).

    Source: Ko et al. 2025, eq. 5, arXiv:2503.07067.
    """

    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    skew: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.skew < 1:
            raise ValueError(f"skew must be in (0, 1), got {self.skew}; 0.1 is the authors'")

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with draws of the teacher, the same whatever the run's seed."""
        generator = torch.Generator(examples.source.device).manual_seed(0)
        return expert.sample(
            examples, max_steps=max_steps, sampling=self.sampling, generator=generator
        )

    def labelled_data_share(self, progress: float) -> float:
        """Return 1: the teacher is asked about its own text of every example."""
        del progress
        return 1.0

    def collect(self, context: Context) -> LabelledBatch:
        """Return the teacher's texts, then new ones of the student, of the same examples."""
        batches = [data_rollout(context), student_rollout(context, self.sampling)]
        return LabelledBatch.cat(batches, context.env.special)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean of each writer's divergence on its own prefixes."""
        terms = {
            Writer.DATA: partial(skewed_kl, skew=self.skew),
            Writer.STUDENT: partial(skewed_reverse_kl, skew=self.skew),
        }
        return loss_by_writer(batch.trajectories, student, expert, terms)
