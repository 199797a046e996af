"""GKD: on-policy distillation with a divergence between forward and reverse KL.

No gradient flows through the student's writing.
"""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import Divergence, forward_kl, generalized_jsd, reverse_kl
from textgen_agents.losses.kl_mixtures import KLMixture
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, check_divergence
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.behaviors import bernoulli_mask
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_first_rollout, student_rollout
from textgen_env.bounds import check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class GKD(Agent):
    """Distillation on batches of the student's texts and on batches of the data's.

    Roll-in: each batch by the student with probability `student_fraction`, else by the data; what
    has no reference always by the student.
    Label: the teacher's distribution. Loss: generalized Jensen-Shannon divergence.
    Differs from the paper in: no reward; the student is the one that the run starts with, there
    one that was trained on the data before.

    Attributes:
        student_fraction: probability that the student writes a batch, in [0, 1].
        teacher_weight: of the divergence, in [0, 1]; 0 is forward KL and 1 reverse KL, to which it
            tends once divided by `teacher_weight` and 1 - `teacher_weight`: the scale jumps there.
        sampling: how the student writes.
        label: what the teacher is asked; less than its distribution is no longer the paper's.
        divergence: mixture of forward and reverse KL in place of the paper's divergence and of
            `teacher_weight`; None for the paper's.

    Source: Agarwal et al. 2024, algorithm 1, arXiv:2306.13649.
    """

    expects_trained_student = True
    learns_without_references = True
    student_fraction: float = 0.5
    teacher_weight: float = 0.5
    sampling: Sampling = field(default_factory=Sampling)
    label: Label = field(default_factory=Dense, kw_only=True)
    divergence: KLMixture | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_shares(self, "student_fraction", "teacher_weight")
        check_divergence(self.label, self.minimized)

    @property
    def minimized(self) -> Divergence:
        """Divergence that is given, or else the one that `teacher_weight` stands for."""
        if self.divergence is not None:
            return self.divergence
        between = partial(generalized_jsd, teacher_weight=self.teacher_weight)
        return {0.0: forward_kl, 1.0: reverse_kl}.get(self.teacher_weight, between)

    def labelled_data_share(self, progress: float) -> float:
        """Return the probability that the data writes a batch."""
        del progress
        return 1 - self.student_fraction

    def collect(self, context: Context) -> LabelledBatch:
        """Write the batch by the student, or by the data where there is a reference."""
        if bernoulli_mask(1 - self.student_fraction, 1, context.generator):
            return data_first_rollout(context, self.sampling)
        return student_rollout(context, self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the divergence from the teacher's distribution."""
        return loss_for(self.label, self.minimized, batch.trajectories, student, expert)
