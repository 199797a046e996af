"""Maximum likelihood: behavioral cloning with the data set as the demonstrator."""

from dataclasses import dataclass, field

from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.labels import LabelledBatch, check_smoothing
from textgen_agents.losses.objectives import token_loss
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class MLE(Agent):
    """Training on the references.

    Roll-in: data. Label: the data's next token. Loss: cross-entropy.
    Differs from the paper in: nothing ("Vanilla" there).

    Attributes:
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    learns_from = LearnsFrom.REFERENCES
    student_writes = False
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the data's tokens."""
        del expert
        states = batch.trajectories
        return token_loss(states, student, states.actions, label_smoothing=self.label_smoothing)
