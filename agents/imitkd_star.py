"""ImitKD*: ImitKD that starts from the teacher's texts instead of the references."""

from dataclasses import dataclass

from torch import Tensor

from textgen_agents.bases import MixedByExample, OnTeacherText, OnTokens
from textgen_agents.losses.objectives import labels_by_writer
from textgen_env.experts.expert import Expert
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class ImitKDStar(OnTeacherText, MixedByExample, OnTokens):
    """Learn the teacher's best token on the student's prefixes, its text on its own.

    Roll-in: a coin for each example, the teacher's text with probability beta, student otherwise.
    Label: the text's token on its prefixes, the teacher's most probable one on the student's.
    Loss: cross-entropy.
    Differs from the paper in: one schedule for all data sets (there base 2 for WMT, 10 for CNN/DM).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """As each prefix's writer says."""
        return labels_by_writer(trajectories, expert)
