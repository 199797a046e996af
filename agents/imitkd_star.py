"""ImitKD*: ImitKD that starts from the teacher's texts instead of the references."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.bases import MixedByExample, OnTeacherText
from agents.losses import labels_by_writer, token_loss
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class ImitKDStar(OnTeacherText, MixedByExample):
    """Learn the teacher's best token on the student's prefixes, its text on its own.

    Roll-in: a coin for each example, the teacher's text with probability beta, student otherwise.
    Label: the text's token on its prefixes, the teacher's most probable one on the student's.
    Loss: cross-entropy.
    Differs from the paper in: one schedule for all data sets (there base 2 for WMT, 10 for CNN/DM).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    needs_distribution: ClassVar[bool] = False

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Cross-entropy on the label of each prefix's writer."""
        return token_loss(trajectories, student, labels_by_writer(trajectories, expert))
