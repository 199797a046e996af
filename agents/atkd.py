"""ATKD: of tokens that the teacher is sure of, only what it says about the others is taught."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.bases import GatedByExpert
from textgen_agents.losses.divergences import masked_mean
from textgen_agents.losses.topk import atkd_split
from textgen_agents.rollouts.behaviors import Gate, check_block, coins_for
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class ATKD(GatedByExpert):
    """Teach what the teacher is sure of otherwise than what it doubts.

    Roll-in: a coin for each token, student or teacher; both write their most probable token.
    Label: the teacher's distribution. Loss: with w the `easy_weight`, where the teacher's doubt
    about the token written is below the median, 2 w times the forward KL among all other tokens;
    elsewhere 2 (1 - w) times the sum of that and the one about writing the token or not.
    Differs from the paper in: a coin for each token of each text (its program: for each position of
    the whole batch); one mean over all tokens (there one over each half).

    Attributes:
        student_fraction: probability that the student writes a token, in [0, 1].
        easy_weight: w, in [0, 1].
        block: neighboring tokens that share a coin, at least 1.

    Source: Zhong et al. 2024, arXiv:2402.11890.
    """

    sampling: Sampling | None = None
    expert_sampling: Sampling | None = None
    student_fraction: float = 0.5
    easy_weight: float = 0.2
    block: int = 1

    def __post_init__(self) -> None:
        for name, share in (
            ("student_fraction", self.student_fraction),
            ("easy_weight", self.easy_weight),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        check_block(self.block)

    def gate(self, env: TextGenVectorEnv, generator: torch.Generator) -> Gate:
        """Tokens whose coin says so stay."""
        return coins_for(env, 1 - self.student_fraction, generator, self.block)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Mean of what is taught at each state; the median is that of these states."""
        teacher_logits = expert.logits(trajectories)
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        about, others, uncertainty = atkd_split(logits, teacher_logits, trajectories.actions)
        easy = uncertainty < uncertainty.where(trajectories.mask, torch.nan).nanmedian()
        weight = self.easy_weight
        losses = torch.where(easy, weight * others, (1 - weight) * (about + others))
        return masked_mean(2 * losses, trajectories.mask)
