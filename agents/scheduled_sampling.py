"""Scheduled sampling: the data's tokens as labels, on prefixes that are partly the student's.

No teacher is asked. The label does not depend on the prefix, so after a mistake of the student it
may be wrong: the known inconsistency of this method, which an expert's labels do not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from textgen_agents.bases import OnTokens
from textgen_agents.losses.objectives import data_actions
from textgen_agents.rollouts.behaviors import Gated, StepView, check_block, coins_for, token_sampler
from textgen_agents.rollouts.rollout import rollout
from textgen_agents.rollouts.schedules import Linear, Schedule
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class ScheduledSampling(OnTokens):
    """Learn the data's tokens while reading, now and then, one's own instead.

    Roll-in: a coin for each token, data with probability beta, student otherwise; texts end where
    the data's do. Label: the data's token at that position, whoever wrote the prefix.
    Loss: cross-entropy.
    Differs from the paper in: the student's token is its most probable one by default, and never
    the end token.

    Attributes:
        beta: progress -> probability that the data writes.
        block: tokens that share a coin, at least 1.
        sampling: how the student writes; None for greedy.

    Source: Bengio et al. 2015, section 2.4, arXiv:1506.03099.
    """

    needs_expert: ClassVar[bool] = False
    beta: Schedule = field(default_factory=Linear)
    block: int = 1
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)

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
        """Prefixes of the data's lengths by data and student, as a coin for each block says."""
        coins = coins_for(env, self.beta(progress), generator, self.block)

        def gate(view: StepView, proposal: Tensor) -> Tensor:
            end, pad = env.special.end, env.special.pad
            ends = (proposal == end) | (view.data_action == end)
            over = view.data_action == pad  # if noise has written over the data's end
            return over | (coins(view, proposal) & ~ends)

        behavior = Gated(gate, token_sampler(self.sampling, env, generator))
        return rollout(env, behavior, indices, student)

    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """The data's tokens; the end token after the data's text."""
        special = expert.special
        labels = data_actions(trajectories, special)
        return labels.masked_fill(labels == special.pad, special.end)
