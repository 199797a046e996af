"""Word-level distillation: the teacher's whole distribution on the data's prefixes."""

from dataclasses import dataclass, field

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, Label, LabelledBatch
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class WordKD(Agent):
    """Distillation of the teacher's next-token distribution along the references.

    Roll-in: data. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: nothing ("Vanilla + Full" there).

    Attributes:
        label: what the teacher is asked; less than its distribution is no longer the paper's.

    Source: Kim and Rush 2016, section 3.1, arXiv:1606.07947; Hinton et al. 2015, arXiv:1503.02531.
    """

    student_writes = False
    label: Label = field(default_factory=Dense, kw_only=True)

    def labelled_data_share(self, progress: float) -> float:
        """Return 1: the teacher is asked about the data's text of every example."""
        del progress
        return 1.0

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the teacher's distribution."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)
