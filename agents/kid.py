"""KID: gold text with the student's likely mistakes in it, at the price of one forward pass.

The student does not write on from its mistakes, so no environment is stepped; what it would have
written there is guessed from the gold prefix.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textgen_agents.bases import SmoothedTokens
from textgen_agents.losses.divergences import reverse_kl
from textgen_agents.losses.objectives import data_actions, distribution_loss, token_loss
from textgen_agents.rollouts.behaviors import toss_blocks
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import best_actions
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories, Writer


@dataclass(frozen=True)
class KID(SmoothedTokens):
    """Learn gold text, and the teacher's distribution along gold text that the student has spoiled.

    Roll-in: gold, with `student_fraction` of the tokens replaced by the student's most probable one
    after the gold prefix. Label: the gold token after gold prefixes, the teacher's distribution on
    the spoiled ones. Loss: cross-entropy + `weight` * reverse KL, each a mean over positions.
    Differs from the paper in: what is replaced is not hidden from the student first, which has no
    mask token; the end token is neither replaced nor put in; the weight is a choice of ours.

    Attributes:
        student_fraction: probability that a token is replaced, in [0, 1].
        weight: of the reverse KL, at least 0.

    Source: Zhong et al. 2024, arXiv:2410.11371.
    """

    student_fraction: float = 0.2
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.student_fraction <= 1:
            raise ValueError(f"student_fraction must be in [0, 1], got {self.student_fraction}")
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, got {self.weight}; 0 leaves gold text")

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Gold text with some of the student's tokens in it, from one pass over the gold text."""
        gold = super().collect(indices, env, student, progress, generator)
        with torch.no_grad():
            logits = student.sequence_logits(gold.source, gold.actions)
        proposals = best_actions(logits, env.special)
        shape = len(indices), env.max_steps
        chosen = toss_blocks(1 - self.student_fraction, shape, generator).to(env.device)
        ends = (gold.actions == env.special.end) | (proposals == env.special.end)
        replaced = chosen[:, : gold.actions.shape[1]] & gold.mask & ~ends
        return replace(
            gold,
            actions=proposals.where(replaced, gold.actions),
            writer=torch.where(replaced, Writer.STUDENT, Writer.DATA),
        )

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Cross-entropy on gold text + weight * reverse KL on the spoiled text."""
        gold = replace(trajectories, actions=data_actions(trajectories, student.special))
        divergence = distribution_loss(trajectories, student, expert, reverse_kl)
        smoothing = self.label_smoothing
        likelihood = token_loss(gold, student, gold.actions, label_smoothing=smoothing)
        return likelihood + self.weight * divergence
