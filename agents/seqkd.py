"""Sequence-level distillation: the student learns what the teacher's beam search writes.

Behavioral cloning with the teacher as the demonstrator: the states are the teacher's own, never the
student's.
"""

from dataclasses import dataclass

from torch import Tensor

from textgen_agents.bases import OnTeacherText, OnTokens
from textgen_env.experts.expert import Expert
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class SeqKD(OnTeacherText, OnTokens):
    """Replace each reference by the teacher's beam-search output and train on it.

    Roll-in: the teacher's written text as data. Label: its next token. Loss: cross-entropy.
    Differs from the paper in: nothing.

    Source: Kim and Rush 2016, section 3.2, arXiv:1606.07947.
    """

    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """The teacher's tokens."""
        del expert
        return trajectories.actions
