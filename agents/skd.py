"""Speculative knowledge distillation: the student's texts without what the teacher finds unlikely.

Between supervised and on-policy distillation: with k = 1 only the teacher's own best tokens are
kept, with k = V the student writes alone.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from textgen_agents.bases import GatedByExpert
from textgen_agents.losses.labels import check_k
from textgen_agents.losses.objectives import distribution_loss
from textgen_agents.rollouts.behaviors import Gate, InTopK
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class SKD(GatedByExpert):
    """Match the teacher's distribution along texts of the student that the teacher has mended.

    Roll-in: the student draws every token; one that is not among the teacher's k most probable is
    replaced by a draw of the teacher. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: the teacher judges each token as it is proposed, not five at a time,
    which writes the same texts.

    Attributes:
        k: the teacher's tokens among which the student's must be, from 1 to V.

    Source: Xu et al. 2025, arXiv:2410.11325.
    """

    k: int = 25
    sampling: Sampling | None = field(default_factory=partial(Sampling, temperature=0.5, top_p=0.5))
    expert_sampling: Sampling | None = field(
        default_factory=partial(Sampling, temperature=0.2, top_p=0.5)
    )

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(
                f"k must be at least 1, got {self.k}; 1 keeps the teacher's best alone"
            )

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, unless the expert gives its distribution over k or more."""
        super().check_expert(expert)
        check_k(self.k, expert)

    def gate(self, env: TextGenVectorEnv, generator: torch.Generator) -> Gate:
        """The teacher's k most probable tokens stay."""
        return InTopK(self.k)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL on all prefixes."""
        return distribution_loss(trajectories, student, expert)
