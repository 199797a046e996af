"""ImitKD: the student is corrected on the prefixes that it writes itself.

DAgger with the teacher as the expert: each example's prefix comes from the data with probability
beta, which falls during training, and from the student otherwise. Nothing is aggregated: every
rollout is used once. No gradient flows through the student's writing.
"""

from dataclasses import dataclass

from torch import Tensor

from textgen_agents.bases import MixedByExample, OnTokens
from textgen_agents.losses.objectives import labels_by_writer
from textgen_env.experts.expert import Expert
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class ImitKD(MixedByExample, OnTokens):
    """Learn the teacher's best token on the student's prefixes, the data's on the data's.

    Roll-in: a coin for each example, data with probability beta, student otherwise;
    `batches_per_rollout` batches are written together. Label: the data's token on data prefixes,
    the teacher's most probable one on student prefixes. Loss: cross-entropy.
    Differs from the paper in: greedy roll-ins by default (its IWSLT runs sample from the best 5).

    Source: Lin et al. 2020, algorithm 1 and eq. 5, arXiv:2009.07253.
    """

    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """As each prefix's writer says."""
        return labels_by_writer(trajectories, expert)
