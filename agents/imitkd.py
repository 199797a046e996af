"""ImitKD: the student is corrected on the prefixes that it writes itself.

DAgger with the teacher as the expert: each example's prefix comes from the data with probability
beta, which falls during training, and from the student otherwise. Nothing is aggregated: every
rollout is used once. No gradient flows through the student's writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.agent import Agent
from agents.divergences import cross_entropy, masked_mean
from agents.rollout import student_or_data
from agents.schedules import Exponential, Schedule
from textgen_env.decoding import Sampling
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories, Writer
from textgen_env.vector_env import TextGenVectorEnv


@dataclass(frozen=True)
class ImitKD(Agent):
    """Learn the teacher's best token on the student's prefixes, the data's on the data's.

    Roll-in: a coin for each example, data with probability beta, student otherwise; `pool` batches
    are written together. Label: the data's token on data prefixes, the teacher's most probable one
    on student prefixes. Loss: cross-entropy.
    Differs from the paper in: greedy roll-ins by default (its IWSLT runs sample from the best 5).

    Attributes:
        beta: progress -> probability that the data writes.
        sampling: how the student writes; None for greedy.
        pool: M, batches written together.

    Source: Lin et al. 2020, algorithm 1 and eq. 5, arXiv:2009.07253.
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
        """Cross-entropy on the label of each prefix's writer."""
        data = _data_tokens(trajectories)
        by_data = (trajectories.writer == Writer.DATA) & (data != expert.special.pad)
        labels = data.where(by_data, expert.best_actions(trajectories))
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        return masked_mean(cross_entropy(logits, labels), trajectories.mask)


def _data_tokens(trajectories: Trajectories) -> Tensor:
    """(B, T) int64, the data's choice at every state, whatever noise wrote; PAD after its end."""
    missing = trajectories.actions.shape[1] - trajectories.reference.shape[1]
    return F.pad(trajectories.reference, (0, missing))
