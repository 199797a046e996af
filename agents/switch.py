"""SWITCH: the teacher writes where the two disagree, and the more readily the longer the text."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_agents.bases import GatedByExpert
from textgen_agents.losses.objectives import distribution_loss
from textgen_agents.rollouts.behaviors import BelowThreshold, Gate
from textgen_agents.rollouts.schedules import Exponential, Schedule
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class Switch(GatedByExpert):
    """Match the teacher's distribution along texts in which it writes where the two diverge.

    Roll-in: the student draws every token; where the Jensen-Shannon divergence of the two is above
    a threshold that falls with the position, the teacher draws instead.
    Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: the first threshold, which is a choice of ours; the decay, to a tenth
    as there, runs to the length limit.

    Attributes:
        threshold: nats at the first position, at least 0: then the teacher writes all; at the
            divergence's maximum, ln 2, and above the student does.
        decay: position / length limit -> share of the threshold.

    Source: Koo et al. 2025, arXiv:2410.19503.
    """

    threshold: float = 0.3
    decay: Schedule = field(default_factory=lambda: Exponential(base=10.0))

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(
                f"threshold must be at least 0, got {self.threshold}; at 0 the teacher writes all"
            )

    def gate(self, env: TextGenVectorEnv, generator: torch.Generator) -> Gate:
        """Tokens below each position's threshold stay."""
        steps = env.max_steps
        thresholds = [self.threshold * self.decay(step / steps) for step in range(steps)]
        return BelowThreshold(torch.tensor(thresholds, device=env.device))

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL on all prefixes."""
        return distribution_loss(trajectories, student, expert)
