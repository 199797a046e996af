"""Sequence- and word-level distillation: the teacher's distribution along its own texts."""

from dataclasses import dataclass

from torch import Tensor

from agents.bases import OnTeacherText
from agents.losses import distribution_loss
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class SeqKDFull(OnTeacherText):
    """Match the teacher's next-token distribution along what its beam search writes.

    Roll-in: the teacher's written text as data. Label: the teacher's distribution.
    Loss: forward KL.
    Differs from the paper in: nothing ("SeqKD + Full" there).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL on the teacher's prefixes."""
        return distribution_loss(trajectories, student, expert)
