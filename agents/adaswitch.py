"""AdaSwitch: the student writes until it loses its way, then the teacher writes the rest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.bases import GatedByExpert
from textgen_agents.losses.objectives import distribution_loss
from textgen_agents.rollouts.behaviors import Gate, OneWaySwitch
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class AdaSwitch(GatedByExpert):
    """Match the teacher's distribution along texts that the student begins and it may finish.

    Roll-in: the student draws tokens until the divergence from the teacher is `factor` times its
    recent mean; from that token on the teacher draws. Label: the teacher's distribution.
    Loss: forward KL.
    Differs from the paper in: `factor` and `window`, which are choices of ours.

    Attributes:
        factor: times the mean of the last divergences, above 0, that make the teacher take over.
        window: how many divergences that mean is of, at least 1; as many first tokens are the
            student's.

    Source: Peng et al. 2025, arXiv:2510.07842.
    """

    factor: float = 2.0
    window: int = 5

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(
                f"factor must be above 0, got {self.factor}; raise it to let the student write more"
            )
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    def gate(self, env: TextGenVectorEnv, generator: torch.Generator) -> Gate:
        """Tokens before the leap stay."""
        return OneWaySwitch((env.num_envs, self.window), self.factor, env.device)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL on all prefixes."""
        return distribution_loss(trajectories, student, expert)
