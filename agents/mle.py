"""Maximum likelihood: the student learns the data's tokens on the data's prefixes.

Behavioral cloning with the data set as the demonstrator; the yardstick for everything else.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.agent import Agent
from agents.losses import token_loss
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class MLE(Agent):
    """Train on gold pairs.

    Roll-in: data. Label: the data's next token. Loss: cross-entropy.
    Differs from the paper in: nothing ("Vanilla" there).

    Attributes:
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    needs_expert: ClassVar[bool] = False
    label_smoothing: float = 0.0

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Cross-entropy on the data's tokens."""
        del expert
        return token_loss(
            trajectories, student, trajectories.actions, label_smoothing=self.label_smoothing
        )
