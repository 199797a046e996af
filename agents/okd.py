"""Online knowledge distillation: the teacher moves towards the student while it teaches.

The teacher's weights stay frozen. Low-rank terms beside its matrices, or a temperature of its
logits, are trained together with the student: student and teacher each learn the data's tokens and
each other's distributions. No text is written, so an update costs one pass more than word-level
distillation: the teacher's backward pass.
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from textgen_agents.agent import CompanionAgent
from textgen_agents.losses.divergences import by_parts, cross_entropy, forward_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.objectives import mean_over_actions
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.white_box import adapted_logits, teacher_module
from textgen_env.models.adapters import Adapters, adaptable_matrices
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class OKD(CompanionAgent):
    """Mutual distillation of the student and of small modules beside the frozen teacher.

    Roll-in: data. Label: the data's token, and the adapted teacher's distribution. Loss: with q the
    student and p the adapted teacher, -log q(token) + weight * KL(p || q) for the student, where p
    is a constant; -log p(token) + weight * KL(q || p) for the modules, where q is a constant.
    Differs from the paper in: rank, weights and learning rates, which no source that was read
    gives, are choices of ours; low-rank terms have neither scaling nor dropout; the temperature.

    Attributes:
        rank: of the term added to each of the teacher's matrices, at least 0; 0 for none.
        learns_temperature: True to train a temperature of the teacher's logits too.
        weight: of both divergences, at least 0.

    Source: Rao et al. 2024, arXiv:2409.12512.
    """

    student_writes = False
    rank: int = 8
    learns_temperature: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, rank=0, weight=0)
        if not self.rank and not self.learns_temperature:
            raise ValueError(
                "rank must be at least 1 where no temperature is learned, got 0: the teacher would "
                "stay as it is, which is word_kd"
            )

    def check_expert(self, expert: Expert) -> None:
        """Raise unless the expert gives its distribution, with gradient to modules beside it.

        Raises:
            ExpertError: it gives less, or has no matrices that could be adapted.
        """
        super().check_expert(expert)
        module = teacher_module(expert)
        if not self.learns_temperature and not adaptable_matrices(module):
            raise ExpertError(
                "the expert must have matrices to add low-rank terms to, got "
                f"{type(module).__name__} without: learn a temperature (learns_temperature)"
            )

    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the modules beside the teacher, which at first change nothing."""
        del student
        module = teacher_module(expert)
        adapters = Adapters(module, self.rank, learns_temperature=self.learns_temperature)
        return nn.ModuleDict({"teacher": adapters})

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes."""
        return data_rollout(context)

    def joint_loss(
        self,
        batch: LabelledBatch,
        student: SequenceModel,
        expert: Expert,
        companions: nn.ModuleDict,
    ) -> Tensor:
        """Return the student's loss plus that of the modules beside the teacher."""
        states = batch.trajectories
        learner = student.sequence_logits(states.source, states.actions)
        teacher = adapted_logits(expert, cast("Adapters", companions["teacher"]), states)
        likelihoods = cross_entropy(learner, states.actions) + cross_entropy(
            teacher, states.actions
        )
        to_teacher = by_parts(forward_kl, learner, teacher.detach())
        to_student = by_parts(forward_kl, teacher, learner.detach())
        losses = likelihoods + self.weight * (to_teacher + to_student)
        return mean_over_actions(losses, states)
