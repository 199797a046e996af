"""Sequence-level distillation: the student learns what the teacher's beam search writes.

Behavioral cloning with the teacher as the demonstrator: the states are the teacher's own, never the
student's.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.bases import OnTeacherText
from agents.losses import token_loss
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class SeqKD(OnTeacherText):
    """Replace each reference by the teacher's beam-search output and train on it.

    Roll-in: the teacher's written text as data. Label: its next token. Loss: cross-entropy.
    Differs from the paper in: nothing.

    Source: Kim and Rush 2016, section 3.2, arXiv:1606.07947.
    """

    needs_distribution: ClassVar[bool] = False

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Cross-entropy on the teacher's tokens."""
        del expert
        return token_loss(trajectories, student, trajectories.actions)
