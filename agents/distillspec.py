"""DistillSpec: distillation of a draft for speculative decoding, on the texts that it writes.

The more of the draft's tokens its teacher accepts, the faster `generation/speculative.py` writes
the teacher's texts. A token is accepted with probability 1 - TVD of both distributions. No gradient
flows through the writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import (
    Divergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)
from textgen_agents.losses.labels import Dense, Label, LabelledBatch
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel

DraftLoss = Literal["fkl", "rkl", "jsd", "tvd"]

DRAFT_LOSSES: Mapping[DraftLoss, Divergence] = {
    "fkl": forward_kl,
    "rkl": reverse_kl,
    "jsd": partial(generalized_jsd, teacher_weight=0.5),
    "tvd": total_variation,
}


@dataclass(frozen=True)
class DistillSpec(Agent):
    """Distillation of a trained draft on its own texts, by a divergence chosen for the task.

    Roll-in: the student alone, drawn at temperature 1. Label: the teacher's distribution. Loss: one
    of four divergences.
    Differs from the paper in: the student is the one that the run starts with, there one that was
    trained on the data before; a batch is never taken from the data or the teacher's texts.

    Attributes:
        divergence: fkl, KL(teacher || student); rkl, the reverse; jsd, Jensen-Shannon with equal
            weights; tvd, total variation, whose complement is the acceptance at temperature 1.
        sampling: how the student writes; what it is a draft for should be drawn so, too.
        label: what the teacher is asked; less than its distribution is no longer the paper's.

    Raises:
        ValueError: there is no such divergence.

    Source: Zhou et al. 2024, sections 3 and 4, arXiv:2310.08461.
    """

    expects_trained_student = True
    learns_without_references = True
    divergence: DraftLoss = "tvd"
    sampling: Sampling = field(default_factory=Sampling)
    label: Label = field(default_factory=Dense, kw_only=True)

    def __post_init__(self) -> None:
        if self.divergence not in DRAFT_LOSSES:
            raise ValueError(
                f"divergence must be one of {', '.join(DRAFT_LOSSES)}, got {self.divergence!r}"
            )

    def collect(self, context: Context) -> LabelledBatch:
        """Write every example by the student."""
        return student_rollout(context, self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean divergence from the teacher's distribution."""
        divergence = DRAFT_LOSSES[self.divergence]
        return loss_for(self.label, divergence, batch.trajectories, student, expert)
