"""Word-level distillation: the teacher's whole distribution on the data's prefixes."""

from dataclasses import dataclass

from torch import Tensor

from agents.agent import Agent
from agents.losses import distribution_loss
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class WordKD(Agent):
    """Match the teacher's next-token distribution along gold text.

    Roll-in: data. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: nothing ("Vanilla + Full" there).

    Source: Kim and Rush 2016, section 3.1, arXiv:1606.07947; Hinton et al. 2015, arXiv:1503.02531.
    """

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL on the data's prefixes."""
        return distribution_loss(trajectories, student, expert)
