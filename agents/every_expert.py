"""Every Expert Matters: all experts of a mixture teach, not only those that it would answer with.

The paper's teacher is a language model with experts in its layers, of which its routers use few.
Two algorithms bring out what the others know: one passes over each text several times, with other
experts in each pass; the other uses all, and trains the routers for the student.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from textgen_agents.agent import Agent, CompanionAgent
from textgen_agents.losses.divergences import by_parts, reverse_kl
from textgen_agents.losses.labels import Dense, LabelledBatch
from textgen_agents.losses.objectives import loss_for, mean_over_actions
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.white_box import fewest_experts, gated_logits, teacher_gates
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class KnowledgeAugmentation(Agent):
    """Distillation of several passes of a mixture, each with other experts than it would use.

    Roll-in: the student alone, drawn at temperature 1. Label: the teacher's distributions of
    `draws` passes. At each state a gate leaves out `left_out` experts: with probability
    `drawn_fraction` all but those drawn by the router's probabilities, else the least probable.
    Loss: reverse KL, the mean over the passes. It is linear in the label's logarithm, so that the
    mean over the passes' log-probabilities is the label; a constant of the loss is left out.
    Differs from the paper in: one update with the mean over the passes, there one after each; the
    coin falls at each gate and state, where the paper does not say; no noise in the gates. Where
    the teacher is a mixture of several models there is no router, and every subset is as likely.

    Attributes:
        draws: M, the passes over each text, at least 1.
        left_out: experts that a gate does not use, at least 0, where all are used.
        drawn_fraction: lambda, the probability that the experts are drawn, in [0, 1].
        sampling: how the student writes.

    Source: Kim et al. 2025, section 4.2 and algorithm 1, arXiv:2502.12947.
    """

    expects_trained_student = True
    learns_without_references = True
    needs_mixture = True
    draws: int = 2
    left_out: int = 1
    drawn_fraction: float = 0.05
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_at_least(self, draws=1, left_out=0)
        check_shares(self, "drawn_fraction")

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` unless the expert is a mixture of enough experts."""
        super().check_expert(expert)
        count = fewest_experts(expert)
        if self.left_out >= count:
            raise ExpertError(
                f"left_out must be below {count}, the number of experts, got {self.left_out}: "
                "lower it, or give a teacher with more experts"
            )

    def collect(self, context: Context) -> LabelledBatch:
        """Write every example by the student, and label it by the passes' mean."""
        states, expert = student_rollout(context, self.sampling).trajectories, context.env.expert
        gates = teacher_gates(expert)
        choose = partial(
            used_experts,
            left_out=self.left_out,
            drawn_fraction=self.drawn_fraction if gates.trained else 1.0,
            generator=context.generator,
        )
        total = sum(
            gated_logits(expert, states, gates.routers, choose).float().log_softmax(-1)
            for _ in range(self.draws)
        )
        return LabelledBatch(states, {"logits": cast("Tensor", total) / self.draws})

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean reverse KL from the passes' distributions, but for a constant."""
        return loss_for(Dense(), reverse_kl, batch.trajectories, student, expert)


@dataclass(frozen=True)
class StudentAwareRouter(CompanionAgent):
    """Distillation of all experts of a mixture, weighed by routers trained for the student.

    Roll-in: the student alone, drawn at temperature 1. Label: the teacher's distribution with all
    experts in use, weighed by the routers. Loss: KL(q || p) for the student q, where the teacher p
    is a constant; KL(p || q) + `balance_weight` * imbalance for the routers, where q is a constant.
    The imbalance is the squared ratio of standard deviation to mean of the experts' probabilities.
    Differs from the paper in: routers and student learn in the same update, there the routers
    first; the imbalance is that of each text and the mean over the gates, there of the batch, whose
    counts of tokens are equal where all experts are used; no noise in the gates. Where the teacher
    is a mixture of several models, a linear router of their last hidden states is added, which
    begins with equal weights.

    Attributes:
        balance_weight: beta, the weight of the imbalance, at least 0.
        sampling: how the student writes.

    Source: Kim et al. 2025, section 4.3 and algorithm 2, arXiv:2502.12947.
    """

    expects_trained_student = True
    learns_without_references = True
    needs_mixture = True
    balance_weight: float = 0.01
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_at_least(self, balance_weight=0)

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` unless the expert is a mixture."""
        super().check_expert(expert)
        fewest_experts(expert)

    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the routers, which at first are the teacher's own."""
        del student
        own = teacher_gates(expert).routers
        return nn.ModuleDict({"routers": nn.ParameterList(router.clone() for router in own)})

    def collect(self, context: Context) -> LabelledBatch:
        """Write every example by the student."""
        return student_rollout(context, self.sampling)

    def joint_loss(
        self,
        batch: LabelledBatch,
        student: SequenceModel,
        expert: Expert,
        companions: nn.ModuleDict,
    ) -> Tensor:
        """Return the loss of the student plus that of the routers."""
        states, imbalances = batch.trajectories, list[Tensor]()

        def use_all(gate: Tensor) -> Tensor:
            imbalances.append(imbalance(gate[:, -states.mask.shape[1] :], states.mask))
            return torch.ones_like(gate, dtype=torch.bool)

        routers = cast("nn.ParameterList", companions["routers"])
        teacher = gated_logits(expert, states, tuple(routers), use_all)
        learner = student.sequence_logits(states.source, states.actions)
        to_teacher = by_parts(reverse_kl, learner, teacher.detach())
        to_student = by_parts(reverse_kl, teacher, learner.detach())
        uneven = self.balance_weight * torch.stack(imbalances).mean(0)
        return mean_over_actions(to_teacher + to_student + uneven[:, None], states)


def used_experts(
    gate: Tensor, *, left_out: int, drawn_fraction: float, generator: torch.Generator
) -> Tensor:
    """Return all experts but the least probable, or but those left by a draw, (..., N) bool.

    The draw is without replacement, by the gate's probabilities.

    Args:
        gate: (..., N) logits.
        left_out: number of experts that are not used, below N.
        drawn_fraction: probability of a draw, in [0, 1].
        generator: source of randomness, on the CPU.
    """
    drawn = torch.rand(gate.shape[:-1], generator=generator) < drawn_fraction
    gumbel = -torch.empty(gate.shape).exponential_(generator=generator).log()
    ranks = gate + gumbel.where(drawn[..., None], 0.0).to(gate.device)
    least = ranks.topk(left_out, largest=False).indices
    return torch.ones_like(gate, dtype=torch.bool).scatter(-1, least, value=False)


def imbalance(gate: Tensor, mask: Tensor) -> Tensor:
    """Return the squared ratio of standard deviation to mean of the experts' probabilities, (B,).

    Each expert's probability is its mean over a text; they sum to 1, so that their mean is 1 / N.

    Args:
        gate: (B, T, N) logits.
        mask: (B, T) bool, the states that count.
    """
    shares = (gate.softmax(-1) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return shares.shape[-1] * shares.square().sum(-1) - 1
