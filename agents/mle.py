"""Maximum likelihood: the student learns the data's tokens on the data's prefixes.

Behavioral cloning with the data set as the demonstrator; the yardstick for everything else.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from textgen_agents.bases import OnTokens
from textgen_env.experts.expert import Expert
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class MLE(OnTokens):
    """Train on gold pairs.

    Roll-in: data. Label: the data's next token. Loss: cross-entropy.
    Differs from the paper in: nothing ("Vanilla" there).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    needs_expert: ClassVar[bool] = False

    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """The data's tokens."""
        del expert
        return trajectories.actions
