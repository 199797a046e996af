"""ImitKD + Full: the teacher's whole distribution on the prefixes that the student writes itself.

As ImitKD, but every position of every prefix, the data's too, is labelled with the teacher's
distribution instead of one token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agents.agent import Agent
from agents.divergences import forward_kl, masked_mean
from agents.rollout import student_or_data
from agents.schedules import Exponential, Schedule
from textgen_env.decoding import Sampling
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories
from textgen_env.vector_env import TextGenVectorEnv


@dataclass(frozen=True)
class ImitKDFull(Agent):
    """Match the teacher's next-token distribution on the student's and the data's prefixes.

    Roll-in: a coin for each example, data with probability beta, student otherwise; `pool` batches
    are written together. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: nothing.

    Attributes:
        beta: progress -> probability that the data writes.
        sampling: how the student writes; None for greedy.
        pool: M, batches written together.

    Source: Lin et al. 2020, algorithm 1 and eq. 6, arXiv:2009.07253.
    """

    beta: Schedule = field(default_factory=Exponential)
    sampling: Sampling | None = None
    pool: int = 4

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """The present beta."""
        return {"beta": self.beta(progress)}

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Prefixes by student or data, as a coin for each example says."""
        return student_or_data(
            indices,
            env,
            student,
            beta=self.beta(progress),
            sampling=self.sampling,
            generator=generator,
        )

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL on all prefixes."""
        teacher_logits = expert.logits(trajectories)
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        return masked_mean(forward_kl(logits, teacher_logits), trajectories.mask)
