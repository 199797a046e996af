"""Every Expert Matters: all parts of a mixture teach, not only those that it would answer with.

The paper's teacher is one network with experts in its layers. Here it is a mixture of teachers:
each is an expert, and a router is what weighs their probabilities. Two algorithms use all of them:
one draws subsets of the experts again and again, the other trains a router for the student.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textgen_agents.agent import Agent, CompanionAgent
from textgen_agents.losses.divergences import by_parts, cross_entropy, forward_kl
from textgen_agents.losses.labels import Dense, LabelledBatch
from textgen_agents.losses.objectives import loss_for, mean_over_actions
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.white_box import (
    answers_of_each,
    check_mixture,
    mixture_answers,
    mixture_of,
    mixture_states,
)
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class KnowledgeAugmentation(Agent):
    """Distillation of several random subsets of a mixture's experts at every state.

    Roll-in: data. Label: at each state, `draws` subsets of `experts` teachers are drawn uniformly,
    and each subset answers with the mean of its probabilities. Loss: forward KL, the mean over the
    draws. Forward KL is linear in the label, so that the mean over the draws' labels is the label,
    and only a constant of the loss is left out.
    Differs from the paper in: the experts are teachers and not parts of a network's layers, their
    weights in a subset and in the draw are equal, the numbers of draws and experts are choices of
    ours.

    Attributes:
        draws: M, the subsets at each state, at least 1.
        experts: teachers in a subset, from 1 to the number of teachers.

    Source: Kim et al. 2025, Knowledge Augmentation, arXiv:2502.12947.
    """

    needs_mixture = True
    student_writes = False
    draws: int = 4
    experts: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, draws=1, experts=1)

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` unless the expert is a mixture with enough teachers."""
        super().check_expert(expert)
        check_mixture(expert)
        count = len(mixture_of(expert).models)
        if self.experts > count:
            raise ExpertError(
                f"experts must be at most {count}, the number of teachers, got {self.experts}: "
                "lower it, or give more teachers (--further-teachers)"
            )

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes, labelled by the drawn subsets."""
        states, expert = data_rollout(context).trajectories, context.env.expert
        shape = *states.actions.shape, self.draws, len(mixture_of(expert).models)
        shares = subset_shares(shape, self.experts, context.generator).to(states.mask.device)
        return LabelledBatch(states, {"logits": mixture_answers(expert, states, shares.log())})

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the mean of the subsets' distributions."""
        return loss_for(Dense(), forward_kl, batch.trajectories, student, expert)


@dataclass(frozen=True)
class StudentAwareRouter(CompanionAgent):
    """Distillation of all experts of a mixture, weighed by a router trained for the student.

    Roll-in: data. Label: the mixture of all teachers, whose weights at each state a linear router
    computes from their hidden states. Loss: forward KL from the mixture for the student, where the
    mixture is a constant; `data_weight` * -log p(token) + `student_weight` * KL(q || p) for the
    router, where p is the mixture and the student q a constant.
    Differs from the paper in: the experts are teachers and not parts of a network's layers; the
    router begins with equal weights and is trained in the same updates as the student, by a loss
    that is a choice of ours.

    Attributes:
        data_weight: of the mixture's cross-entropy on the data's tokens, at least 0.
        student_weight: of the mixture's divergence from the student, at least 0.

    Source: Kim et al. 2025, Student-Aware Router, arXiv:2502.12947.
    """

    needs_mixture = True
    student_writes = False
    data_weight: float = 1.0
    student_weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, data_weight=0, student_weight=0)

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` unless the expert is a mixture of models with hidden states."""
        super().check_expert(expert)
        check_mixture(expert)
        mixture_states(expert)

    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the router, which at first gives equal weights."""
        del student
        models = mixture_states(expert)
        router = nn.Linear(sum(model.width for model in models), len(models))
        for parameter in router.parameters():
            nn.init.zeros_(parameter)
        return nn.ModuleDict({"router": router})

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
        """Return the loss of the student and of the router."""
        states = batch.trajectories
        hidden, log_probs = answers_of_each(expert, states)
        weights = companions["router"](hidden).float().log_softmax(-1)
        mixture = (log_probs + weights.movedim(-1, 0)[..., None]).logsumexp(0)
        logits = student.sequence_logits(states.source, states.actions)
        losses = by_parts(forward_kl, logits, mixture.detach())
        losses = losses + self.data_weight * cross_entropy(mixture, states.actions)
        to_student = by_parts(forward_kl, mixture, logits.detach())
        return mean_over_actions(losses + self.student_weight * to_student, states)


def subset_shares(shape: tuple[int, ...], experts: int, generator: torch.Generator) -> Tensor:
    """Draw subsets, and return each expert's share of all draws at every state, (B, T, K).

    Args:
        shape: (B, T, M, K) of M draws among K experts.
        experts: size of a subset, from 1 to K.
        generator: source of randomness, on the CPU.
    """
    chosen = torch.rand(shape, generator=generator).topk(experts, dim=-1).indices
    counts = torch.zeros(shape).scatter_(-1, chosen, 1.0).sum(2)
    return counts / (shape[2] * experts)
