"""DistiLLM-2: pull up what the teacher writes, push down what only the student writes.

One text of each for every example, and a skewed divergence of its own for each. Left out: the outer
iterations, in which both write all texts anew with the student that was trained last (here the
student writes each batch as it is), and the curricula of the skew and of the student's weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from textgen_agents.bases import OnBothTexts
from textgen_agents.losses.divergences import Divergence, skewed_kl, skewed_reverse_kl
from textgen_agents.losses.objectives import loss_by_writer
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories, Writer


@dataclass(frozen=True)
class DistiLLM2(OnBothTexts):
    """Skewed KL on the teacher's texts and skewed reverse KL on the student's.

    Roll-in: for each example a text drawn from the teacher before training and one drawn from the
    student. Label: the teacher's distribution. Loss: skewed KL on the teacher's text, skewed
    reverse KL on the student's; one mean over the states of both.
    Differs from the paper in: what the module says is left out; temperature 1 by default, there
    0.8; the gradient flows through the student's share of the mixture too, in the authors' program
    not.

    Attributes:
        skew: of both divergences, in (0, 1).

    Source: Ko et al. 2025, eq. 5, arXiv:2503.07067.
    """

    skew: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.skew < 1:
            raise ValueError(f"skew must be in (0, 1), got {self.skew}; 0.1 is the authors'")

    @property
    def terms(self) -> Mapping[Writer, Divergence]:
        """A skewed divergence for each."""
        return {
            Writer.DATA: partial(skewed_kl, skew=self.skew),
            Writer.STUDENT: partial(skewed_reverse_kl, skew=self.skew),
        }

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Each writer's divergence on its own prefixes."""
        return loss_by_writer(trajectories, student, expert, self.terms)
